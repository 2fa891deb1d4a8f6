"""The comparison with other engines, run as a user does; programs stand in for the other engines.

What they answer is made up, so the tables can be computed by hand.
"""

import json
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.instruments import ROOT, run

BENCHMARKS = ROOT / "benchmarks"
SECONDS_TO_FIRST = 0.5
SECONDS_EACH = 0.25

# Answers as `exchange.py` says; writes the time at each answer, and as long as it isn't stopped.
TRANSFORMERS = """
import json, sys, threading, time
file = open({ticks!r}, "w", buffering=1)
def write():
    file.write(str(time.monotonic()) + "\\n")
def tick():
    while True:
        write()
        time.sleep(0.002)
threading.Thread(target=tick, daemon=True).start()
print(json.dumps(dict(ready=True)), flush=True)
for line in sys.stdin:
    write()
    tokens = json.loads(line)["max_tokens"]
    print(json.dumps(dict(seconds=SECONDS_TO_FIRST + SECONDS_EACH * (tokens - 1))), flush=True)
""".replace("SECONDS_TO_FIRST", str(SECONDS_TO_FIRST)).replace("SECONDS_EACH", str(SECONDS_EACH))

# A batched-bench that takes a moment, and writes from when to when it had the machine.
BENCH = """
import json, sys, time
began = time.monotonic()
time.sleep(0.1)
option = dict(zip(sys.argv[1::2], sys.argv[2::2]))
sequences, decoded = int(option["-npl"].split(",")[0]), int(option["-ntg"])
for _ in range(2):
    print(json.dumps(dict(t_pp=0.25 * sequences, t_tg=0.125 * decoded)))
with open({windows!r}, "a") as file:
    print(began, time.monotonic(), file=file)
"""


def stand_in(path: Path, script: str) -> None:
    """An executable that runs this Python whatever its first arguments are."""
    path.parent.mkdir(parents=True)
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class PeersFolder:
    """As `prepare_peers.py` would leave it, with stand-ins for llama.cpp and transformers."""

    def __init__(self, home: Path, transformers: str) -> None:
        self.home, self.ticks, self.windows = home, home / "ticks", home / "windows"
        self.model = write_checkpoint("qwen3_moe", "gqa", home / "tiny")
        script = transformers.format(ticks=str(self.ticks))
        stand_in(home / "transformers" / "venv" / "bin" / "python", script)
        bench = BENCH.format(windows=str(self.windows))
        stand_in(home / "llamacpp" / "build" / "bin" / "llama-batched-bench", bench)
        for peer in ("transformers", "llamacpp"):
            (home / peer / "ready.txt").write_text("")
        (home / "models").mkdir()
        (home / "models" / "tiny-text-f32.gguf").write_text("")

    def report(self, *options: str) -> dict[str, Any]:
        load: list[str | Path] = [
            "--concurrency",
            "2",
            "--prompt-tokens",
            "8",
            "--output-tokens",
            "5",
        ]
        peers: list[str | Path] = ["--peers", self.home, "--peer-names", "transformers", "llamacpp"]
        common: list[str | Path] = ["--model", self.model, "--precision", "f32", "--limit", "60"]
        out = self.home / "out.json"
        finished = run("throughput.py", *load, *peers, *common, *options, "--json", out)
        assert finished.returncode == 0, finished.stderr
        document: dict[str, Any] = json.loads(out.read_text())
        return document


def by_engine(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["engine"]: row for row in report["results"]}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeersFolder, dict[str, Any]]:
    folder = PeersFolder(tmp_path_factory.mktemp("peers"), TRANSFORMERS)
    return folder, folder.report("--rounds", "2", "--micro-batches", "1", "2")


def test_rates_of_every_engine(compared: tuple[PeersFolder, dict[str, Any]]) -> None:
    rows = by_engine(compared[1])
    assert list(rows) == ["1A1E m=1", "1A1E m=2", "colocated", "transformers", "llama.cpp f32"]
    # Two requests of 8 + 5 tokens, of which 4 are decoded after the first.
    theirs = rows["transformers"]
    assert theirs["decode_per_second"] == pytest.approx(2 * 4 / (4 * SECONDS_EACH))
    assert theirs["prefill_per_second"] == pytest.approx(2 * 8 / SECONDS_TO_FIRST)
    assert theirs["tokens_per_second"] == pytest.approx(
        2 * 5 / (SECONDS_TO_FIRST + 4 * SECONDS_EACH)
    )
    assert theirs["per_gpu"] == pytest.approx(theirs["tokens_per_second"] / 2)
    assert theirs["t_a"] is None
    assert rows["llama.cpp f32"]["decode_per_second"] == pytest.approx(2 * 4 / (4 * 0.125))
    assert rows["llama.cpp f32"]["prefill_per_second"] == pytest.approx(2 * 8 / (2 * 0.25))
    assert [rows[f"1A1E m={m}"]["micro_batches"] for m in (1, 2)] == [1, 2]
    assert rows["colocated"]["t_a"] > 0
    assert rows["colocated"]["t_e"] > 0


def test_ratios_are_ours_over_the_best_peer(
    compared: tuple[PeersFolder, dict[str, Any]],
) -> None:
    rows = by_engine(compared[1])
    ratios = {ratio["rate"]: ratio for ratio in compared[1]["ratios"]}
    assert ratios["tokens_per_second"]["peer"] == "llama.cpp f32"
    for rate, ratio in ratios.items():
        ours = max(rows[name][rate] or 0 for name in rows if "1A1E" in name or name == "colocated")
        theirs = max(rows[name][rate] for name in ("transformers", "llama.cpp f32"))
        assert ratio["against"] == "same"
        assert ratio["ratio"] == pytest.approx(ours / theirs)


