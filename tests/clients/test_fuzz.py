"""Requests made up from the OpenAPI document, right and wrong ones: every answer is as it says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.clients.documented import NAME
from tests.clients.events import events
from tests.support.served import serving

SLOW_ADDRESSES = {"/debug/trace"}  # it answers after as many seconds as it is asked for
PAUSES = {
    *("/pause", "/resume", "/pause_generation", "/continue_generation"),
    "/update_weights_from_disk",
}
"""While generation stands still nothing else is answered; tests/processes/test_rollout_doors.py has
them."""
GROUPS = {"/init_weights_update_group", "/init_weight_transfer_engine"}
"""They wait for a trainer's group; tests/processes/test_weights_broadcast.py has them."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
CONTEXT = 64
EXACTING = {
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "tool_choice",
    "text",
    "stream_options",
}
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def document(model_folder: Path) -> Iterator[schemathesis.BaseSchema]:
    """Of a server whose answers are short."""
    flags = ("--max-model-len", str(CONTEXT), "--served-model-name", NAME)
    with serving(str(model_folder), "--attn-gpus", "1", "--ffn-gpus", "1", *flags) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def fuzz(document: schemathesis.BaseSchema, examples: int) -> int:
    """So many cases of each address and mode; how many there were."""
    cases = 0
    for operation in (found.ok() for found in document.get_all_operations()):
        for mode in MODES if operation.method == "post" else MODES[:1]:
            if operation.path not in SLOW_ADDRESSES | PAUSES | GROUPS:
                cases += _fuzz_one(operation, mode, examples)
    return cases


def _fuzz_one(
    operation: schemathesis.APIOperation[Any, Any, Any, Any],
    mode: schemathesis.GenerationMode,
    examples: int,
) -> int:
    cases = 0

    @settings(
        max_examples=examples if operation.method == "post" else 5,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # smaller is clearer, but takes long
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: schemathesis.Case) -> None:
        nonlocal cases
        cases += 1
        if mode is schemathesis.GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body = _served_here(case.body, plain=cases % 4 != 0)
        response = case.call(timeout=60)
        case.validate_response(response, checks=CHECKS)
        if response.headers["content-type"][0].startswith("text/event-stream"):
            assert events(response.content.decode())

    one()
    return cases


def _served_here(body: dict[str, Any], plain: bool) -> dict[str, Any]:
    """Of the served model; plain: without the fields that a made up value rarely fulfils."""
    left = {name: value for name, value in body.items() if not (plain and name in EXACTING)}
    return {**left, "model": NAME}


def test_hundreds_of_made_up_requests(document) -> None:
    assert fuzz(document, 25) > 300


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thousands_of_made_up_requests(document) -> None:
    assert fuzz(document, 250) > 3000
