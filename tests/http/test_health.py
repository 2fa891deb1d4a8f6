"""What probes and operators are told while nodes are lost and come back."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from megainfer.frontend.serving_options import ServingOptions
from megainfer.messages.from_child import Stats
from megainfer.messages.message import Role
from megainfer.messages.to_child import NodeDown
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from megainfer.topology import Membership, placement_of
from server.operate.nodes import NodeBoard, NodeState
from tests.support.scripted_server import RunningServer, byte_level_backend, silent, speaking

TOKENIZER = Tokenizer(FastBackend(byte_level_backend()), {})
AS_ROOT: Any = {"headers": {"Authorization": "Bearer root"}, "timeout": 20, "trust_env": False}
BODY = {"prompt": "x", "max_tokens": 1}


def membership(epoch: int, experts: tuple[int, ...]) -> Membership:
    return Membership(epoch, (0,), experts, placement_of(max(experts) + 1, {0: (experts,)}))


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(TOKENIZER, options=ServingOptions(admin_keys=("root",))) as server:
        server.call(server.engine.enter, membership(2, (0, 1)))
        server.call(server.instance.board.enter, membership(2, (0, 1)))
        yield server


def lose(server: RunningServer, role: Role, node: int) -> None:
    down = NodeDown(role, node, "killed by SIGKILL")
    server.call(server.instance.board.lose, role, node)
    server.call(server.engine.lose, down)


def enter(server: RunningServer, entered: Membership) -> None:
    server.call(server.instance.board.enter, entered)
    server.call(server.engine.enter, entered)


def get(server: RunningServer, path: str) -> httpx.Response:
    return httpx.get(server.url + path, **AS_ROOT)


def nodes(server: RunningServer) -> dict[str, Any]:
    answer = get(server, "/admin/nodes").json()
    return {node["name"]: node for node in answer["nodes"]} | {"epoch": answer["epoch"]}


def test_health_goes_from_ok_to_recovering_to_degraded_and_back(server: RunningServer) -> None:
    assert get(server, "/health").json() == {"status": "ok"}
    lose(server, Role.EXPERT, 1)
    answer = get(server, "/health")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    body = answer.json()
    assert (body["status"], body["reason"]) == ("recovering", "expert node 1 died")
    assert body["error"]["message"] == "expert node 1 died"
    assert body["seconds"] >= 0
    assert get(server, "/ready").status_code == 503
    assert get(server, "/live").status_code == 200
    enter(server, membership(3, (0,)))
    answer = get(server, "/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    assert answer.json()["reason"] == "expert node 1 died"
    enter(server, membership(4, (0, 1)))
    assert get(server, "/health").json() == {"status": "ok"}


def test_a_probe_that_a_loss_holds_up_says_so(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.operate.health.PROBE_SECONDS", 0.2)
    server.node.script = silent
    monkeypatch.setattr(server.instance.readiness, "_generate", _losing(server))
    answer = get(server, "/ready")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "expert node 0 died"


def _losing(server: RunningServer) -> Any:
    generate = server.instance.readiness._generate

    async def lose_and_generate() -> None:
        server.engine.lose(NodeDown(Role.EXPERT, 0, "killed"))
        await generate()

    return lose_and_generate


def test_a_degraded_server_is_ready_without_the_word_of_who_is_lost(server: RunningServer) -> None:
    server.node.script = speaking(TOKENIZER.encode("x")[0])
    lose(server, Role.EXPERT, 1)
    enter(server, membership(3, (0,)))
    assert httpx.post(f"{server.url}/v1/completions", json=BODY, **AS_ROOT).status_code == 200
    board = server.instance.board
    for count in (1, 2, 3):
        server.call(board.hear, Stats(None, {"expert node 0": {"messages_received": count}}))
    assert get(server, "/ready").status_code == 200


def test_administrators_see_each_node(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/admin/nodes", trust_env=False).status_code == 401
    lose(server, Role.EXPERT, 1)
    seen = nodes(server)
    assert seen["epoch"] == 2
    assert seen["expert node 1"]["state"] == "lost"
    assert seen["expert node 1"]["reason"] == "killed by SIGKILL"
    assert seen["attention node 0"]["restarts"] == 0
    enter(server, membership(3, (0, 1)))
    server.call(server.instance.board.hear, Stats(None, {"expert node 1": {}}))
    seen = nodes(server)
    assert seen["epoch"] == 3
    assert (seen["expert node 1"]["state"], seen["expert node 1"]["restarts"]) == ("serving", 1)
    assert seen["expert node 1"]["heartbeat_seconds"] < 20
    enter(server, membership(4, (1,)))
    assert nodes(server)["expert node 0"]["state"] == "apart"
    server.call(server.instance.board.hear, Stats(None, {"expert node 7": {"batches": 3}}))
    assert nodes(server)["expert node 7"]["state"] == "apart", "one that was added"


def test_metrics_tell_of_losses(server: RunningServer) -> None:
    lose(server, Role.EXPERT, 1)
    assert 'megainfer:serving{model_name="tiny"} 0.0' in get(server, "/metrics").text
    enter(server, membership(3, (0,)))
    text = get(server, "/metrics").text
    for line in (
        'megainfer:serving{model_name="tiny"} 1.0',
        'megainfer:epoch{model_name="tiny"} 3.0',
        'megainfer:node_restarts_total{model_name="tiny",node="1",role="expert"} 1.0',
        'megainfer:recovery_seconds_count{cause="expert",model_name="tiny"} 1.0',
        'megainfer:requests_replayed_total{engine="0",model_name="tiny"} 0.0',
        'megainfer:tokens_recomputed_total{engine="0",model_name="tiny"} 0.0',
        'megainfer:node_up{model_name="tiny",node="1",role="expert"} 0.0',
    ):
        assert line in text


def test_a_board_takes_no_silence_of_the_lost_for_a_hang_and_counts_anew() -> None:
    now = [0.0]
    board = NodeBoard([NodeState(Role.EXPERT, 0)], patience=5.0, clock=lambda: now[0])
    (node,) = board.of_role(Role.EXPERT)
    board.hear(Stats(None, {"expert node 0": {"messages_received": 100}}))
    board.lose(Role.EXPERT, 0)
    now[0] = 60.0
    assert (board.hung(), board.is_up(node), board.idle_experts(0.0)) == (None, False, [])
    board.enter(membership(2, (0,)))
    assert (board.hung(), board.is_up(node)) == (None, True)
    assert board.idle_experts(60.0) == ["expert node 0"]
    board.hear(Stats(None, {"expert node 0": {"messages_received": 3}}))
    assert board.idle_experts(60.0) == [], "three of the new process are more than none"
    assert node.growth("messages_received") == 0
    now[0] = 66.0
    assert "expert node 0 has said nothing for 6 s" in str(board.hung())
    board.enter(membership(3, (1,)))
    assert (board.hung(), board.idle_experts(0.0)) == (None, ["expert node 1"]), "it left"
    board.enter(membership(4, (0,)))
    assert board.hung() is None, "it is back since just now"
    now[0] = 72.0
    assert "expert node 0 has said nothing for 6 s" in str(board.hung())
