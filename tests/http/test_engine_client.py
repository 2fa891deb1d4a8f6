"""The engine client against attention nodes that play scripts, over real ZeroMQ sockets."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator

import pytest
import zmq
import zmq.asyncio

from megainfer.attention_node.token_messages import token_messages
from megainfer.errors import MegaInferError, NodeDied, Overloaded, RequestError
from megainfer.frontend.assignments import PIECE, PIECE_TOKENS
from megainfer.frontend.condition import Condition, Phase
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.node_socket import new_endpoint
from megainfer.frontend.request_limits import MAX_PROMPT_SCORES
from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.frontend.text_stream import TextStream, unfold
from megainfer.messages.message import Role, encode
from megainfer.messages.requests import (
    Abort,
    FinishReason,
    NodeReady,
    RequestFailed,
    Reset,
    Submit,
    TokenEvent,
    TokenLogprobs,
    Tokens,
)
from megainfer.messages.to_child import NodeDown
from megainfer.sampling import SamplingParams
from megainfer.text.tokenizer import Tokenizer
from megainfer.text.tokenizers.fast import FastBackend
from megainfer.topology import Membership, contiguous_placement
from tests.support.callbacks import watched_callbacks
from tests.support.engine_talk import collect, dealer, hear, run
from tests.support.scripted_server import (
    CONTEXT,
    WAIT_SECONDS,
    MockNode,
    byte_level_backend,
    endless,
    engine_with,
    silent,
    speaking,
)

PARAMS = SamplingParams(max_tokens=8)


# --- a request's life -----------------------------------------------------------------------------


def test_a_long_prompts_scores_hold_nobody_up() -> None:
    length = MAX_PROMPT_SCORES // 21
    row = TokenLogprobs({token: -float(token) for token in range(21)}, 1)
    event = TokenEvent("r", [4], FinishReason.LENGTH, prompt_logprobs=[row] * (length - 1))
    parts = [part for message in token_messages(0, [event]) for part in message.events]

    async def work() -> None:
        async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
            for part in parts:
                await asyncio.sleep(0)  # what the node does is on this loop too
                yield part

        async with engine_with(script, context=2 * length) as (engine, _):
            params = SamplingParams(max_tokens=1, prompt_logprobs=20)
            with watched_callbacks(threading.get_ident()) as callbacks:
                callbacks.label = "scores"
                (event,) = await collect(engine.generate("r", [1] * length, params))
        assert event.token_ids == [4]
        assert [len(score.values) for score in event.prompt_logprobs or ()] == [21] * (length - 1)
        assert callbacks.longest[0] < 0.1, callbacks.longest

    run(work())


def test_parts_of_scores_that_a_lost_node_has_told_do_not_count_twice() -> None:
    def rows(*tokens: int) -> list[TokenLogprobs]:
        return [TokenLogprobs({token: -1.0}, 1) for token in tokens]

    async def work() -> None:
        async def script(submit: Submit) -> AsyncIterator[TokenEvent]:
            yield TokenEvent(submit.request_id, [], prompt_logprobs=rows(1))
            if len(told) > 1:
                last = FinishReason.LENGTH
                yield TokenEvent(submit.request_id, [4], last, prompt_logprobs=rows(2))
            told.append(submit)

        told: list[Submit] = []
        async with engine_with(script, script) as (engine, _):
            params = SamplingParams(max_tokens=1, prompt_logprobs=0)
            stream = engine.generate("r", [1, 2, 3], params)
            while not told:
                await asyncio.sleep(0.01)
            told.append(told[0])
            at = engine._requests["r"].at
            assert at is not None
            engine.lose(NodeDown(Role.ATTENTION, at.node, "killed"))
            (event,) = await collect(stream)
        assert event.prompt_logprobs == rows(1, 2)

    run(work())


def test_tokens_come_in_order_and_the_submission_says_everything() -> None:
    async def work() -> None:
        async with engine_with(speaking(4, 5, 6, cached=2)) as (engine, (node,)):
            params = SamplingParams(
                temperature=1, top_p=0.5, top_k=7, seed=-3, max_tokens=5, stop_token_ids=(9,)
            )
            events = await collect(engine.generate("r", [1, 2, 3], params, (4, 9)))
            assert [event.token_ids for event in events] == [[4], [5], [6]]
            assert [event.finish_reason for event in events] == [None, None, FinishReason.STOP]
            assert events[0].cached_tokens == 2
            assert node.expect(Submit) == Submit(
                request_id="r",
                prompt=[1, 2, 3],
                temperature=1.0,
                top_p=0.5,
                top_k=7,
                seed=-3,
                max_tokens=5,
                stop_token_ids=[4, 9],
            )
            assert engine.outstanding == 0

    run(work())


def test_left_out_values_are_filled_in() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, (node,)):
            params = SamplingParams(max_tokens=None, ignore_eos=True)
            engine.submit([SequenceRequest(f"{i}", [1] * 6, params, (3,)) for i in range(2)])
            first, second = await hear(node, Submit), await hear(node, Submit)
            assert first.max_tokens == CONTEXT - 6
            assert first.stop_token_ids == []
            assert first.seed != second.seed

    run(work())


def test_requests_go_to_members_that_are_ready() -> None:
    async def work() -> None:
        async with engine_with(endless, endless, endless) as (engine, nodes):
            placement = contiguous_placement(2, 1, [0])
            engine.enter(Membership(2, (0, 2), (0,), placement))
            streams = [engine.generate(f"{i}", [i + 1] * 4, PARAMS) for i in range(4)]
            assert engine.condition == Condition(Phase.HEALTHY)
            for node, count in zip(nodes, (2, 0, 2), strict=True):
                for _ in range(count):
                    await hear(node, Submit)
            engine.enter(Membership(3, (0, 3), (0,), placement))
            # What a node has that isn't a member any more goes on where it can.
            assert [(await hear(nodes[2], Abort)).request_id for _ in range(2)] == ["1", "3"]
            assert [(await hear(nodes[0], Submit)).request_id for _ in range(2)] == ["1", "3"]
            text = "attention node 3 is not ready yet"
            assert engine.condition == Condition(Phase.DEGRADED, text, text)
            streams.append(engine.generate("early", [1], PARAMS))
            assert (await hear(nodes[0], Submit)).request_id == "early"
            nodes.append(MockNode(engine.endpoint, 3, silent).start())
            while engine.condition.phase is not Phase.HEALTHY:
                await asyncio.sleep(0)
            streams.append(engine.generate("late", [2], PARAMS))
            assert (await hear(nodes[3], Submit)).request_id == "late"
            for stream in streams:
                stream.close()

    run(work())


def test_requests_are_spread_over_nodes_and_their_tokens_come_to_the_right_stream() -> None:
    async def work() -> None:
        async with engine_with(speaking(1, 2), speaking(7, 8)) as (engine, nodes):
            streams = [engine.generate(f"{i}", [i + 1] * 4, PARAMS) for i in range(4)]
            spoken = [[e.token_ids[0] for e in await collect(stream)] for stream in streams]
            assert sorted(spoken) == [[1, 2], [1, 2], [7, 8], [7, 8]]
            assert [node.heard.qsize() for node in nodes] == [2, 2]

    run(work())


def test_a_stream_of_several_sequences_ends_after_the_last() -> None:
    async def work() -> None:
        async with engine_with(speaking(1, 2)) as (engine, _):
            sequences = [SequenceRequest(f"{i}", [1], PARAMS) for i in range(3)]
            events = await collect(engine.submit(sequences))
            assert sorted((e.request_id, e.token_ids[0]) for e in events) == [
                (f"{i}", token) for i in range(3) for token in (1, 2)
            ]

    run(work())


def many(count: int) -> list[SequenceRequest]:
    return [SequenceRequest(f"{i}", [1, i % 900], PARAMS) for i in range(count)]


def test_very_many_are_sent_off_a_piece_at_a_time_and_others_between_them() -> None:
    async def work() -> None:
        async with engine_with(silent, max_outstanding=1000) as (engine, (node,)):
            with engine.submit(many(2 * PIECE + 1)), engine.generate("late", [1], PARAMS):
                heard = [(await hear(node, Submit)).request_id for _ in range(2 * PIECE + 2)]
                numbers = [f"{i}" for i in range(2 * PIECE + 1)]
                assert heard == [*numbers[:PIECE], "late", *numbers[PIECE:]]

    run(work())


def test_long_prompts_make_short_pieces() -> None:
    async def work() -> None:
        length = PIECE_TOKENS // 2
        async with engine_with(silent, context=2 * length) as (engine, (node,)):
            several = [SequenceRequest(f"{i}", [i] * length, PARAMS) for i in range(3)]
            shared = [1] * length
            family = [SequenceRequest(f"n{i}", shared, PARAMS) for i in range(4)]
            with engine.submit(several), engine.generate("late", [1], PARAMS):
                heard = [(await hear(node, Submit)).request_id for _ in range(4)]
                assert heard == ["0", "1", "late", "2"]
            with engine.submit(family), engine.generate("last", [1], PARAMS):  # of one prompt
                heard = [(await hear(node, Submit)).request_id for _ in range(5)]
                assert heard == ["n0", "n1", "n2", "n3", "last"]

    run(work())


def test_what_is_closed_before_its_piece_was_sent_off_never_is() -> None:
    async def work() -> None:
        async with engine_with(silent, max_outstanding=1000) as (engine, (node,)):
            engine.submit(many(3 * PIECE)).close()
            assert engine.outstanding == 0
            await asyncio.sleep(0)
            with engine.generate("after", [1], PARAMS):
                while (await hear(node, Abort)).request_id != f"{PIECE - 1}":
                    pass
                assert (await hear(node, Submit)).request_id == "after"

    run(work())


def test_a_node_that_is_lost_between_two_pieces_loses_nobody() -> None:
    async def work() -> None:
        async with engine_with(silent, speaking(7), max_outstanding=1000) as (engine, _):
            stream = engine.submit(many(3 * PIECE))
            engine.lose(NodeDown(Role.ATTENTION, 0, "killed"))
            events = await collect(stream)
            assert sorted(int(event.request_id) for event in events) == list(range(3 * PIECE))

    run(work())


def test_unfolding_gives_each_its_seed_and_wraps() -> None:
    request = SequenceRequest("r", [1], SamplingParams(n=3, seed=2**63 - 2))
    assert [s.request_id for s in unfold(request)] == ["r-0", "r-1", "r-2"]
    assert [s.seed for s in unfold(request)] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert all(s.params is request.params for s in unfold(request)), "nothing is checked again"


# --- aborts ---------------------------------------------------------------------------------------


def test_closing_a_stream_early_puts_an_abort_on_the_wire() -> None:
    async def work() -> None:
        async with engine_with(endless(1)) as (engine, (node,)):
            with engine.generate("r", [1], PARAMS) as stream:
                await anext(stream)
            assert engine.outstanding == 0
            assert await hear(node, Abort) == Abort("r")

    run(work())


def test_a_cancelled_reader_aborts_too() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, (node,)):
            reader = asyncio.create_task(collect(engine.generate("r", [1], PARAMS)))
            await hear(node, Submit)
            reader.cancel()
            assert await hear(node, Abort) == Abort("r")

    run(work())


def test_an_abort_from_elsewhere_ends_the_stream() -> None:
    async def work() -> None:
        async with engine_with(endless(1)) as (engine, (node,)):
            stream = engine.generate("r", [1], PARAMS)
            assert (await anext(stream)).token_ids == [1]
            engine.abort("r")
            engine.abort("r")
            engine.abort("nobody")
            assert [e.finish_reason for e in await collect(stream)] == [FinishReason.ABORT]
            assert await hear(node, Abort) == Abort("r")
            engine.reset_prefix_cache()
            assert await asyncio.to_thread(node.heard.get, True, WAIT_SECONDS) == Reset()

    run(work())


def test_a_finished_stream_aborts_nothing_and_late_tokens_are_ignored() -> None:
    async def work() -> None:
        async with engine_with(speaking(1)) as (engine, (node,)):
            await collect(engine.generate("r", [1], PARAMS))
            await node.say(Tokens(node=0, events=[TokenEvent("r", [5]), TokenEvent("x", [5])]))
            await node.say(RequestFailed(node=0, request_id="r", message="late"))
            assert len(await collect(engine.generate("s", [1], PARAMS))) == 1
            heard = [node.heard.get_nowait() for _ in range(node.heard.qsize())]
            assert [type(message) for message in heard] == [Submit, Submit]

    run(work())


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], PARAMS, "the prompt is empty"),
        ([1] * CONTEXT, PARAMS, "256 tokens. However, your prompt has 256 tokens"),
        ([1] * 250, PARAMS, r"requested 258 tokens \(250 in the prompt, 8 in the completion\)"),
        ([1, 1000], PARAMS, "prompt must hold token ids from 0 to 999, but holds 1000"),
        ([1, -1], PARAMS, "but holds -1"),
        ([1, True], PARAMS, "but holds True"),
        ([1, "x"], PARAMS, "but holds 'x'"),
        ([1], SamplingParams(stop_token_ids=(1234,)), "stop_token_ids must hold .* 1234"),
    ],
)
def test_impossible_requests_are_refused_with_the_numbers(
    prompt: list[int], params: SamplingParams, message: str
) -> None:
    async def work() -> None:
        async with engine_with(speaking(1)) as (engine, (node,)):
            with pytest.raises(RequestError, match=message):
                engine.generate("r", prompt, params)
            assert len(await collect(engine.generate("good", [1] * 248, PARAMS))) == 1
            assert node.expect(Submit).request_id == "good"

    run(work())


def test_one_bad_sequence_keeps_all_of_its_request_out() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, (node,)):
            with pytest.raises(RequestError):
                engine.submit([SequenceRequest("a", [1], PARAMS), SequenceRequest("b", [], PARAMS)])
            with pytest.raises(RequestError, match="already in use"):
                engine.submit([SequenceRequest("a", [1], PARAMS)] * 2)
            assert (engine.outstanding, node.heard.qsize()) == (0, 0)

    run(work())


def test_what_can_not_be_put_on_the_wire_leaves_nothing_behind() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, (node,)):
            broken = ((2**70,),)
            good = SequenceRequest("good", [1], PARAMS)
            with pytest.raises(OverflowError):
                engine.submit([good, SequenceRequest("bad", [1], PARAMS, bad_words=broken)])
            assert engine.outstanding == 0
            assert await hear(node, Abort) == Abort("good")

    run(work())


def test_more_than_the_bound_is_overload_until_something_ends() -> None:
    async def work() -> None:
        async with engine_with(endless(1), max_outstanding=2) as (engine, _):
            first = engine.generate("a", [1], PARAMS)
            engine.generate("b", [1], PARAMS)
            with pytest.raises(Overloaded, match="2 of 2 are taken in all, and 1 more"):
                engine.generate("c", [1], PARAMS)
            first.close()
            engine.generate("c", [1], PARAMS)

    run(work())


# --- failures -------------------------------------------------------------------------------------


def test_a_request_that_fails_on_its_node_says_whose_fault_it_was() -> None:
    async def failing(submit: Submit) -> AsyncIterator[RequestFailed]:
        client_error = submit.request_id == "client"
        yield RequestFailed(
            node=0, request_id=submit.request_id, message="no blocks", client_error=client_error
        )

    async def work() -> None:
        async with engine_with(failing) as (engine, _):
            for name, kind in (("client", RequestError), ("node", MegaInferError)):
                with pytest.raises(kind, match="no blocks") as caught:
                    await collect(engine.generate(name, [1], PARAMS))
                assert type(caught.value) is kind
            assert (engine.outstanding, engine.state()) == (0, None)

    run(work())


def test_its_end_ends_every_request_after_the_tokens_that_came() -> None:
    async def work() -> None:
        async with engine_with(endless(1), endless(2)) as (engine, _):
            streams = [engine.generate(f"{i}", [1], PARAMS) for i in range(2)]
            assert [(await anext(stream)).token_ids for stream in streams] == [[1], [2]]
            engine.fail("the supervisor has died")
            for stream in streams:
                with pytest.raises(NodeDied, match="the supervisor has died"):
                    await anext(stream)
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            assert engine.state() == "the supervisor has died"
            with pytest.raises(NodeDied, match="the supervisor has died"):
                engine.generate("new", [1], PARAMS)

    run(work())


def test_what_was_told_from_outside_is_no_failure_of_the_client() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, _):
            watching = asyncio.create_task(engine.failure())
            engine.fail("the supervisor has died")
            await engine.close()
            assert not watching.done()
            watching.cancel()

    run(work())


def test_a_client_that_can_not_receive_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, (node,)):
            stream = engine.generate("r", [1], PARAMS)
            monkeypatch.setattr(engine, "_on_message", lambda *_: 1 / 0)
            await node.say(Tokens(node=0, events=[]))
            with pytest.raises(NodeDied, match="can't receive tokens any more: ZeroDivisionError"):
                await anext(stream)
            assert "ZeroDivisionError" in await engine.failure()

    run(work())


def test_closing_the_client_ends_what_still_runs() -> None:
    async def work() -> None:
        async with engine_with(silent) as (engine, _):
            stream = engine.generate("r", [1], PARAMS)
            await engine.close()
            with pytest.raises(NodeDied, match="closed"):
                await anext(stream)

    run(work())


# --- start ----------------------------------------------------------------------------------------


def test_start_names_the_nodes_that_did_not_come() -> None:
    async def work() -> None:
        engine = EngineClient(new_endpoint(), 3, 10)
        context = zmq.asyncio.Context()
        socket = dealer(context, engine.endpoint, node=1)
        await socket.send(encode(NodeReady(node=1, max_model_len=8, max_num_seqs=1)))
        with pytest.raises(NodeDied, match=r"attention nodes 0, 2 are not ready yet after 0\.5 s"):
            await engine.start(0.5)
        with pytest.raises(Overloaded, match="not ready yet; try again"):
            engine.generate("r", [1], PARAMS)
        context.destroy(linger=0)
        await engine.close()

    run(work())


def test_start_ends_when_a_node_dies_meanwhile() -> None:
    async def work() -> None:
        engine = EngineClient(new_endpoint(), 1, 10)
        engine.bind()
        starting = asyncio.create_task(engine.start(60))
        await asyncio.sleep(0)
        engine.fail("attention node 0 could not load")
        with pytest.raises(NodeDied, match="could not load"):
            await starting
        await engine.close()

    run(work())


def test_strangers_are_ignored() -> None:
    async def work() -> None:
        async with engine_with(speaking(1)) as (engine, _):
            context = zmq.asyncio.Context()
            for payload in (encode(Tokens(node=0, events=[])), b"\x80"):
                stranger = dealer(context, engine.endpoint, node=5)
                await stranger.send(payload)
            assert len(await collect(engine.generate("r", [1], PARAMS))) == 1
            assert engine.condition == Condition(Phase.HEALTHY)
            context.destroy(linger=0)

    run(work())


def test_the_filter_for_users_works_here() -> None:
    """The endpoint has no file permissions, so this is what keeps other users of the host out."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        heard = []
        for uid in (os.getuid() + 1, os.getuid()):
            router.setsockopt(zmq.IPC_FILTER_UID, uid)
            router.bind(endpoint := new_endpoint())
            with context.socket(zmq.DEALER) as client:
                client.setsockopt(zmq.LINGER, 0)
                client.connect(endpoint)
                client.send(b"hello")
                heard.append(router.poll(300))
            router.unbind(endpoint)
        assert heard == [0, zmq.POLLIN]