def test_only_the_engine_whose_turn_it_is_runs(
    compared: tuple[PeersFolder, dict[str, Any]],
) -> None:
    ticks = [float(line) for line in compared[0].ticks.read_text().split()[:-1]]
    windows = [
        tuple(map(float, line.split())) for line in compared[0].windows.read_text().splitlines()
    ]
    assert len(windows) == 1 + 2  # a warm-up and two rounds
    assert any(tick > windows[-2][1] for tick in ticks)  # it went on after it had been stopped
    for began, ended in windows:
        assert not [tick for tick in ticks if began < tick < ended]


DYING = "import sys\nprint('{{\"ready\": true}}', flush=True)\nsys.exit('the kernel is tired')"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules can be imported, as its scripts do."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])


def contest(folder: PeersFolder, rounds: int, resident: int) -> dict[str, Any]:
    """The outcome of each stand-in, in a contest without an engine of ours."""
    from checkpoints import with_tokenizer
    from peers.contest import Contest
    from peers.entrants import Work, others
    from peers.measurement import Load
    from peers.offline import OfflineEngine

    load = Load(concurrency=2, prompt_tokens=8, output_tokens=5)
    work = Work(
        folder.model,
        with_tokenizer(folder.model, folder.home / "models"),
        sequences=2,
        tokens=13,
        http=False,
    )
    entrants = list(others(work, folder.home, ["transformers", "llamacpp"], "f32"))
    start = partial(OfflineEngine, vocabulary=160, limit=60)
    outcomes = Contest(start, [load], resident).run(entrants, rounds)
    return {outcome.entrant.name: outcome for outcome in outcomes}


@pytest.mark.usefixtures("benchmarks")
def test_an_engine_that_dies_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    outcomes = contest(PeersFolder(tmp_path / "peers", DYING), rounds=1, resident=2)
    assert "the kernel is tired" in outcomes["transformers"].failure
    assert outcomes["transformers"].results == {}
    (result,) = outcomes["llama.cpp f32"].results.values()
    assert result.tokens_per_second > 0


@pytest.mark.usefixtures("benchmarks")
def test_more_engines_than_may_stay_are_started_every_round(tmp_path: Path) -> None:
    folder = PeersFolder(tmp_path / "peers", TRANSFORMERS)
    outcomes = contest(folder, rounds=2, resident=1)
    assert len(folder.windows.read_text().splitlines()) == 2 * 2  # each with its warm-up
    (result,) = outcomes["transformers"].results.values()
    assert result.decode_per_second == pytest.approx(2 * 4 / (4 * SECONDS_EACH))


@pytest.mark.slow
def test_ours_are_measured_beside_an_engine_that_dies(tmp_path: Path) -> None:
    folder = PeersFolder(tmp_path / "peers", DYING)
    rows = by_engine(folder.report("--rounds", "1", "--micro-batches", "1", "2"))
    assert [rows[f"1A1E m={m}"]["micro_batches"] for m in (1, 2)] == [1, 2]
    assert "the kernel is tired" in rows["transformers"]["failure"]
    assert rows["llama.cpp f32"]["tokens_per_second"] > 0
    assert rows["colocated"]["tokens_per_second"] > 0


@pytest.mark.slow
def test_ours_are_started_every_round_as_well(tmp_path: Path) -> None:
    folder = PeersFolder(tmp_path / "peers", TRANSFORMERS)
    rows = by_engine(folder.report("--rounds", "2", "--resident", "1"))
    assert len(folder.windows.read_text().splitlines()) == 2 * 2  # each with its warm-up
    assert rows["transformers"]["decode_per_second"] == pytest.approx(2 * 4 / (4 * SECONDS_EACH))


def test_our_server_is_measured_through_http(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("qwen3_moe", "gqa", tmp_path / "tiny")
    load = ["--concurrency", "2", "--prompt-tokens", "8", "--output-tokens", "5", "--rounds", "1"]
    out = tmp_path / "out.json"
    finished = run(
        "throughput.py",
        "--model",
        checkpoint,
        "--http",
        "--micro-batches",
        "1",
        *load,
        "--json",
        out,
    )
    assert finished.returncode == 0, finished.stderr
    rows = by_engine(json.loads(out.read_text()))
    assert list(rows) == ["1A1E m=1", "colocated"]
    for row in rows.values():
        assert "failure" not in row
        assert 0 < row["ttft"] < 1e3 * row["seconds"]
        assert row["tokens_per_second"] == pytest.approx(2 * 5 / row["seconds"])


def test_a_peer_that_is_not_prepared_says_how(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("qwen3_moe", "gqa", tmp_path / "tiny")
    options: list[str | Path] = ["--peers", tmp_path / "none", "--peer-names", "transformers"]
    finished = run("throughput.py", "--model", checkpoint, *options)
    assert finished.returncode == 1
    assert "prepare_peers.py --folder" in finished.stderr


def test_an_unknown_peer_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    finished = run("prepare_peers.py", "--folder", tmp_path / "peers", "sglang")
    assert finished.returncode == 2
    assert "vllm, llamacpp, transformers" in finished.stderr
    assert not (tmp_path / "peers").exists()
