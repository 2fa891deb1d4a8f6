"""What lies between a gated network's products, interpreted, against the reference."""

import pytest
import torch

from megainfer.compute.gpu.kernels.activations import activate
from megainfer.compute.reference.kernels.experts import inner
from megainfer.device import HOST
from megainfer.models.spec import SILU, Activation, ActivationSpec

pytestmark = pytest.mark.filterwarnings("ignore:overflow")  # numpy's, of an e^90 that is inf

SPECS = [
    SILU,
    ActivationSpec(Activation.GELU),
    ActivationSpec(Activation.GELU_TANH),
    ActivationSpec(limit=1.5, alpha=1.702, up_offset=1.0),  # gpt-oss
    ActivationSpec(Activation.GELU, limit=0.5),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(0, 16), (1, 1), (3, 40), (2, 1500)])
def test_it_equals_the_reference(rows, size, spec):
    gate_up = 3 * torch.randn(rows, 2 * size)
    gate_up[:1, :1] = -90.0  # e^90 is no float32
    torch.testing.assert_close(
        activate(HOST, gate_up, spec), inner(*gate_up.chunk(2, -1), spec), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bfloat16_is_rounded_once(spec):
    gate_up = (3 * torch.randn(5, 2 * 24)).bfloat16()
    wide = inner(*gate_up.float().chunk(2, -1), spec)
    activated = activate(HOST, gate_up, spec)
    assert activated.dtype is torch.bfloat16
    torch.testing.assert_close(activated.float(), wide, rtol=2**-8, atol=1e-6)


def test_a_limit_hides_no_nan():
    gate_up = torch.tensor([[torch.nan, 1.0, 1.0, torch.nan]])
    activated = activate(HOST, gate_up, ActivationSpec(limit=2.0))
    assert activated.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_switched_and_multiplied(dtype):
    gate_up, switch = torch.randn(4, 2 * 7).to(dtype), torch.randn(4, 1).to(dtype)
    activated = activate(HOST, gate_up, SILU, switch, 0.25)
    expected = inner(*gate_up.float().chunk(2, -1), SILU) * 0.25 * switch.float().sigmoid()
    torch.testing.assert_close(activated.float(), expected.to(dtype).float(), rtol=2**-8, atol=1e-6)