# --- text -----------------------------------------------------------------------------------------


def test_text_ends_at_a_stop_string_and_the_node_hears_of_it() -> None:
    tokenizer = Tokenizer(FastBackend(byte_level_backend()), {})
    ids = tokenizer.encode("The quick brown fox")

    async def talk(submit: Submit) -> AsyncIterator[TokenEvent]:
        yield TokenEvent(submit.request_id, ids)

    async def work() -> None:
        async with engine_with(talk) as (engine, (node,)):
            params = SamplingParams(max_tokens=50, stop=("ck br",))
            requests = [SequenceRequest("r", [1], params)]
            with TextStream.open(engine, tokenizer, requests) as stream:
                (delta,) = [delta async for delta in stream]
            assert (delta.text, delta.stop_reason) == ("The qui", "ck br")
            assert delta.finish_reason is FinishReason.STOP
            assert delta.token_ids == ids[: len(delta.token_ids)]
            assert "ck br" in tokenizer.decode(delta.token_ids)
            assert "ck br" not in tokenizer.decode(delta.token_ids[:-1])
            assert await hear(node, Abort) == Abort("r")

    run(work())


def test_the_token_that_stops_is_counted_but_is_no_text() -> None:
    tokenizer = Tokenizer(FastBackend(byte_level_backend()), {})
    *spoken, last = tokenizer.encode("Hello world")

    async def work() -> None:
        async with engine_with(speaking(*spoken, last)) as (engine, _):
            params = SamplingParams(stop_token_ids=(last,))
            requests = [SequenceRequest("r", [1], params)]
            with TextStream.open(engine, tokenizer, requests) as stream:
                deltas = [delta async for delta in stream]
            assert "".join(delta.text for delta in deltas) == tokenizer.decode(spoken)
            assert [t for delta in deltas for t in delta.token_ids] == [*spoken, last]
            assert deltas[-1].stop_reason == last

    run(work())


def test_without_a_tokenizer_text_is_empty_and_stop_strings_are_refused() -> None:
    async def work() -> None:
        async with engine_with(speaking(5, 6)) as (engine, _):
            requests = [SequenceRequest("r", [1], PARAMS)]
            with TextStream.open(engine, None, requests) as stream:
                assert [(d.text, d.token_ids) async for d in stream] == [("", [5]), ("", [6])]
            stopping = SequenceRequest("s", [1], SamplingParams(stop=("x",)))
            with pytest.raises(RequestError, match="stop strings need the model's tokenizer"):
                TextStream.open(engine, None, [stopping])

    run(work())
