"""The instruments, run as a user does, in tiny configurations: what they report must add up."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.instruments import ROOT, run
from tests.support.namespaces import may_make_hosts

LAYERS = 3
MICRO_BATCHES = [1, 2, 3]
NEXT_KIND = {"dispatch": "expert", "expert": "combine", "combine": "dispatch"}
Event = dict[str, Any]


def report_of(folder: Path, instrument: str, *arguments: str | Path) -> dict[str, Any]:
    """What it wrote with --json."""
    finished = run(instrument, *arguments, "--json", folder / "out.json")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((folder / "out.json").read_text())
    assert "cores" in report["hardware"]
    assert report["hardware"] in finished.stdout
    return report


# --- loading -------------------------------------------------------------------------------------


def test_loading_accounts_for_every_byte_of_every_process(tmp_path: Path) -> None:
    options = ["--gigabytes", "0.03", "--shard-gigabytes", "0.01", "--layer", "0.17B"]
    folder = tmp_path / "model"
    folder.mkdir()
    report = report_of(
        tmp_path,
        "loading.py",
        *options,
        *("--nodes", "1x2", "--cache", "cold", "--format", "fp8", "--folder", folder),
    )
    assert len(list(folder.glob("*.safetensors"))) >= 2
    (run,) = report["results"]
    names = [process["process"] for process in run["processes"]]
    assert names == ["attention node 0", "expert node 0", "expert node 1"]
    loaded = sum(process["loaded"] for process in run["processes"])
    assert 0.97 * report["on_disk"] < loaded < report["on_disk"]  # the rest are headers
    for process in run["processes"]:
        assert process["loaded"] <= process["read"]
        assert 0 < process["load"] < run["ready"]
        assert process["peak"] > process["loaded"]


# --- m2n -----------------------------------------------------------------------------------------


def test_m2n_measures_each_road_at_each_size(tmp_path: Path) -> None:
    options = ["--sizes", "2", "16", "--messages", "20", "--rounds", "2", "--window", "2"]
    options += ["--transport", "shm", "dist"]
    # Two expert processes, so that a dispatch goes to several; a spin, so that there are two ways.
    report = report_of(tmp_path, "m2n.py", "--expert", "2", "--spin", "0", "20", *options)
    rows = report["results"]
    roads = ["gloo", "m2n dist (gloo)", "m2n spin 0us", "m2n spin 20us"]
    assert sorted((r["exchange"], r["size"], r["road"]) for r in rows) == sorted(
        itertools.product(["dispatch-combine", "one-way"], [2048, 16384], roads)
    )
    for row in rows:
        assert 0 < row["best_us"] <= row["median_us"] <= row["p99_us"]
        assert row["mb_per_second"] > 0
        # A round trip is one a dispatch; one way, each expert process reads a message of it.
        each = 20 * (2 if row["exchange"] == "one-way" else 1)
        assert row["messages"] == 2 * each


def test_m2n_refuses_half_rows(tmp_path: Path) -> None:
    finished = run("m2n.py", "--sizes", "3")
    assert finished.returncode == 2
    assert "whole rows of 2 KiB" in finished.stderr


# --- pingpong ------------------------------------------------------------------------------------


def events_by_run(path: Path) -> dict[str, dict[str, list[Event]]]:
    """Complete events of a trace, by run and node, in the order of their beginning."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    found: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
        run_name, node = names[event["pid"]].split(": ")
        assert event["dur"] >= 0
        found[run_name][node].append(event)
    return found


def place(event: Event) -> tuple[int, int]:
    return event["args"]["micro_batch"], event["args"]["layer"]


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["cat"] == kind]


