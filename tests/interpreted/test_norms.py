"""Norms of rows, interpreted, against the reference."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import layer_norm

from megainfer.compute.gpu.kernels.norms import norm_rows
from megainfer.compute.reference.kernels import rms_norm
from megainfer.device import HOST
from megainfer.models.spec import NormKind, NormSpec

RMS = NormSpec(eps=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "size"), [(0, 64), (1, 1), (3, 48), (2, 257)])
def test_rms_norm_equals_the_reference(rows, size, dtype):
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    normed = norm_rows(HOST, x, weight, RMS)
    torch.testing.assert_close(normed, rms_norm(x, weight, RMS.eps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("has_bias", [False, True])
def test_layer_norm_equals_torchs(has_bias):
    spec = replace(RMS, kind=NormKind.LAYER)
    x, weight, bias = torch.randn(4, 33), torch.randn(33), torch.randn(33) if has_bias else None
    normed = norm_rows(HOST, x, weight, spec, bias)
    torch.testing.assert_close(normed, layer_norm(x, (33,), weight, bias, spec.eps))
