"""Our finite scalar quantization against that of vector-quantize-pytorch, which NVIDIA's was adapted from."""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ

from cosmos_ref.equations.quantization import fsq_bound, fsq_code, fsq_index, fsq_quantize
from cosmos_ref.tokenizer.discrete import FSQ_MARGIN
from tests.strategies import normal, seeds

pytestmark = pytest.mark.oracle

COSMOS = (8, 8, 8, 5, 5, 5)
# It refuses 2 levels: nearly everything would get the upper one.
vocabularies = st.just(COSMOS) | st.lists(st.integers(3, 9), min_size=1, max_size=4).map(tuple)


@contextmanager
def new_tensors_in(dtype):
    """It reckons its half widths in the default type, whatever the type of its input."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def theirs(z, levels):
    """Codes and numbers of the oracle, gradient of a random projection of the codes."""
    z = z.clone().requires_grad_()
    with new_tensors_in(z.dtype):
        codes, indices = FSQ(list(levels))(z[None])
        codes.backward(direction(z)[None])
    return codes.detach()[0], indices[0], z.grad


def ours(z, levels):
    z = z.clone().requires_grad_()
    codes = fsq_quantize(z, levels, FSQ_MARGIN)
    codes.backward(direction(z))
    return codes.detach(), fsq_index(codes.detach(), levels), z.grad


def direction(z):
    return normal(9, *z.shape).to(z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@given(levels=vocabularies, seed=seeds)
def test_codes_numbers_and_gradients_are_those_of_the_oracle(dtype, levels, seed):
    z = (2 * normal(seed, 500, len(levels))).to(dtype)
    bounded = fsq_bound(z.double(), levels, FSQ_MARGIN)
    # Where the two add up in another order they may differ by rounding, and on the edge of two levels by a level.
    rounding = 8 * torch.finfo(dtype).eps
    clear = ((bounded - bounded.floor() - 0.5).abs() > 8 * rounding).all(dim=-1)
    assert clear.float().mean() > 0.98
    (our_codes, our_indices, our_gradient), (codes, indices, gradient) = ours(z, levels), theirs(z, levels)
    assert torch.equal(our_codes[clear], codes[clear])
    assert torch.equal(our_indices[clear], indices[clear].long())
    torch.testing.assert_close(our_gradient, gradient, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_all_64000_codes_of_cosmos_are_those_of_the_oracle(dtype):
    with new_tensors_in(dtype):
        oracle = FSQ(list(COSMOS))
    indices = torch.arange(oracle.codebook_size)
    codes = fsq_code(indices, COSMOS, dtype)
    assert torch.equal(codes, oracle.implicit_codebook)
    assert torch.equal(fsq_index(oracle.implicit_codebook, COSMOS), indices)
    assert torch.equal(oracle.codes_to_indices(codes).long(), indices)


@given(levels=vocabularies)
def test_numbers_and_codes_of_any_levels_are_those_of_the_oracle(levels):
    indices = torch.arange(math.prod(levels))
    codes = fsq_code(indices, levels, torch.float32)
    assert torch.equal(codes, FSQ(list(levels)).implicit_codebook[indices])
