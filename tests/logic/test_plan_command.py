"""`megainfer plan` and `serve --plan`: tables, JSON, pictures, and what is refused how."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from megainfer.cli import app
from megainfer.commands.plan.values import parse_inventory, parse_seconds, parse_tps, parse_traffic
from megainfer.commands.plan_file import PlanFile
from megainfer.compute.selection import Precision
from megainfer.errors import ConfigError, MegaInferError
from megainfer.planner.hardware import load_devices
from megainfer.planner.rehearsal import Pattern
from megainfer.planner.report.document import read_served
from megainfer.planner.report.picture import ticks
from megainfer.planner.report.served import served
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.workload import Workload
from megainfer.planner.shapes import named_shape

RUNNER = CliRunner(env={"COLUMNS": "120", "TERM": "dumb"})
DBRX = ("dbrx", "--gpus", "H100:8", "--tp", "1")
QUICK = ("--simulate", "0", "--top", "1")


def run(*args: str) -> str:
    result = RUNNER.invoke(app, ["plan", *args])
    if isinstance(result.exception, MegaInferError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plan")
    options = ("--top", "2", "--simulate", "1", "--plot", str(folder / "front.svg"))
    found = json.loads(run(*DBRX, *options, "--timeline", str(folder / "step.json"), "--json"))
    found["svg"] = (folder / "front.svg").read_text()
    found["trace"] = json.loads((folder / "step.json").read_text())
    return dict(found)


def test_the_tables_tell_plans_and_the_verdict() -> None:
    text = run(*DBRX, *QUICK)
    flowing = " ".join(text.split())
    for words in (
        "dbrx on 8 H100: 571 tokens in, 159 out, prompts beside, at most 150 ms between tokens",
        "attention and experts apart",
        "colocated",
        "T_a, a layer",
        "T_e, a layer",
        "tokens a second and device",
        "dbrx is a shape without weights",
    ):
        assert words in flowing
    assert "simulated" not in text


def test_the_document_says_all_in_si_units(document: dict[str, Any]) -> None:
    assert document["inventory"] == {"H100": 8}
    assert document["target"] == {"tpot_seconds": 0.15, "ttft_seconds": None}
    for plan in (*document["plans"], *document["colocated"]):
        seconds = plan["seconds"]
        assert seconds["between_tokens"] <= 0.15
        assert seconds["first_token"] > seconds["between_tokens"]
        rates = plan["tokens_per_second"]
        assert rates["instance"] == pytest.approx(plan["batch"] / seconds["between_tokens"])
        assert rates["gpu"] == pytest.approx(rates["instance"] / plan["devices"])
        assert rates["user"] == pytest.approx(1 / seconds["between_tokens"])
        for needs in plan["memory_bytes"]:
            assert 0 < needs["weights"] < sum(needs.values()) <= 80 * 2**30
    apart = document["plans"][0]
    assert apart["attention"]["nodes"] + apart["experts"]["nodes"] <= 8
    assert document["verdict"]["apart_by"] > 0


def test_the_best_plan_is_simulated(document: dict[str, Any]) -> None:
    first, *others = document["plans"]
    tried = first["simulated"]
    assert tried["tokens_per_second"] == pytest.approx(
        first["tokens_per_second"]["instance"], rel=0.25
    )
    latencies = tried["latencies"]
    for name in ("first_token", "between_tokens", "per_token"):
        assert 0 < latencies[name]["p50"] <= latencies[name]["p90"] <= latencies[name]["p99"]
    assert all(plan["simulated"] is None for plan in others)
    verdict = document["verdict"]
    made, others_made = (
        plans[0]["simulated"]["tokens_per_second"] / plans[0]["tokens_per_second"]["instance"]
        for plans in (document["plans"], document["colocated"])
    )
    assert others_made == pytest.approx(1, rel=0.25)
    ratio = verdict["apart_by_simulated"] / verdict["apart_by"]
    assert ratio == pytest.approx(made / others_made)


def test_the_picture_has_a_point_a_plan_of_the_front(document: dict[str, Any]) -> None:
    svg = ElementTree.fromstring(document["svg"])
    points = svg.findall("{http://www.w3.org/2000/svg}circle")
    front = document["front"]["apart"] + document["front"]["colocated"]
    assert len(points) == len(front) > 4
    for kind in ("apart", "colocated"):
        own = document["front"][kind]
        assert [p["per_user"] for p in own] == sorted(p["per_user"] for p in own)
        assert [p["per_gpu"] for p in own] == sorted((p["per_gpu"] for p in own), reverse=True)


@pytest.mark.parametrize("most", [0.013, 1.0, 5.9, 9.99, 1234.0])
def test_axes_have_a_few_ticks(most: float) -> None:
    found = ticks(most)
    assert 3 <= len(found) <= 8
    assert found[0] == 0
    assert found[-1] <= most


def test_the_timeline_is_a_trace_of_one_step(document: dict[str, Any]) -> None:
    events = document["trace"]["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {"simulated: attention-0", "simulated: expert-0"} <= names
    layers = {event["args"]["layer"] for event in events if event.get("cat") == "expert"}
    assert layers == set(range(40))


def test_what_can_be_served_says_how(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shape = named_shape("dbrx")
    assert shape is not None
    (folder / "config.json").write_text((shape / "config.json").read_text())
    found = json.loads(run(str(folder), *DBRX[1:], *QUICK, "--json"))
    start = found["plans"][0]["serve"]
    nodes = found["plans"][0]["attention"]["nodes"], found["plans"][0]["experts"]["nodes"]
    assert start["refusals"] == []
    assert start["command"].startswith(f"megainfer serve {folder} --attn-gpus {nodes[0]} ")
    assert f"--ffn-gpus {nodes[1]} --device cuda --micro-batches" in start["command"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(found))
    assert read_served(path) == start["options"]


def test_serve_takes_a_plan_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    options = {"attn-gpus": 3, "micro-batches": 2, "colocated": False}
    plan = {"serve": {"options": options, "refusals": []}}
    verdict = {"apart_by": 2.0}
    path.write_text(
        json.dumps({"version": 1, "plans": [plan], "colocated": [], "verdict": verdict})
    )
    small = typer.Typer()

    @small.command()
    def serve(
        attn_gpus: int = 1,
        micro_batches: str = "auto",
        colocated: bool = True,
        plan: PlanFile = None,
    ) -> None:
        print(attn_gpus, micro_batches, colocated)

    runner = CliRunner()
    assert runner.invoke(small, ["--plan", str(path)]).output == "3 2 False\n"
    said = runner.invoke(small, ["--plan", str(path), "--attn-gpus", "5"]).output
    assert said == "5 2 False\n"
    options["kernel"] = 1
    path.write_text(
        json.dumps({"version": 1, "plans": [plan], "colocated": [], "verdict": verdict})
    )
    unknown = runner.invoke(small, ["--plan", str(path)]).exception
    assert "there is no option 'kernel'" in str(unknown)


def test_the_kind_that_won_is_started_first(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"

    def start(name: str, *refusals: str) -> dict[str, Any]:
        return {"serve": {"options": {"model": name}, "refusals": list(refusals)}}

    def chosen(ratio: float, *apart: dict[str, Any], simulated: float | None = None) -> Any:
        whole = {
            "version": 1,
            "plans": list(apart),
            "colocated": [start("together")],
            "verdict": {"apart_by": ratio, "apart_by_simulated": simulated},
        }
        path.write_text(json.dumps(whole))
        return read_served(path)["model"]

    assert chosen(1.5, start("apart")) == "apart"
    assert chosen(0.5, start("apart")) == "together"
    assert chosen(1.5, start("apart"), simulated=0.9) == "together"
    assert chosen(1.5, start("wide", "no tensor parallelism"), start("apart")) == "apart"
    assert chosen(1.5, start("wide", "no tensor parallelism")) == "together"


def test_a_plan_with_spare_experts_is_started_with_them() -> None:
    device = load_devices()["H100"]
    nodes, workload = Nodes(device, 1, 2), Workload(571, 159)
    for spares in (0, 3):
        plan = Deployment(nodes, Nodes(device, 1, 4, spares), 2, 64)
        options = served("path/to/model", plan, Precision("bfloat16"), workload).options
        assert options.get("expert-replicas", 0) == spares


def test_a_plan_with_a_narrow_cache_is_started_with_it_where_it_is_served() -> None:
    hardware, workload = load_devices(), Workload(571, 159)
    for name, dtype, refused in (
        ("XEON", "int8", False),
        ("H100", "int8", True),
        ("H100", "auto", False),
    ):
        device = next(own for key, own in hardware.items() if name in key)
        plan = Deployment(Nodes(device, 1, 1), Nodes(device, 1, 1), 2, 64)
        precision = Precision("bfloat16", cache=dtype)
        start = served("path/to/model", plan, precision, workload)
        assert start.options.get("kv-cache-dtype", "auto") == dtype
        assert any("KV cache in int8" in why for why in start.refusals) is refused


def test_lengths_that_spread_need_more_of_the_cache(tmp_path: Path) -> None:
    alike, wide = (
        json.loads(run(*DBRX, *QUICK, "--lengths", lengths, "--json"))
        for lengths in ("fixed", "lognormal:1.2")
    )
    assert wide["workload"]["spread"]["output_square"] > 3
    per_sequence = [
        plan["memory_bytes"][0]["KV cache"] / plan["rows"] / plan["micro_batches"]
        for plan in (found["plans"][0] for found in (alike, wide))
    ]
    assert per_sequence[1] > 1.2 * per_sequence[0]
    trace = tmp_path / "trace.csv"
    trace.write_text("Timestamp,Request tokens,Response tokens\n0,100,20\n3,300,40\n")
    traced = json.loads(run(*DBRX, *QUICK, "--lengths", str(trace), "--json"))["workload"]
    assert (traced["input_tokens"], traced["output_tokens"]) == (200, 30)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "isn't what `megainfer plan --json` writes"),
        ("[]", "isn't what `megainfer plan --json` writes"),
        ('{"version": 7}', "version 7, this program 1"),
        ('{"version": 1}', "lacks a part of a plan"),
        (
            '{"version": 1, "plans": [{"serve": 3}], "colocated": [], '
            '"verdict": {"apart_by": null}}',
            "lacks a part of a plan",
        ),
        (
            '{"version": 1, "plans": [], "colocated": [], "verdict": {"apart_by": null}}',
            "can't be started: it holds no plan",
        ),
        (
            '{"version": 1, "plans": [{"serve": {"options": {}, "refusals": ["no wings"]}}], '
            '"colocated": [], "verdict": {"apart_by": null}}',
            "can't be started: no wings",
        ),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_served(path)
    with pytest.raises(ConfigError, match="isn't what"):
        read_served(tmp_path / "missing.json")


def best_served(*options: str) -> dict[str, Any]:
    """How the best plan of a shape without weights would be started."""
    found = json.loads(run("dbrx", "--gpus", "H100:12", *options, *QUICK, "--json"))
    return dict(found["plans"][0]["serve"])


def test_what_is_not_served_yet_is_refused_by_name() -> None:
    refusals = best_served("--tp", "1", "--prefill", "elsewhere")["refusals"]
    assert any("a pool of its own for prompts isn't served yet" in text for text in refusals)


def test_nodes_of_several_gpus_are_served() -> None:
    serve = best_served("--tp", "2")
    assert serve["options"]["attn-tp"] == 2
    assert [text.partition(";")[0] for text in serve["refusals"]] == [
        "dbrx is a shape without weights"
    ]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "MODEL is missing"),
        (("dbrx", "--from", "http://127.0.0.1:1"), "leave MODEL and --gpus out"),
        (("--from", "http://127.0.0.1:1", "--seconds", "0"), "--seconds is 0"),
        (("dbrx",), "--gpus is missing"),
        (("dbrx", "--gpus", "H2O:8"), "H2O.*H20"),
        (("dbrx", "--gpus", "H100"), "such as H20:64,L40S:64, not 'H100'"),
        (("dbrx", "--gpus", "H100:0"), "not 'H100:0'"),
        (("dbrx", "--gpus", "H100:8,h100:8"), "H100 is named twice"),
        ((*DBRX, "--tpot", "soon"), "--tpot needs a time such as 150ms or 2s, not 'soon'"),
        ((*DBRX, "--tpot", "1us"), "no plan keeps 0.001 ms between tokens; the nearest has"),
        ((*DBRX, "--ttft", "1ms"), "no plan keeps 1 ms to the first token"),
        (("dbrx", "--gpus", "L20:2"), "fits nowhere on 2 L20: .* GB are missing"),
        ((*DBRX, "--objective", "fame"), "--objective must be one of gpu, cost, watt, latency"),
        ((*DBRX, "--prefill", "never"), "--prefill must be one of beside, elsewhere"),
        ((*DBRX, "--input", "0"), "input_tokens is 0"),
        ((*DBRX, "--top", "0"), "--top must be at least 1"),
        ((*DBRX, "--simulate", "-1"), "--simulate must be at least 0"),
        ((*DBRX, "--tp", "two"), "--tp needs numbers"),
        ((*DBRX, "--dtype", "float8"), "--dtype must be one of"),
        ((*DBRX, "--skew", "-1"), "--skew must be 0 to 3"),
        ((*DBRX, "--plot", "front.png"), "--plot writes a file that ends in .svg"),
        ((*DBRX, "--arrivals", "never"), "--arrivals must be poisson"),
        ((*DBRX, "--lengths", "lognormal:long"), "'long' is no number"),
        ((*DBRX, "--load", "2"), "share of the throughput"),
        ((*DBRX, "--hardware", "missing.toml"), "missing.toml"),
        (("owner-less", "--gpus", "H100:8"), "neither a folder nor a hub id"),
    ],
)
def test_mistakes_are_told(args: tuple[str, ...], problem: str) -> None:
    with pytest.raises(MegaInferError, match=problem):
        run(*args)


def test_values() -> None:
    devices = load_devices()
    stock = parse_inventory("h20:64, l40s:8", devices).stock
    assert [(device.name, count) for device, count in stock] == [("H20", 64), ("L40S", 8)]
    assert parse_seconds("1.5 s", "-t") == 1.5
    assert parse_tps("8, 1,8") == (1, 8)
    traffic = parse_traffic("bursts:8", "lognormal", 0.5, 1.0, 0.0)
    assert (traffic.pattern, traffic.burst_factor, traffic.sigma) == (Pattern.BURSTS, 8.0, 1.0)


def test_a_trace_gives_arrivals_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n0,100,20\n3,300,40\n")
    traffic = parse_traffic(str(path), "fixed", 0.5, 1.0, 0.0)
    assert traffic.pattern is Pattern.TRACE
    assert [request.at for request in traffic.trace] == [0.0, 3.0]
    lengths = parse_traffic("poisson", str(path), 0.5, 1.0, 0.0)
    assert lengths.pattern is Pattern.POISSON
    assert len(lengths.trace) == 2
    with pytest.raises(ConfigError, match="are its own"):
        parse_traffic(str(path), "lognormal", 0.5, 1.0, 0.0)
