"""M2N over a device that works late and out of order: against the reference, and mistakes that
have to be found."""

from collections.abc import Callable

import pytest
import torch

from megainfer.errors import ProtocolError
from megainfer.m2n.ipc.publisher import Publisher
from megainfer.m2n.mailbox import Arrival, Dispatch, Part, Rest
from megainfer.m2n.packing import TorchPacking
from megainfer.m2n.reference import make_parts, marked_tokens, moe
from tests.support.device_instance import (
    CAPACITY,
    HIDDEN,
    Instance,
    compute,
    dispatch,
    geometry_of,
    part_of,
    received,
    replied,
    reply,
    routings_of,
    uploaded,
)
from tests.support.happens_before import Race
from tests.support.m2n_cluster import padded


@pytest.mark.parametrize("counted", [False, True], ids=["host counts", "device counts"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_equals_the_reference(m: int, n: int, micro_batches: int, counted: bool) -> None:
    for seed in range(3):
        check_layers(Instance(geometry_of(m, n, micro_batches), seed), counted)


def check_layers(instance: Instance, counted: bool) -> None:
    """Three layers, each of which takes what the one before it gave."""
    device, n = instance.device, instance.geometry.num_expert
    for layer in range(3):
        routings = routings_of(instance, layer)
        if not layer:
            values = {k: marked_tokens(CAPACITY, HIDDEN, k[0], torch.float32) for k in routings}
            hiddens = {key: device.upload(value) for key, value in values.items()}
            device.synchronize()  # what other streams were given is there for everybody
        steps = {}
        for key, routing in routings.items():
            parts = make_parts(routing, n)
            parts = tuple(padded(part, CAPACITY) for part in parts) if counted else parts
            with device.on(instance.attention[key[0]][1]):
                steps[key] = hiddens[key], [uploaded(device, part) for part in parts]
        hiddens = instance.layer(steps)
        values = {k: moe(values[k], routing, n, instance.expert) for k, routing in routings.items()}
    device.synchronize()
    for key, expected in values.items():
        device.host_reads(hiddens[key])
        assert torch.equal(hiddens[key], expected)


def test_every_node_with_room_for_rows_replies() -> None:
    instance = Instance(geometry_of(n=3))
    parts = [part_of(2), part_of(0), Part(*(tensor[:0] for tensor in part_of(0)[:3]))]
    with instance.device.on(instance.attention[0][1]):
        parts = [uploaded(instance.device, part) for part in parts]
        hidden = instance.device.upload(torch.ones(CAPACITY, HIDDEN))
    sums = instance.layer({(0, 0): (hidden, parts)})
    sent = [port.counters()["messages_sent"] for port, _ in instance.experts]
    assert sent == [1, 1, 0]
    instance.device.synchronize()
    assert sums[0, 0].isfinite().all()


# --- one attention node and one expert node, each on its stream, the default one for the rest -----


@pytest.fixture
def pair() -> Instance:
    return Instance(geometry_of())


def test_nothing_is_seen_before_the_device_has_done_it(
    pair: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, expert = pair.attention[0][0], pair.experts[0][0]
    with monkeypatch.context() as stopped:
        stopped.setattr(pair.device, "advance", lambda: False)
        dispatch(pair)
        assert expert.receive() == []
    message = received(pair)
    with monkeypatch.context() as stopped:
        stopped.setattr(pair.device, "advance", lambda: False)
        reply(pair, message)
        assert attention.poll() == []
    assert replied(pair).expert_node == 0


Patch = pytest.MonkeyPatch


def two_layers(pair: Instance) -> None:
    for _ in range(2):
        handle, _ = dispatch(pair)
        reply(pair, received(pair))
        replied(pair)
        port, stream = pair.attention[0]
        with pair.device.on(stream):
            out = pair.device.upload(torch.zeros(CAPACITY, HIDDEN))
            port.combine(handle, out)


def messages_unseen(pair: Instance, patch: Patch) -> None:
    """The expert node's work doesn't come after what its host has seen."""
    patch.setattr(pair.hub.expert_slots[0], "saw", lambda slot: None)


def replies_unseen(pair: Instance, patch: Patch) -> None:
    patch.setattr(pair.hub.attention_slots[0], "saw", lambda slot: None)


def elsewhere(pair: Instance, patch: Patch, owner: type, name: str) -> None:
    """What this method gives to the current stream is given to another that waits for nobody."""
    method, stream = getattr(owner, name), pair.device.stream()

    def given_elsewhere(*arguments: object) -> None:
        with pair.device.on(stream):
            method(*arguments)

    patch.setattr(owner, name, given_elsewhere)


def words_elsewhere(pair: Instance, patch: Patch) -> None:
    elsewhere(pair, patch, Publisher, "_give")


def packing_elsewhere(pair: Instance, patch: Patch) -> None:
    elsewhere(pair, patch, TorchPacking, "pack")


def sums_elsewhere(pair: Instance, patch: Patch) -> None:
    elsewhere(pair, patch, TorchPacking, "add")


def test_each_piece_of_work_comes_after_what_it_needs(pair: Instance) -> None:
    two_layers(pair)


@pytest.mark.parametrize(
    ("mutation", "race"),
    [
        (messages_unseen, "experts on stream 2 reads what pack on stream 1 wrote"),
        (replies_unseen, "add on stream 1 reads what experts on stream 2 wrote"),
        (words_elsewhere, "publish on stream 3 reads what pack on stream 1 wrote"),
        (packing_elsewhere, "pack on stream 3 reads what upload on stream 1 wrote"),
        (sums_elsewhere, "add on stream 3 reads what upload on stream 1 wrote"),
    ],
)
def test_each_order_that_is_taken_away_is_reported(
    pair: Instance,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[Instance, Patch], None],
    race: str,
) -> None:
    mutation(pair, monkeypatch)
    with pytest.raises(Race, match=race):
        two_layers(pair)


def test_a_peer_that_is_dismissed_is_stored_to_no_more(
    pair: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch(pair)
    pair.attention[0][0].close()  # from another stream than it has worked in
    pair.device.synchronize()
    hasty = Instance(geometry_of())
    dispatch(hasty)
    with monkeypatch.context() as stopped:
        stopped.setattr(hasty.device, "advance", lambda: False)
        stopped.setattr(hasty.device, "synchronize", lambda: None)
        hasty.attention[0][0].close()
    with pytest.raises(Race, match="into memory that was given back"):
        hasty.device.synchronize()


def test_hidden_states_that_change_too_early_are_found(pair: Instance) -> None:
    _, hidden = dispatch(pair)
    with pair.device.on(pair.attention[0][1]):
        pair.device.launch(lambda: hidden.zero_(), [], [hidden])  # after the call, in its stream
    with pytest.raises(Race, match="next layer on stream 0 writes"):
        pair.device.launch(lambda: hidden.zero_(), [], [hidden], name="next layer")


def test_a_reply_that_does_not_come_after_its_kernels_is_found(pair: Instance) -> None:
    dispatch(pair)
    message, port = received(pair), pair.experts[0][0]
    assert isinstance(message, Dispatch)
    with pair.device.on(pair.experts[0][1]):
        compute(pair.device, message, port, 0, pair.expert)
    with pytest.raises(Race, match="publish on stream 0 reads what experts on stream 2"):
        port.reply(message)


def test_a_reply_slot_that_may_still_be_read_is_found(pair: Instance) -> None:
    """Its sums are added in a stream that the next dispatch doesn't come after."""
    handle, _ = dispatch(pair)
    reply(pair, received(pair))
    replied(pair)
    out = pair.device.upload(torch.zeros(CAPACITY, HIDDEN))
    pair.attention[0][0].combine(handle, out)
    dispatch(pair)
    with pytest.raises(Race, match="experts on stream 2 writes what add on stream 0 reads"):
        reply(pair, received(pair))


def test_sums_that_are_read_too_early_are_found(pair: Instance) -> None:
    handle, _ = dispatch(pair)
    reply(pair, received(pair))
    replied(pair)
    done = pair.device.event()
    with pair.device.on(pair.attention[0][1]):
        out = pair.device.upload(torch.zeros(CAPACITY, HIDDEN))
        pair.attention[0][0].combine(handle, out)
        done.record()
    with pytest.raises(Race, match="the host reads what add on stream 1 wrote"):
        pair.device.host_reads(out)
    done.synchronize()
    pair.device.host_reads(out)


def test_an_error_arrives_and_rest_too(pair: Instance) -> None:
    handle, _ = dispatch(pair)
    message, (port, stream) = received(pair), pair.experts[0]
    assert isinstance(message, Dispatch)
    with pair.device.on(stream):
        port.reply_error(message, "out of order")
    assert replied(pair) == Arrival(0, 0, 0, "out of order")
    with pytest.raises(ProtocolError, match=r"\[0\] have failed"):
        pair.attention[0][0].combine(handle, torch.zeros(CAPACITY, HIDDEN))
    pair.attention[0][0].rest(0)
    assert received(pair) == Rest(0, 0)


def test_what_is_published_after_its_epoch_is_dropped(
    pair: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, expert = pair.attention[0][0], pair.experts[0][0]
    with monkeypatch.context() as stopped:
        stopped.setattr(pair.device, "advance", lambda: False)
        dispatch(pair)
        attention.set_epoch(1)
        expert.set_epoch(1)
        dispatch(pair)
    message = received(pair)
    assert isinstance(message, Dispatch)
    assert message.sequence == 2  # it has superseded the other
    reply(pair, message)
    assert replied(pair).expert_node == 0

    dispatch(pair)
    reply(pair, received(pair))
    attention.set_epoch(2)
    pair.device.synchronize()
    assert attention.poll() == []
    assert attention.counters()["dropped"] == 1


def test_a_message_of_a_newer_epoch_waits_for_it(pair: Instance) -> None:
    pair.attention[0][0].set_epoch(1)
    dispatch(pair)
    pair.device.synchronize()
    assert pair.experts[0][0].receive() == []
    pair.experts[0][0].set_epoch(1)
    assert isinstance(received(pair), Dispatch)


def test_a_lost_peer_is_named(pair: Instance) -> None:
    pair.experts[0][0].close()
    assert pair.attention[0][0].lost_peers() == {0}
