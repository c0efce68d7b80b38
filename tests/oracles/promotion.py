"""diffusers in float64."""

import contextlib
from unittest import mock

import torch


@contextlib.contextmanager
def float32_means_float64():
    """For diffusers' norms, sinusoid, rotary angles and noise levels, float32 whatever the weights and inputs are."""
    double = mock.patch.object(torch.Tensor, "float", torch.Tensor.double)
    with mock.patch.object(torch, "float32", torch.float64), double:
        yield
