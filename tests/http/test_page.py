"""The page at `/`: its files, what its live view is told, and that nobody is troubled unwatched."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from megainfer.frontend.serving_options import ServingOptions
from megainfer.instruments.stage_clock import Span
from megainfer.messages.from_child import Spans, Stats
from megainfer.messages.message import Role
from megainfer.messages.to_child import GetSpans, KeepSpans
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from server.http.access import Access, access_to
from server.operate.metrics.experts import ExpertMap
from server.operate.nodes import NodeBoard, NodeState
from server.operate.traces import Tracer
from server.page import timeline as timeline_module
from server.page.assets import PAGE
from server.page.expert_load import expert_load
from server.page.timeline import Timeline
from tests.support.scripted_server import RunningServer, byte_level_backend

STATIC = Path(timeline_module.__file__).parent.parent / "static"
KEYS = ServingOptions(api_keys=("secret",))
TOKENIZER = Tokenizer(FastBackend(byte_level_backend()), {})


@pytest.fixture(scope="module")
def url() -> Any:
    with RunningServer(TOKENIZER, options=KEYS) as server:
        yield server.url


# --- files ----------------------------------------------------------------------------------------


def test_exactly_the_files_of_the_page_are_public() -> None:
    assert set(PAGE.values()) == {path.name for path in STATIC.iterdir()}
    assert all(access_to(path, PAGE) is Access.OPEN for path in PAGE)
    for path in ("/static/", "/static", "/static/x.js", "/index.html"):
        assert access_to(path, PAGE) is Access.KEY
    assert access_to("/page/state", PAGE) is Access.INSIDE


def test_every_file_comes_with_its_type_and_a_strict_policy(url: str) -> None:
    kinds = {
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
        "html": "text/html",
    }
    for path, name in PAGE.items():
        response = httpx.get(url + path)
        assert response.status_code == 200
        assert response.content == (STATIC / name).read_bytes()
        assert response.headers["content-type"].startswith(
            kinds.get(name.rpartition(".")[2], "text/html")
        )
        policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


def test_a_file_is_sent_once_until_it_changes(url: str) -> None:
    first = httpx.get(url + "/static/page.css")
    for known in (first.headers["etag"], f'"old", W/{first.headers["etag"]}'):
        again = httpx.get(url + "/static/page.css", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
    other = httpx.get(url + "/static/page.css", headers={"If-None-Match": '"old"'})
    assert other.status_code == 200
    assert httpx.head(url + "/").status_code == 200


def test_the_files_load_nothing_from_elsewhere_and_hold_no_inline_script() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|<style|\sstyle=", page)
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""["'(]https?://\w""", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text), path


# --- what the live view is told -------------------------------------------------------------------


def test_the_live_view_asks_for_a_key_like_all_else(url: str) -> None:
    for path in ("/page/state", "/page/placement", "/page/timeline"):
        assert httpx.get(url + path).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert httpx.get(url + path, headers=headers).status_code == 200


def test_replicas_are_added_up_and_columns_are_global_ids() -> None:
    nodes = [NodeState(Role.EXPERT, index) for index in range(2)]
    board = NodeBoard(nodes)
    counters = {
        "expert node 0": {"expert_tokens": [{0: 2, 2: 1}, {0: 3, 2: 4}]},
        "expert node 1": {"expert_tokens": [{0: 20, 1: 10}, {0: 40, 1: 30}]},
    }
    board.hear(Stats(None, counters))
    load = expert_load(nodes, ExpertMap((1, 3), (((0, 2), (0, 2)), ((0, 1), (0, 1)))))
    assert load == {
        "layers": [1, 3],
        "experts": [0, 2, 1],
        "homes": [0, 0, 1],
        "tokens": [[2 + 20, 1, 10], [3 + 40, 4, 30]],
        "shared": [[(0, 0, 2), (0, 1, 20)], [(0, 0, 3), (0, 1, 40)]],
    }


def test_a_spare_shares_nothing_until_tokens_are_sent_to_it() -> None:
    nodes = [NodeState(Role.EXPERT, index) for index in (0, 2)]
    board = NodeBoard(nodes)
    where = ExpertMap((1,), (((0, 1),), (), ((1, 0),)))
    for spare, shared in ((0, []), (3, [(0, 0, 2), (0, 2, 3)])):
        counters = {
            "expert node 0": {"expert_tokens": [{0: 2, 1: 0}], "experts_held": [[0, 1]]},
            "expert node 2": {"expert_tokens": [{1: 9, 0: spare}], "experts_held": [[1, 0]]},
        }
        board.hear(Stats(None, counters))
        assert expert_load(nodes, where)["shared"] == [shared]
    board.hear(Stats(None, {"expert node 0": {"expert_tokens": [{}], "experts_held": [[]]}}))
    assert expert_load(nodes, where)["homes"] == [2, 2], "numbers of nodes, some of which have left"


