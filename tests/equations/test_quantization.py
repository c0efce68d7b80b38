import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import quantization
from tests.impostors import impostor
from tests.strategies import normal, seeds

COSMOS = (8, 8, 8, 5, 5, 5)
MARGIN = 1e-3
EXACT = dict(rtol=0, atol=1e-12)  # float64, numbers below ten

vocabularies = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)
margins = st.floats(1e-4, 1e-2)
SWEEP = torch.linspace(-8, 8, 4001).double()  # ends on both flat parts, finer than the narrowest level


def integers(L: int) -> torch.Tensor:
    """The levels of one dimension, before they are divided: L integers, as many below zero as above, or one more."""
    return torch.arange(L).double() - L // 2


def swept(levels) -> torch.Tensor:
    """Every dimension from one end to the other, `N D`."""
    return SWEEP[:, None].expand(-1, len(levels))


def all_codes(levels, dtype=torch.float64) -> torch.Tensor:
    """Every code, `N D`, in the order of a table written by hand: the first dimension changes from row to row."""
    axes = [integers(L).to(dtype) / (L // 2) for L in reversed(levels)]
    return torch.cartesian_prod(*axes).reshape(-1, len(levels)).flip(1)


# --- fsq_bound


@pytest.mark.verifies("quantization.fsq_bound", by="point")
def test_bounds_of_eight_and_of_five_levels():
    """Far out 3.5 * 1.001 -+ 0.5 and 2 * 1.001; tanh(artanh(a) + artanh(b)) = (a + b) / (1 + a b) in between."""
    z = torch.tensor([[-40.0], [math.atanh(0.5)], [40]], dtype=torch.float64).expand(-1, 2)
    a = 0.5 / 3.5035
    expected = z.new_tensor([[-4.0035, -2.002], [3.5035 * (0.5 + a) / (1 + 0.5 * a) - 0.5, 1.001], [3.0035, 2.002]])
    torch.testing.assert_close(quantization.fsq_bound(z, (8, 5), MARGIN), expected, **EXACT)


@pytest.mark.verifies("quantization.fsq_bound")
@given(vocabularies, margins)
def test_nothing_said_is_level_zero(levels, margin):
    """In its middle: an even number of levels has no middle one, and yet zero does not lie on an edge."""
    z = torch.zeros(len(levels)).double()
    torch.testing.assert_close(quantization.fsq_bound(z, levels, margin), z, **EXACT)


@pytest.mark.verifies("quantization.fsq_bound")
@given(vocabularies, margins)
def test_the_range_reaches_past_both_end_levels_by_the_margin(levels, margin):
    """So that a finite number takes the value of each level; and by less than half a level, so that none is added."""
    z = torch.tensor([[-40.0], [40]]).double().expand(-1, len(levels))  # tanh is 1 from 20 on
    bounded = quantization.fsq_bound(z, levels, margin)
    ends = torch.stack([integers(L)[[0, -1]] for L in levels], dim=-1)
    past = bounded.new_tensor([[-1], [1]]) * bounded.new_tensor([margin * (L - 1) / 2 for L in levels])
    torch.testing.assert_close(bounded - ends, past, **EXACT)
    assert (bounded - ends).abs().max() < 0.5


@pytest.mark.verifies("quantization.fsq_bound")
@given(vocabularies, margins)
def test_a_larger_number_is_never_on_a_lower_level_and_always_feels_a_pull(levels, margin):
    slope = quantization.fsq_bound(swept(levels), levels, margin).diff(dim=0)
    assert (slope > 0).all()


@pytest.mark.verifies("quantization.fsq_bound")
@given(vocabularies, margins, seeds)
def test_a_dimension_knows_only_its_own_levels(levels, margin, seed):
    z = normal(seed, 20, len(levels))
    bounded = quantization.fsq_bound(z, levels, margin)
    for k, L in enumerate(levels):
        torch.testing.assert_close(bounded[:, k], quantization.fsq_bound(z[:, [k]], (L,), margin)[:, 0], **EXACT)


def bound_with(shift=torch.atanh, reach=lambda L, margin: (L - 1) * (1 + margin) / 2, offset=lambda L: (1 - L % 2) / 2):
    """The bound with another shift, another half width or another offset."""

    def bound(z, levels, margin):
        L = z.new_tensor(levels)
        a, o = reach(L, margin), offset(L)
        return a * torch.tanh(z + shift(o / a)) - o

    return bound


@impostor("quantization.fsq_bound", "no shift: zero lies on the edge of two levels wherever their number is even")
def bound_without_shift(z, levels, margin):
    return bound_with(shift=torch.zeros_like)(z, levels, margin)


@impostor(
    "quantization.fsq_bound",
    "tan for artanh, as the paper's listing and its authors' notebook have it: zero is a little off",
)
def bound_with_tan(z, levels, margin):
    return bound_with(shift=torch.tan)(z, levels, margin)


@impostor("quantization.fsq_bound", "1 - eps, as that listing has it: the range ends short of its end levels")
def bound_with_a_narrower_range(z, levels, margin):
    return bound_with(reach=lambda L, margin: (L - 1) * (1 - margin) / 2)(z, levels, margin)


@impostor("quantization.fsq_bound", "no eps")
def bound_without_margin(z, levels, margin):
    return bound_with(reach=lambda L, margin: (L - 1) * (1 + 1e-15) / 2)(z, levels, margin)


@impostor("quantization.fsq_bound", "half width L / 2: an end that rounds to one level more")
def bound_half_a_level_too_wide(z, levels, margin):
    return bound_with(reach=lambda L, margin: L * (1 + margin) / 2)(z, levels, margin)


@impostor("quantization.fsq_bound", "no offset: an even number of levels gets one more, and two nearly dead ones")
def bound_without_offset(z, levels, margin):
    return bound_with(offset=torch.zeros_like)(z, levels, margin)


@impostor("quantization.fsq_bound", "offset whether the number of levels is even or odd")
def bound_with_an_offset_for_odd_levels(z, levels, margin):
    return bound_with(offset=lambda L: torch.full_like(L, 0.5))(z, levels, margin)


@impostor("quantization.fsq_bound", "clamped instead of squeezed: no gradient comes from beyond the ends")
def bound_clamped(z, levels, margin):
    L = z.new_tensor(levels)
    a, o = (L - 1) * (1 + margin) / 2, (1 - L % 2) / 2
    return a * torch.clamp(z + o / a, -1, 1) - o


@impostor("quantization.fsq_bound", "the first dimension's levels for all")
def bound_of_the_first_levels(z, levels, margin):
    return bound_with()(z, levels[:1] * len(levels), margin)


# --- fsq_round


@pytest.mark.verifies("quantization.fsq_round", by="point")
def test_numbers_and_the_integers_nearest_to_them():
    """Halves go to the even neighbour."""
    x = torch.tensor([-2.5, -1.4, -0.6, 0.4, 0.5, 1.5, 1.6])
    assert quantization.fsq_round(x).tolist() == [-2, -1, -1, 0, 0, 2, 2]


@pytest.mark.verifies("quantization.fsq_round")
@given(seeds)
def test_no_integer_is_nearer(seed):
    x = 3 * normal(seed, 100)
    assert ((quantization.fsq_round(x) - x).abs() <= 0.5).all()


@pytest.mark.verifies("quantization.fsq_round")
@given(seeds, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_the_trick_leaves_no_trace_in_the_value(seed, dtype):
    """Bit by bit an integer: x lies within half of it, so that round(x) - x is exact in any precision."""
    y = quantization.fsq_round((3 * normal(seed, 100)).to(dtype))
    assert torch.equal(y, y.double().round().to(dtype))


@pytest.mark.verifies("quantization.fsq_round")
def test_an_integer_stays_as_it_is():
    whole = torch.arange(-9, 10).double()
    assert torch.equal(quantization.fsq_round(whole), whole)


@pytest.mark.verifies("quantization.fsq_round")
@given(seeds)
def test_the_gradient_passes_straight_through(seed):
    x = (3 * normal(seed, 50)).requires_grad_()
    direction = normal(seed + 1, 50)
    (quantization.fsq_round(x) * direction).sum().backward()
    assert torch.equal(x.grad, direction)


@impostor("quantization.fsq_round", "only rounded: the encoder gets no gradient at all")
def round_without_straight_through(x):
    return torch.round(x)


@impostor("quantization.fsq_round", "floor for round: every level half a level too low")
def round_down(x):
    return x + (torch.floor(x) - x).detach()


@impostor("quantization.fsq_round", "halves upwards, as at school: a half of all halves is a level too high")
def round_half_up(x):
    return x + (torch.floor(x + 0.5) - x).detach()


@impostor("quantization.fsq_round", "halves, as if the number of levels were always even")
def round_to_halves(x):
    return x + (torch.floor(x) + 0.5 - x).detach()


@impostor("quantization.fsq_round", "the same sum in another order: no integer in float32")
def round_with_rounding_errors(x):
    return torch.round(x).detach() + x - x.detach()


@impostor("quantization.fsq_round", "gradient of a hard step's ramp, zero far from the middle")
def round_with_gradient_near_zero_only(x):
    near = torch.where(x.abs() < 1, x, x.detach())
    return near + (torch.round(x) - near).detach()


# --- fsq_quantize


@pytest.mark.verifies("quantization.fsq_quantize", by="point")
def test_codes_of_eight_and_of_five_levels():
    """Eight levels end at 3/4. And a code is not its own code: 3/4 said again becomes 1/2."""
    z = torch.tensor([-40, 0, 0.75, 40]).double()[:, None].expand(-1, 2)
    code = quantization.fsq_quantize(z, (8, 5), MARGIN)
    assert code.tolist() == [[-1, -1], [0, 0], [0.5, 0.5], [0.75, 1]]


@pytest.mark.verifies("quantization.fsq_quantize")
@given(vocabularies)
def test_every_dimension_has_its_levels_all_reached_evenly_spaced_from_minus_one(levels):
    code = quantization.fsq_quantize(swept(levels), levels, MARGIN)
    for k, L in enumerate(levels):
        found = code[:, k].unique()
        assert len(found) == L
        torch.testing.assert_close(found, integers(L) / (L // 2), **EXACT)
        assert found.min() == -1 and found.max() <= 1


@pytest.mark.verifies("quantization.fsq_quantize")
@given(vocabularies, seeds)
def test_no_code_is_nearer_to_the_bound(levels, seed):
    """The best of all, found by trying all."""
    z = 2 * normal(seed, 50, len(levels))
    bounded = quantization.fsq_bound(z, levels, MARGIN)
    code = quantization.fsq_quantize(z, levels, MARGIN)
    for k, L in enumerate(levels):
        nearest = (bounded[:, k, None] - integers(L)).abs().argmin(dim=1)
        torch.testing.assert_close(code[:, k], integers(L)[nearest] / (L // 2), **EXACT)


@pytest.mark.verifies("quantization.fsq_quantize")
@given(vocabularies, seeds)
def test_the_gradient_is_that_of_the_bound(levels, seed):
    """By differences of the bound: what the encoder learns from does not know of the rounding."""
    z = normal(seed, 20, len(levels)).requires_grad_()
    (gradient,) = torch.autograd.grad(quantization.fsq_quantize(z, levels, MARGIN).sum(), z)
    h = 1e-5
    above, below = (quantization.fsq_bound(z.detach() + step, levels, MARGIN) for step in (h, -h))
    slope = (above - below) / (2 * h) / torch.tensor([L // 2 for L in levels])
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-8)  # h^2 times a third derivative of at most ten


@pytest.mark.verifies("quantization.fsq_quantize")
@given(vocabularies, seeds, st.sampled_from([torch.bfloat16, torch.float16]))
def test_half_precision_says_a_number_less_finely_but_its_code_is_that_of_the_number_said(levels, seed, dtype):
    z = (2 * normal(seed, 2000, len(levels))).to(dtype)
    code = quantization.fsq_quantize(z, levels, MARGIN)
    assert code.dtype == dtype
    assert torch.equal(code, quantization.fsq_quantize(z.double(), levels, MARGIN).to(dtype))


@pytest.mark.verifies("quantization.fsq_quantize")
@given(vocabularies, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_the_largest_numbers_there_are_get_the_end_levels(levels, dtype):
    ends = torch.finfo(dtype)
    z = torch.tensor([[ends.min], [ends.max]], dtype=dtype).expand(-1, len(levels))
    expected = torch.stack([integers(L)[[0, -1]] / (L // 2) for L in levels], dim=-1)
    assert torch.equal(quantization.fsq_quantize(z, levels, MARGIN), expected.to(dtype))


@impostor(
    "quantization.fsq_quantize",
    "in the precision of the encoder: in bfloat16 one unit normal number in 140 changes level",
)
def quantize_in_the_precision_of_the_encoder(z, levels, margin):
    return quantization.fsq_round(quantization.fsq_bound(z, levels, margin)) / (z.new_tensor(levels) // 2)


@impostor("quantization.fsq_quantize", "tanh written with exponentials, which overflow")
def quantize_with_exponentials(z, levels, margin):
    L = z.new_tensor(levels)
    a, o = (L - 1) * (1 + margin) / 2, (1 - L % 2) / 2
    up, down = torch.exp(z + torch.atanh(o / a)), torch.exp(-z - torch.atanh(o / a))
    return quantization.fsq_round(a * (up - down) / (up + down) - o) / (L // 2)


@impostor("quantization.fsq_quantize", "only rounded: the encoder gets no gradient")
def quantize_without_gradient(z, levels, margin):
    half = z.new_tensor(levels) // 2
    return torch.round(quantization.fsq_bound(z, levels, margin)) / half


@impostor("quantization.fsq_quantize", "divided by (L - 1) / 2: an even number of levels starts below -1")
def quantize_by_the_half_width(z, levels, margin):
    return quantization.fsq_round(quantization.fsq_bound(z, levels, margin)) / ((z.new_tensor(levels) - 1) / 2)


@impostor("quantization.fsq_quantize", "not divided")
def quantize_to_integers(z, levels, margin):
    return quantization.fsq_round(quantization.fsq_bound(z, levels, margin))


@impostor("quantization.fsq_quantize", "floor for round")
def quantize_downwards(z, levels, margin):
    bounded = quantization.fsq_bound(z, levels, margin)
    return (bounded + (torch.floor(bounded) - bounded).detach()) / (z.new_tensor(levels) // 2)


@impostor("quantization.fsq_quantize", "without the squeeze: what lies outside gets levels that do not exist")
def quantize_unbounded(z, levels, margin):
    half = z.new_tensor(levels) // 2
    return quantization.fsq_round(z * half) / half


# --- fsq_index


@pytest.mark.verifies("quantization.fsq_index", by="point")
def test_the_code_zero_of_cosmos_is_number_32036():
    """Digits 4, 4, 4, 2, 2, 2; 4 (1 + 8 + 64) + 2 (512 + 2560 + 12800)."""
    zero = quantization.fsq_quantize(torch.zeros(1, 6), COSMOS, MARGIN)
    assert quantization.fsq_index(zero, COSMOS).tolist() == [32_036]


@pytest.mark.verifies("quantization.fsq_index", by="point")
def test_one_level_more_of_each_dimension_of_cosmos():
    lowest = -torch.ones(6)
    steps = torch.diag(1 / torch.tensor([4.0, 4, 4, 2, 2, 2]))
    assert quantization.fsq_index(lowest, COSMOS) == 0
    assert quantization.fsq_index(lowest + steps, COSMOS).tolist() == [1, 8, 64, 512, 2560, 12_800]


@pytest.mark.verifies("quantization.fsq_index")
def test_every_one_of_the_64000_codes_has_a_number_of_its_own_and_none_is_left_over():
    index = quantization.fsq_index(all_codes(COSMOS), COSMOS)
    assert index.unique().tolist() == list(range(64_000))


@pytest.mark.verifies("quantization.fsq_index")
@given(vocabularies, st.sampled_from([torch.float64, torch.float32]))
def test_the_first_dimension_runs_fastest(levels, dtype):
    index = quantization.fsq_index(all_codes(levels, dtype), levels)
    assert torch.equal(index, torch.arange(math.prod(levels)))


@pytest.mark.verifies("quantization.fsq_index")
def test_numbers_beyond_those_of_float32_are_exact():
    levels = (9,) * 9  # some 387 million codes
    highest = torch.ones(9)
    assert quantization.fsq_index(highest, levels) == 9**9 - 1


@impostor("quantization.fsq_index", "the last dimension fastest, as numpy's ravel_multi_index counts")
def index_with_places_reversed(code, levels):
    return _index(code.flip(-1), levels[::-1])


@impostor("quantization.fsq_index", "places one too far: the first digit is worth its own number of levels")
def index_with_places_one_too_far(code, levels):
    return _index(code, levels, [math.prod(levels[: k + 1]) for k in range(len(levels))])


@impostor("quantization.fsq_index", "every dimension taken for the first")
def index_with_equal_levels(code, levels):
    return _index(code, levels, [levels[0] ** k for k in range(len(levels))])


@impostor(
    "quantization.fsq_index",
    "digits cut off instead of rounded: some thirds come out one too low",
)
def index_cut_off(code, levels):
    return _index(code, levels, rounding=torch.trunc)


@impostor("quantization.fsq_index", "half width (L - 1) / 2")
def index_by_the_half_width(code, levels):
    half = (code.new_tensor(levels) - 1) / 2
    return (torch.round((code + 1) * half).long() * code.new_tensor(places(levels)).long()).sum(-1)


@impostor("quantization.fsq_index", "added up in float32")
def index_in_float32(code, levels):
    half = code.new_tensor(levels) // 2
    return (torch.round((code + 1) * half) * code.new_tensor(places(levels))).sum(-1).long()


def places(levels):
    return [math.prod(levels[:k]) for k in range(len(levels))]


def _index(code, levels, worth=None, rounding=torch.round):
    half = torch.tensor(levels) // 2
    return (rounding((code + 1) * half).long() * torch.tensor(worth or places(levels))).sum(-1)


# --- fsq_code


@pytest.mark.verifies("quantization.fsq_code", by="point")
def test_first_zero_and_last_code_of_cosmos():
    code = quantization.fsq_code(torch.tensor([0, 1, 32_036, 63_999]), COSMOS, torch.float32)
    low = [-1.0] * 6
    assert code.tolist() == [low, [-0.75, *low[1:]], [0.0] * 6, [0.75, 0.75, 0.75, 1, 1, 1]]


@pytest.mark.verifies("quantization.fsq_code", "quantization.fsq_index")
@given(vocabularies, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_the_number_of_a_numbers_code_is_that_number(levels, dtype):
    index = torch.arange(math.prod(levels))
    code = quantization.fsq_code(index, levels, dtype)
    assert code.dtype == dtype
    assert torch.equal(quantization.fsq_index(code, levels), index)


@pytest.mark.verifies("quantization.fsq_code", "quantization.fsq_index")
@given(vocabularies, seeds)
def test_a_quantized_code_comes_back_from_its_number(levels, seed):
    """To the last bit: what the decoder was trained on is what it gets."""
    code = quantization.fsq_quantize(2 * normal(seed, 3, 4, len(levels)), levels, MARGIN)
    back = quantization.fsq_code(quantization.fsq_index(code, levels), levels, torch.float64)
    assert torch.equal(back, code)


@pytest.mark.verifies("quantization.fsq_code", "quantization.fsq_index")
def test_all_64000_codes_of_cosmos_come_back_from_their_numbers():
    code = all_codes(COSMOS)
    index = quantization.fsq_index(code, COSMOS)
    assert torch.equal(quantization.fsq_code(index, COSMOS, torch.float64), code)


@pytest.mark.verifies("quantization.fsq_code")
@given(vocabularies)
def test_every_level_is_in_equally_many_codes(levels):
    size = math.prod(levels)
    code = quantization.fsq_code(torch.arange(size), levels, torch.float64)
    for k, L in enumerate(levels):
        found, count = code[:, k].unique(return_counts=True)
        torch.testing.assert_close(found, integers(L) / (L // 2), **EXACT)
        assert count.tolist() == [size // L] * L


def _code(index, levels, worth, half=lambda L: L // 2, dtype=torch.float64):
    L = torch.tensor(levels)
    digits = index[..., None] // torch.tensor(worth) % L
    return ((digits - L // 2) / half(L)).to(dtype)


@impostor("quantization.fsq_code", "the last dimension fastest")
def code_with_places_reversed(index, levels, dtype):
    return _code(index, levels[::-1], places(levels[::-1]), dtype=dtype).flip(-1)


@impostor("quantization.fsq_code", "places one too far")
def code_with_places_one_too_far(index, levels, dtype):
    return _code(index, levels, [math.prod(levels[: k + 1]) for k in range(len(levels))], dtype=dtype)


@impostor("quantization.fsq_code", "divided by (L - 1) / 2")
def code_by_the_half_width(index, levels, dtype):
    return _code(index, levels, places(levels), half=lambda L: (L - 1) / 2, dtype=dtype)


@impostor("quantization.fsq_code", "the number divided by floats: the digit of a large number depends on rounding")
def code_through_floats(index, levels, dtype):
    L, worth = torch.tensor(levels), torch.tensor(places(levels))
    digits = torch.floor(index[..., None].to(dtype) / worth) % L
    return ((digits - L // 2) / (L // 2)).to(dtype)


@impostor("quantization.fsq_code", "divided in float32, whatever the codes are wanted in")
def code_through_float32(index, levels, dtype):
    return _code(index, levels, places(levels), dtype=dtype)