def end(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def check_no_overlap(events: list[Event]) -> None:
    for before, after in itertools.pairwise(events):
        assert end(before) <= after["ts"] + 1e-3, (before, after)


def check_round_trips(attention: list[Event], expert: list[Event]) -> None:
    """Each expert span lies between its dispatch and its combine: all clocks are one."""
    # Before and after, one of the two nodes has kept nothing.
    first = max(attention[0]["ts"], expert[0]["ts"])
    last = min(end(attention[-1]), end(expert[-1]))
    places: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in sorted([*attention, *expert], key=lambda e: e["ts"]):
        if event["cat"] in NEXT_KIND and first <= event["ts"] <= last:
            places[place(event)].append(event)
    trips = [pair for events in places.values() for pair in itertools.pairwise(events)]
    assert len(trips) > 3 * LAYERS
    for before, after in trips:
        assert after["cat"] == NEXT_KIND[before["cat"]], (before, after)
        if after["cat"] == "combine":
            assert end(before) <= after["ts"] + 1e-3, (before, after)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("synthetic")
    options = ["--m", *map(str, MICRO_BATCHES), "--attention", "1", "2", "--layers", str(LAYERS)]
    times = ["--t-a", "2", "--t-e", "2", "--warm-up", "0.1", "--duration", "0.2"]
    trace = folder / "trace.json"
    common = ["--rounds", "1", "--rows", "3", "--trace", trace]
    return report_of(folder, "pingpong.py", *options, *times, *common), trace


def test_batches_and_rows_add_up(synthetic: tuple[dict[str, Any], Path]) -> None:
    rows = synthetic[0]["results"]
    assert [(r["attention_nodes"], r["micro_batches"]) for r in rows] == list(
        itertools.product([1, 2], MICRO_BATCHES)
    )
    for row in rows:
        nodes, m = row["attention_nodes"], row["micro_batches"]
        # Every dispatch has 3 rows. What is under way at either end of the window is counted on
        # one side only: at most a message a node and micro-batch.
        assert row["rows"] % 3 == 0
        assert abs(row["rows"] / 3 - row["dispatches"]) <= 2 * nodes * m
        assert row["batches"] <= row["rows"] / 3 <= row["batches"] * nodes
        assert row["rows_per_batch"] == pytest.approx(row["rows"] / row["batches"])


def test_synthetic_stages_take_at_least_what_was_set(
    synthetic: tuple[dict[str, Any], Path],
) -> None:
    for row in synthetic[0]["results"]:
        assert row["t_a"] >= 2
        assert row["t_e"] >= 2
        # A stage that began before the window may be counted in it.
        assert row["period"] >= 0.9 * 2 * row["micro_batches"]
        assert row["simulated_tokens_per_second"] > 0
        assert row["simulated_rows_per_batch"] >= 3


def test_total_time_is_given_where_its_condition_holds(
    synthetic: tuple[dict[str, Any], Path],
) -> None:
    for row in synthetic[0]["results"]:
        if "total" in row:
            assert row["attention_nodes"] == 1
            assert row["micro_batches"] > 1
            assert row["total"] >= 2 * (row["micro_batches"] * LAYERS + 1)
    assert not any("total" in r for r in synthetic[0]["results"] if r["micro_batches"] == 1)


def test_trace_has_every_stage_of_every_layer_on_one_clock(
    synthetic: tuple[dict[str, Any], Path],
) -> None:
    runs = events_by_run(synthetic[1])
    assert set(runs) == {f"{nodes}A1E m={m}" for nodes in (1, 2) for m in MICRO_BATCHES}
    for name, run_events in runs.items():
        m = int(name.split("m=")[1])
        everything = set(itertools.product(range(m), range(LAYERS)))
        for node, events in run_events.items():
            check_no_overlap(events)
            kinds = ("expert",) if "expert" in node else ("attention", "dispatch", "combine")
            for kind in kinds:
                assert {place(e) for e in of_kind(events, kind)} >= everything, (name, kind)
        if name.startswith("1A"):
            check_round_trips(run_events["attention node 0"], run_events["expert node 0"])


def test_a_real_model_is_measured_and_traced(tmp_path: Path) -> None:
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path / "model")
    load = ["--concurrency", "4", "--prompt-tokens", "4", "--output-tokens", "8", "--rounds", "1"]
    trace = tmp_path / "trace.json"
    report = report_of(
        tmp_path, "pingpong.py", "--model", folder, "--m", "2", *load, "--trace", trace
    )
    (row,) = report["results"]
    # Seven tokens a request are decoded after the first; a step of a micro-batch has two rows.
    assert row["micro_batches"] == 2
    assert row["dispatches"] == row["batches"] > 0
    assert row["t_a"] > 0
    assert row["t_e"] > 0
    (run_events,) = events_by_run(trace).values()
    for events in run_events.values():
        check_no_overlap(events)
    check_round_trips(run_events["attention node 0"], run_events["expert node 0"])


