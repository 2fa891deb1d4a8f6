"""From what a user names to a folder: what the hub's failures look like."""

import huggingface_hub
import pytest

from megainfer.errors import ModelError
from megainfer.model_folder.resolve import ModelSource, resolve_model


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(), r"\(TimeoutError: \)"),
        (OSError("no route\nat all"), r"OSError: no route\)"),
    ],
)
def test_a_failing_hub_is_named_with_the_first_line_of_its_reason(monkeypatch, error, text):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=f"owner/name is no local folder.*{text}"):
        resolve_model(ModelSource("owner/name"), lambda stage, fraction: None)
