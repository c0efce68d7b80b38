"""Statistics of latents that come in pieces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.tokenizer.statistics import RunningMoments
from tests.strategies import normal, seeds


def running(pieces, over):
    moments = RunningMoments()
    for piece in pieces:
        moments.update(piece, over)
    return moments


@given(seeds, st.lists(st.integers(0, 12), max_size=4), st.sampled_from([0.0, 1e4]))
def test_any_pieces_give_what_two_passes_over_the_whole_give(seed, cuts, mean):
    """Per channel and frame, as for the latents of videos; some pieces are empty."""
    x = normal(seed, 12, 3, 2, 4, 5) * normal(seed + 1, 3, 2, 1, 1).exp() + mean
    moments = running(torch.tensor_split(x, sorted(cuts)), over=(0, 3, 4))
    assert moments.count == 12 * 4 * 5
    torch.testing.assert_close(moments.mean, x.mean((0, 3, 4)), rtol=1e-13, atol=1e-13)
    # The numbers are rounded to 1e-12 where the mean is 1e4, and so are their deviations.
    torch.testing.assert_close(moments.std, x.std((0, 3, 4), correction=0), rtol=1e-10, atol=0)


@given(seeds, st.permutations(range(5)))
def test_it_does_not_matter_who_saw_what_nor_who_is_asked_first(seed, order):
    x = normal(seed, 20, 3)
    parts = [running([x[4 * i : 4 * i + 4]], over=(0,)) for i in order]
    left, right = RunningMoments(), RunningMoments()
    for part in parts[:2]:
        left.merge(part)
    for part in parts[2:]:
        right.merge(part)
    left.merge(right)
    torch.testing.assert_close(left.mean, x.mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(left.std, x.std(0, correction=0), rtol=1e-13, atol=0)


def test_half_precision_is_summed_in_double_precision():
    """A thousand numbers near 1000 in bfloat16: their own type would not even hold their count apart."""
    x = (1000 + 8 * normal(0, 1000)).bfloat16()
    moments = running(x.split(7), over=(0,))
    assert moments.std == pytest.approx(x.double().std(correction=0).item(), rel=1e-12)


def test_summing_squares_instead_would_fail_where_the_mean_is_large():
    """Why it is done this way: the plain formula gives nonsense for the very numbers that this gets right."""
    x = normal(1, 1000) + 1e8
    plain = x.square().mean() - x.mean() ** 2
    assert abs(plain / normal(1, 1000).var(correction=0) - 1) > 0.5
    assert running(x.split(10), over=(0,)).std == pytest.approx(normal(1, 1000).std(correction=0).item(), rel=1e-6)
