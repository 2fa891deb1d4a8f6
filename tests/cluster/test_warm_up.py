"""Steps that nobody asked for, on a device that works late: they are run before it is sealed, they
change no answer, and stages are measured until the device has done them."""

import pytest

from megainfer.attention_node.process import load_attention
from megainfer.attention_node.profile import profile_attention
from megainfer.attention_node.warm_up import warm_up as warm_up_attention
from megainfer.colocated.model import ColocatedModel
from megainfer.config import EngineConfig
from megainfer.device import HOST
from megainfer.expert_node.process import load_experts
from megainfer.expert_node.profile import profile_experts
from megainfer.expert_node.warm_up import warm_up as warm_up_experts
from megainfer.instruments.stage_clock import StageClock
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from tests.support.checkpoints import write_checkpoint
from tests.support.fake_backend import FakeBackend, TorchWork
from tests.support.fake_device import FakeDevice


class SealedDevice(FakeDevice):
    """Remembers how much it was given before it was sealed."""

    given = sealed_at = 0

    def launch(self, *args, **options) -> None:  # type: ignore[no-untyped-def]
        self.given += 1
        super().launch(*args, **options)

    def seal(self) -> None:
        self.sealed_at = self.given


@pytest.fixture(params=[("qwen3_moe", "gqa"), ("qwen3_next", "grouped")], ids="-".join)
def plan(request, tmp_path) -> Plan:
    folder = write_checkpoint(*request.param, tmp_path)
    config = EngineConfig(
        *(str(folder), 1, 2),
        kernels="reference",
        dtype="float32",
        max_num_batched_tokens=40,
        max_num_seqs=3,
    )
    return make_plan(config, folder, read_machine())


def nothing(done: int, total: int) -> None: ...


def test_each_role_runs_its_steps_and_seals_the_device(plan):
    device = SealedDevice()
    backend = FakeBackend(device)
    with TorchWork(device):
        model, kv = load_attention(plan, backend, nothing)
        before = device.given
        warm_up_attention(model, kv, plan)
        assert device.sealed_at > before + 100
        experts = load_experts(plan, 1, backend, nothing)
        before = device.given
        warm_up_experts(experts, plan, 1, device)
        assert device.sealed_at > before + 10
        device.synchronize()


def test_colocated_steps_go_through_their_experts(plan):
    device = SealedDevice()
    backend = FakeBackend(device)
    alone = make_plan(
        EngineConfig(str(plan.folder), colocated=True, kernels="reference", dtype="float32"),
        plan.folder,
        read_machine(),
    )
    with TorchWork(device):
        model, kv = load_attention(alone, backend, nothing)
        experts = load_experts(alone, 0, backend, nothing)
        warm_up_attention(ColocatedModel(model, experts, kv, StageClock()), kv, alone)
        served = experts.counters()["expert_tokens"]
    assert device.sealed_at
    assert all(sum(layer.values()) for layer in served)


def test_the_host_needs_no_warming(plan, monkeypatch):
    monkeypatch.setattr(type(HOST), "seal", lambda device: pytest.fail("it was sealed"))
    warm_up_experts(None, plan, 0, HOST)  # type: ignore[arg-type]


def test_stages_are_measured_on_the_device(plan):
    device = FakeDevice()
    backend = FakeBackend(device)
    with TorchWork(device):
        model, kv = load_attention(plan, backend, nothing)
        points = profile_attention(model, kv, plan)
        assert not any(stream.queue for stream in device.streams), "measured before it was done"
        experts = load_experts(plan, 0, backend, nothing)
        points += profile_experts(experts, plan, 0, device)
        assert not any(stream.queue for stream in device.streams), "measured before it was done"
    assert [rows for rows, _ in points] == [*plan.profiled_rows] * 2
    assert all(seconds > 0 for _, seconds in points)
