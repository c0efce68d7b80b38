import math

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import mlp
from tests.impostors import impostor

numbers = st.floats(-8, 8)
EXACT = dict(rel_tol=0, abs_tol=1e-14)  # float64, numbers up to 8


def gelu(x: float) -> float:
    return mlp.gelu(torch.tensor(x, dtype=torch.float64)).item()


# --- gelu


@pytest.mark.verifies("mlp.gelu", by="point")
def test_gelu_of_two_and_of_minus_one():
    """2 Phi(2) = 1.9544997361 (the tanh form gives 1.9545976, the sigmoid's 1.9356) and -Phi(-1) = -0.1586552539."""
    assert math.isclose(gelu(2.0), 1.9544997361036416, **EXACT)
    assert math.isclose(gelu(-1.0), -0.15865525393145707, **EXACT)


@pytest.mark.verifies("mlp.gelu")
@given(numbers)
def test_gelu_of_a_number_less_that_of_its_opposite_is_the_number(x):
    """Phi(x) + Phi(-x) = 1: whatever passes on one side is missing on the other, and the sum is odd."""
    assert math.isclose(gelu(x) - gelu(-x), x, **EXACT)


@pytest.mark.verifies("mlp.gelu")
@given(numbers)
def test_gelu_is_the_mean_of_what_a_unit_gaussian_gate_lets_through(x):
    """x [z < x], averaged over 20000 equally likely z: right to half a step of 1/20000, times |x|."""
    gates = math.sqrt(2) * torch.erfinv(2 * (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 - 1)
    assert math.isclose(gelu(x), x * (gates < x).double().mean().item(), rel_tol=0, abs_tol=abs(x) / 40000 + 1e-14)


@pytest.mark.verifies("mlp.gelu")
def test_numbers_as_large_as_half_precision_holds_come_through_or_vanish():
    """A gate written with exponentials overflows long before."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.tensor([6e4, 300, -300, -6e4], dtype=dtype)
        assert torch.equal(mlp.gelu(x), x.clamp_min(0))


@impostor("mlp.gelu", "the tanh approximation, PyTorch's `approximate='tanh'`")
def gelu_by_tanh(x):
    return nnf.gelu(x, approximate="tanh")


@impostor("mlp.gelu", "x sigmoid(1.702 x), the quick form of CLIP")
def gelu_by_sigmoid(x):
    return x * torch.sigmoid(1.702 * x)


@impostor("mlp.gelu", "SiLU, as in the modulation")
def gelu_is_silu(x):
    return nnf.silu(x)


@impostor("mlp.gelu", "ReLU")
def gelu_is_relu(x):
    return x.relu()


@impostor("mlp.gelu", "erf of x, not of x over the root of two")
def gelu_with_erf_of_x(x):
    return x / 2 * (1 + torch.erf(x))


@impostor("mlp.gelu", "the density for the probability")
def gelu_with_the_density(x):
    return x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


@impostor("mlp.gelu", "x e^u / (1 + e^u) for the gate: e^u overflows, and inf / inf is no number")
def gelu_with_an_overflowing_gate(x):
    e = torch.exp(1.702 * x)
    return x * e / (1 + e)


# --- edges


def test_no_number_at_all_goes_through():
    assert mlp.gelu(torch.zeros(0, 3)).shape == (0, 3)