def test_experts_are_where_nodes_say_once_they_have_moved() -> None:
    nodes = [NodeState(Role.EXPERT, index) for index in range(2)]
    where = ExpertMap((1,), (((0, 1),), ((2, 3),)))
    assert expert_load(nodes, where)["homes"] == [0, 0, 1, 1]
    counters = {
        "expert node 0": {"expert_tokens": [{0: 1, 1: 2, 3: 5}], "experts_held": [[0, 3]]},
        "expert node 1": {"expert_tokens": [{2: 4, 3: 8}], "experts_held": [[2, 3, 1]]},
    }
    NodeBoard(nodes).hear(Stats(None, counters))
    load = expert_load(nodes, where)
    assert load["experts"] == [0, 3, 1, 2]
    assert load["homes"] == [0, 0, 1, 1]
    assert load["tokens"] == [[1, 13, 2, 4]]


# --- the timeline ---------------------------------------------------------------------------------


class Nodes:
    """One process that answers for its spans at once, unless it is mute. asked: all it was told."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.spans: list[Span] = []
        self.mute = False
        self.tracer = Tracer(self.ask, lambda: 1)

    def ask(self, message: Any) -> None:
        self.asked.append(message)
        if isinstance(message, GetSpans) and not self.mute:
            spans, self.spans = self.spans, []
            self.tracer.hear(Spans(message.ticket, "expert node 0", spans, last=True))

    def kept(self) -> list[int]:
        return [message.count for message in self.asked if isinstance(message, KeepSpans)]


async def seen(timeline: Timeline) -> dict[str, Any]:
    """What somebody is shown who looks."""
    return json.loads(await timeline.look())


def test_spans_are_kept_only_while_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_module, "LOOKED_AWAY_SECONDS", 0.01)
    nodes = Nodes()

    async def main() -> None:
        timeline = Timeline(nodes.tracer, 1)
        assert nodes.asked == []
        await asyncio.gather(timeline.look(), timeline.look(), timeline.look())
        assert len(nodes.asked) == 2  # to keep, and one question for all who look
        async with asyncio.timeout(10):
            while nodes.kept()[-1]:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert nodes.kept() == [1200, 0]


def test_the_last_spans_stay_while_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_module, "BETWEEN_GLANCES_SECONDS", 0.0)
    nodes = Nodes()

    async def main() -> None:
        timeline = Timeline(nodes.tracer, 1)
        nodes.spans = [Span("expert", 1, 7, 2.0, 2.5)]
        rows = {"expert node 0": [[0, 1, 7, 0, 500_000]]}
        assert (await seen(timeline))["nodes"] == rows
        assert (await seen(timeline))["nodes"] == rows
        nodes.spans = [Span("reply", 1, 7, 2.5, 2.6)]
        again = await seen(timeline)
        assert again["kinds"] == ["expert", "reply"]
        assert again["nodes"]["expert node 0"][1] == [1, 1, 7, 500_000, 100_000]

    asyncio.run(main())


def test_what_a_device_did_has_a_lane_beside_its_hosts() -> None:
    nodes = Nodes()
    nodes.spans = [
        Span("expert", 1, 7, 2.0, 2.5),
        Span("expert", 1, 7, 2.25, 3.0, on_device=True),
    ]
    view = asyncio.run(seen(Timeline(nodes.tracer, 1)))
    assert view["nodes"] == {
        "expert node 0": [[0, 1, 7, 0, 500_000]],
        "expert node 0 (device)": [[0, 1, 7, 250_000, 750_000]],
    }
    assert view["devices"] == ["expert node 0 (device)"]


def test_a_trace_comes_first_and_the_looking_goes_on_after_it() -> None:
    nodes = Nodes()

    async def main() -> None:
        timeline = Timeline(nodes.tracer, 1)
        trace = asyncio.create_task(nodes.tracer.record(0.02))
        await asyncio.sleep(0)
        assert "trace" in (await seen(timeline))["problem"]
        assert nodes.kept() == [100_000]  # the trace's; looking did not disturb it
        await trace
        assert nodes.kept() == [100_000, 1200]

    asyncio.run(main())


def test_a_mute_node_is_told_of_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.operate.traces.GLANCE_SECONDS", 0.01)
    nodes = Nodes()
    nodes.mute = True
    view = asyncio.run(seen(Timeline(nodes.tracer, 1)))
    assert "did not give their spans" in view["problem"]
    assert view["nodes"] == {}
