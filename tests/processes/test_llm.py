"""The offline `LLM` when things end: hang-ups, deaths, shutdown, counters that don't come."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from megainfer import LLM, SamplingParams, local_engine
from megainfer.errors import NodeDied, RequestError
from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.messages.message import Role
from tests.support.checkpoints import write_checkpoint
from tests.support.served import pid_of
from tests.support.terminal import interpreted

MAX_LEN = 256
PARAMS = SamplingParams(temperature=0, max_tokens=MAX_LEN - 1, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def lasting(folder) -> Iterator[LLM]:
    """One for all that do it no harm."""
    with LLM(folder, micro_batches=1) as llm:
        yield llm


@pytest.fixture
def llm(folder) -> Iterator[LLM]:
    with LLM(folder, micro_batches=1, max_num_seqs=1) as llm:
        yield llm


async def hang_up(llm: LLM, name: str) -> None:
    with llm.engine.submit([SequenceRequest(name, [1], PARAMS)]) as stream:
        await anext(stream)


def test_hanging_up_ends_the_work(llm):
    """Four requests for the only place, each left after a token: most of the work isn't done."""
    for i in range(4):
        asyncio.run_coroutine_threadsafe(hang_up(llm, f"left-{i}"), llm.loop).result(60)
    assert len(llm.generate([1, 2], SamplingParams(max_tokens=3, ignore_eos=True))) == 1
    (attention,) = (c for name, c in llm.stats().items() if name.startswith("attention"))
    assert attention["generated_tokens"] < 2 * PARAMS.max_tokens
    assert attention["running"] == 0


@pytest.mark.fresh
def test_nodes_that_die_change_nothing_but_the_time(folder):
    prompts, params = [[n + 1] for n in range(6)], replace(PARAMS, logprobs=1)
    with LLM(folder, micro_batches=1) as llm:
        expected = llm.generate(prompts, params, progress=False)
        for victim in ("expert-0", "attent-0"):
            killer = threading.Thread(target=kill_when_it_generates, args=(llm, victim))
            killer.start()
            actual = llm.generate(prompts, params, progress=False)
            killer.join()
            assert [a.outputs for a in actual] == [e.outputs for e in expected]
        assert dict(llm.engine.attendance.restarts()) == {
            (Role.ATTENTION, 0): 1,
            (Role.EXPERT, 0): 1,
        }


def kill_when_it_generates(llm: LLM, victim: str) -> None:
    pid = pid_of(llm, victim)
    while not any(request.output for request in list(llm.engine._requests.values())):
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)


def test_what_does_not_come_back_in_time_is_named(folder):
    with LLM(folder, micro_batches=1, recovery_timeout=0.0) as llm:
        killer = threading.Thread(target=kill_when_it_generates, args=(llm, "attent-0"))
        killer.start()
        with pytest.raises(NodeDied, match="attention node 0 died: killed by SIGKILL and was not"):
            llm.generate([[1]] * 8, PARAMS, progress=False)
        killer.join()
        deadline = time.monotonic() + 60
        while llm.engine.state() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(llm.generate([[1]], PARAMS, progress=False)) == 1


def generated(llm: LLM) -> int:
    return sum(counters.get("generated_tokens", 0) for counters in llm.stats().values())


def test_an_invalid_prompt_keeps_the_others_from_starting(lasting):
    before = generated(lasting)
    with pytest.raises(RequestError, match="holds 160"):
        lasting.generate([[1], [160]], PARAMS, progress=False)
    with pytest.raises(RequestError, match="1 sampling_params were given for 2 prompts"):
        lasting.generate([[1], [2]], [PARAMS], progress=False)
    with pytest.raises(RequestError, match="no tokenizer"):
        lasting.generate("Hello", PARAMS, progress=False)
    assert generated(lasting) == before


@pytest.mark.fresh
def test_after_shutdown_it_says_that_it_was_shut_down(folder):
    llm = LLM(folder, micro_batches=1)
    llm.shutdown()
    for use in (lambda: llm.generate([1]), llm.stats, llm.reset_prefix_cache):
        with pytest.raises(NodeDied, match="was shut down"):
            use()
    llm.shutdown()


def test_counters_that_come_late_are_an_error_and_then_harmless(llm, monkeypatch):
    stopped = pid_of(llm, "expert-0")
    complaints = []
    llm.loop.set_exception_handler(lambda loop, context: complaints.append(context))
    with monkeypatch.context() as patch:
        patch.setattr(local_engine, "STATS_TIMEOUT_SECONDS", 0.05)
        os.kill(stopped, signal.SIGSTOP)
        try:
            with pytest.raises(NodeDied, match=r"within 0\.05 s"):
                llm.stats()
        finally:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
    assert len(llm.stats()) == 2  # told after the late ones
    assert complaints == []


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (None, None, "a prompt is a text or a list of token ids, not None"),
        ([[1], 2.5], None, "a prompt is a text or a list of token ids, not 2.5"),
        ({"prompt_ids": [1]}, None, "prompt_ids isn't served"),
        ([[1]], {"max_tokens": 3}, "sampling_params must be SamplingParams"),
    ],
)
def test_prompts_and_parameters_of_the_wrong_kind_are_named(lasting, prompts, params, message):
    with pytest.raises(RequestError, match=message):
        lasting.generate(prompts, params)


def test_log_probabilities_penalties_and_priorities_offline(lasting):
    wishes = {"temperature": 0, "ignore_eos": True, "max_tokens": 6}
    params = [
        SamplingParams(logprobs=2, prompt_logprobs=1, **wishes),
        SamplingParams(frequency_penalty=2, presence_penalty=2, **wishes),
    ]
    scored, penalised = lasting.generate([[1, 2, 3], [5]], params, progress=False, priority=[1, 0])
    first, *rest = scored.prompt_logprobs
    assert first is None
    assert [token in row for token, row in zip([2, 3], rest, strict=True)] == [True, True]
    answer = scored.outputs[0]
    assert [next(iter(row)) for row in answer.logprobs] == answer.token_ids
    assert [entry.rank for entry in answer.logprobs[0].values()] == [1, 2]
    own = [row[t].logprob for row, t in zip(answer.logprobs, answer.token_ids, strict=True)]
    assert answer.cumulative_logprob == pytest.approx(sum(own))
    assert (
        answer.logprobs[0][answer.token_ids[0]].decoded_token == f"token_id:{answer.token_ids[0]}"
    )
    assert penalised.prompt_logprobs is None
    assert len(set(penalised.outputs[0].token_ids)) == 6
    with pytest.raises(RequestError, match="1 priorities were given for 2 prompts"):
        lasting.generate([[1], [2]], priority=[1], progress=False)
    with pytest.raises(RequestError, match="priority must be between"):
        lasting.generate([[1]], priority=[2**40], progress=False)


def test_a_terminal_is_shown_how_the_start_goes_and_nothing_is_left_of_it(folder):
    script = f"from megainfer import LLM\nwith LLM({folder!r}) as llm: print('made')"
    terminal = interpreted(script)
    try:
        assert terminal.end() == 0
    finally:
        terminal.close()
    assert "loading weights" in terminal.raw
    assert [line for line in terminal.lines if line] == ["made"]