def test_plot_without_matplotlib_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    script = "import sys; sys.path[:0] = sys.argv[1:3]; import timeline; timeline.check_plot()"
    command = [sys.executable, "-c", script, str(tmp_path), str(ROOT / "benchmarks")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert finished.returncode == 1
    assert "pip install 'megainfer[bench]'" in finished.stderr


def test_balancing_shows_four_tables_and_real_nodes() -> None:
    small = ["--experts", "16", "--tokens", "32", "--batches", "25", "--replicas", "1"]
    real = ["--processes", "--seconds", "0.5", "--looks", "2", "--slow", "4"]
    finished = run("balancing.py", *small, *real)
    assert finished.returncode == 0, finished.stderr
    shown = finished.stdout
    even = shown.partition("An even load")[2]
    assert re.search(r"│ +60 │ +0 │", even), shown
    before, after = map(float, re.findall(r"│ 1 │ ([0-9.]+) -> ([0-9.]+) │", shown)[0])
    assert after < before
    found = [float(t) for t in re.findall(r"│ +[0-9.]+ s │ +[0-9.]+ │ +([0-9.]+) │", shown)]
    assert len(found) == 2
    assert all(tokens > 0 for tokens in found)


# --- whole instances on a GPU ---------------------------------------------------------------------


@pytest.mark.slow
def test_instances_are_served_and_their_tokens_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, to see that it runs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = tmp_path / "found.json"
    names = ("colocated", "1+1, m 2")
    finished = run("gpu/instances.py", "--dry", "--only", *names, "--json", file)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(file.read_text())
    assert tuple(found) == names
    for own in found.values():
        assert own["as_before"] == 1.0
        assert own["tokens_per_second"] > 0


# --- ratio and footprint --------------------------------------------------------------------------


def test_no_ratio_is_faster_than_its_set_times_allow(tmp_path: Path) -> None:
    layers, batch, t_a, t_a_row = 2, 4, 3.0, 500.0
    options = {
        "--devices": 3,
        "--layers": layers,
        "--batch": batch,
        "--experts": 6,
        "--top-k": 2,
        "--t-a": t_a,
        "--t-a-row": t_a_row,
        "--duration": 0.4,
        "--warm-up": 0.1,
    }
    words = [str(word) for option in options.items() for word in option]
    report = report_of(tmp_path, "ratio.py", *words, "--attention", "1", "2", "--m", "1", "2")
    paces = {(row["attention"], row["micro_batches"]): row for row in report["results"]}
    assert set(paces) == {(attention, m) for attention in (0, 1, 2) for m in (1, 2)}
    for (attention, m), row in paces.items():
        a_layer = (t_a + t_a_row / 1e3 * batch / m) / 1e3
        most = (attention or 3) * batch / m / (layers * a_layer)
        assert 0 < row["tokens_per_second"] < 1.02 * most


def test_a_footprint_grows_with_peers_as_it_is_counted_on_paper(tmp_path: Path) -> None:
    """Each pair is a thread of ours, two of gloo's, and three connections."""
    sizes = ("--nodes", "1x1", "1x2", "--roads", "dist", "--paper", "1x2", "1x16")
    report = report_of(tmp_path, "footprint.py", *sizes)
    found = {(row["nodes"], row["role"]): row for row in report["results"]}
    one, two = found["1x1", "attention"], found["1x2", "attention"]
    assert two["threads"] - one["threads"] == 3
    assert two["descriptors"] - one["descriptors"] >= 3
    assert found["1x2 on paper", "attention"]["threads"] == two["threads"]
    assert found["1x16 on paper", "attention"]["threads"] == one["threads"] + 15 * 3
    assert two["meeting"] > 0


@pytest.mark.slow
def test_a_layer_between_hosts_is_a_part_of_a_token(tmp_path: Path) -> None:
    may_make_hosts()
    layouts = ("shm", "across")
    options = ("--layouts", *layouts, "--tokens", "16", "--rounds", "1")
    report = report_of(tmp_path, "host_layers.py", *options)
    assert tuple(row["layout"] for row in report["results"]) == layouts
    for row in report["results"]:
        assert 0 < row["layer_us"] == pytest.approx(row["token_ms"] * 1e3 / 8)
