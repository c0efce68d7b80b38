import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import patches
from tests.impostors import impostor
from tests.strategies import normal, seeds

SAME = dict(rtol=0, atol=0)  # numbers only move
triples = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
channels = st.integers(1, 3)


def numbered(channels, grid, patch_size):
    """Latents of two samples in which every number occurs once."""
    (T, H, W), (r, m, n) = grid, patch_size
    shape = (2, channels, T * r, H * m, W * n)
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def random_indices(seed, channels, grid, patch_size):
    """Twenty places in the formula: sample, channel, token (t, h, w), place in the patch (r, m, n)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (2, channels, *grid, *patch_size)
    return torch.stack([torch.randint(size, (20,), generator=generator) for size in sizes], dim=-1).tolist()


# --- patchify


@pytest.mark.verifies("patches.patchify", by="point")
def test_patchify_two_channels_of_two_by_two():
    """One patch: all of the first channel, row by row, then all of the second."""
    x = torch.tensor([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.float64)
    tokens = patches.patchify(x[None, :, None], (1, 2, 2))
    torch.testing.assert_close(tokens, x.new_tensor([[[1, 2, 3, 4, 5, 6, 7, 8]]]), **SAME)


@pytest.mark.verifies("patches.patchify", by="point")
def test_tokens_run_along_the_width_first_then_the_height_then_time():
    x = torch.arange(8, dtype=torch.float64).reshape(1, 1, 2, 2, 2)
    torch.testing.assert_close(patches.patchify(x, (1, 1, 1)).flatten(), x.flatten(), **SAME)


@pytest.mark.verifies("patches.patchify")
@given(channels, triples, triples, seeds)
def test_patchify_obeys_its_formula_at_every_index(C, grid, patch_size, seed):
    x = numbered(C, grid, patch_size)
    tokens = patches.patchify(x, patch_size)
    (_, H, W), (pt, ph, pw) = grid, patch_size
    for b, c, t, h, w, r, m, n in random_indices(seed, C, grid, patch_size):
        y = tokens[b, (t * H + h) * W + w, ((c * pt + r) * ph + m) * pw + n]
        assert y == x[b, c, t * pt + r, h * ph + m, w * pw + n]


@impostor("patches.patchify", "channel innermost, as in unpatchify")
def patchify_with_channel_innermost(x, patch_size):
    r, m, n = patch_size
    return rearrange(x, "B C (T r) (H m) (W n) -> B (T H W) (m n r C)", r=r, m=m, n=n)


@impostor("patches.patchify", "time innermost in a patch")
def patchify_with_time_innermost(x, patch_size):
    r, m, n = patch_size
    return rearrange(x, "B C (T r) (H m) (W n) -> B (T H W) (C m n r)", r=r, m=m, n=n)


@impostor("patches.patchify", "tokens in the order w, h, t")
def patchify_in_the_order_w_h_t(x, patch_size):
    r, m, n = patch_size
    return rearrange(x, "B C (T r) (H m) (W n) -> B (W H T) (C r m n)", r=r, m=m, n=n)


@impostor("patches.patchify", "every n-th pixel in place of a block of n")
def patchify_with_a_comb(x, patch_size):
    r, m, n = patch_size
    return rearrange(x, "B C (r T) (m H) (n W) -> B (T H W) (C r m n)", r=r, m=m, n=n)


# --- unpatchify


@pytest.mark.verifies("patches.unpatchify", by="point")
def test_unpatchify_two_channels_of_two_by_two():
    """The two channels of a pixel stand side by side."""
    tokens = torch.arange(1, 9, dtype=torch.float64).reshape(1, 1, 8)
    x = patches.unpatchify(tokens, (1, 1, 1), (1, 2, 2))
    expected = tokens.new_tensor([[[1, 3], [5, 7]], [[2, 4], [6, 8]]])
    torch.testing.assert_close(x[0, :, 0], expected, **SAME)


@pytest.mark.verifies("patches.unpatchify")
@given(channels, triples, triples, seeds)
def test_unpatchify_obeys_its_formula_at_every_index(C, grid, patch_size, seed):
    (T, H, W), (pt, ph, pw) = grid, patch_size
    size = C * pt * ph * pw
    tokens = torch.arange(2 * T * H * W * size, dtype=torch.float64).reshape(2, T * H * W, size)
    x = patches.unpatchify(tokens, grid, patch_size)
    for b, c, t, h, w, r, m, n in random_indices(seed, C, grid, patch_size):
        y = tokens[b, (t * H + h) * W + w, ((m * pw + n) * pt + r) * C + c]
        assert y == x[b, c, t * pt + r, h * ph + m, w * pw + n]


@pytest.mark.verifies("patches.unpatchify", "patches.patchify")
@given(channels, triples, triples, seeds)
def test_unpatchify_undoes_patchify_once_the_channels_are_put_in_its_order(C, grid, patch_size, seed):
    """Between the two lies the permutation (c, r, m, n) -> (m, n, r, c); the output layer learns it."""
    x = normal(seed, *numbered(C, grid, patch_size).shape)
    r, m, n = patch_size
    order = "B L (C r m n) -> B L (m n r C)"
    tokens = rearrange(patches.patchify(x, patch_size), order, C=C, r=r, m=m, n=n)
    torch.testing.assert_close(patches.unpatchify(tokens, grid, patch_size), x, **SAME)


@pytest.mark.verifies("patches.unpatchify", "patches.patchify")
@given(st.integers(2, 3), triples)
def test_without_that_permutation_a_patch_comes_back_scrambled(C, grid):
    x = numbered(C, grid, (1, 2, 2))
    back = patches.unpatchify(patches.patchify(x, (1, 2, 2)), grid, (1, 2, 2))
    assert not torch.equal(back, x)
    assert torch.equal(back.flatten().sort().values, x.flatten())  # though no number is lost


@impostor("patches.unpatchify", "channel outermost, as in patchify")
def unpatchify_with_channel_outermost(tokens, grid, patch_size):
    (T, H, W), (r, m, n) = grid, patch_size
    return rearrange(tokens, "B (T H W) (C r m n) -> B C (T r) (H m) (W n)", T=T, H=H, W=W, r=r, m=m, n=n)


@impostor("patches.unpatchify", "time outermost in a patch")
def unpatchify_with_time_outermost(tokens, grid, patch_size):
    (T, H, W), (r, m, n) = grid, patch_size
    return rearrange(tokens, "B (T H W) (r m n C) -> B C (T r) (H m) (W n)", T=T, H=H, W=W, r=r, m=m, n=n)


@impostor("patches.unpatchify", "height and width of a patch exchanged")
def unpatchify_with_patches_transposed(tokens, grid, patch_size):
    (T, H, W), (r, m, n) = grid, patch_size
    return rearrange(tokens, "B (T H W) (n m r C) -> B C (T r) (H m) (W n)", T=T, H=H, W=W, r=r, m=m, n=n)


@impostor("patches.unpatchify", "tokens read in the order w, h, t")
def unpatchify_in_the_order_w_h_t(tokens, grid, patch_size):
    (T, H, W), (r, m, n) = grid, patch_size
    return rearrange(tokens, "B (W H T) (m n r C) -> B C (T r) (H m) (W n)", T=T, H=H, W=W, r=r, m=m, n=n)
