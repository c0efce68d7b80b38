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


# --- network_input


def masks(seed, grid):
    """A frame mask and a padding mask of two samples: numbers that tell every frame and every pixel apart."""
    T, H, W = grid
    return normal(seed, 2, 1, T, 1, 1), normal(seed + 1, 2, 1, H, W)


@pytest.mark.verifies("patches.network_input", by="point")
def test_network_input_of_two_frames_the_first_of_them_given():
    """Two pixels a frame, the second one padding: latents, then `given`, then `padding`."""
    x = torch.tensor([[3.0, 4], [5, 6]], dtype=torch.float64).reshape(1, 1, 2, 1, 2)
    given_frames, padding = x.new_tensor([1, 0]).reshape(1, 1, 2, 1, 1), x.new_tensor([0, 1]).reshape(1, 1, 1, 2)
    text2world = patches.network_input(x, None, padding)
    assert text2world.flatten().tolist() == [3, 4, 5, 6, 0, 1, 0, 1]
    video2world = patches.network_input(x, given_frames, padding)
    assert video2world.flatten().tolist() == [3, 4, 5, 6, 1, 1, 0, 0, 0, 1, 0, 1]


@pytest.mark.verifies("patches.network_input")
@given(channels, triples, seeds)
def test_the_padding_mask_comes_last_and_the_frame_mask_before_it(C, grid, seed):
    x, (frame_mask, padding_mask) = normal(seed + 2, 2, C, *grid), masks(seed, grid)
    latents, frames, padding = patches.network_input(x, frame_mask, padding_mask).split([C, 1, 1], dim=1)
    torch.testing.assert_close(latents, x, **SAME)
    for t in range(grid[0]):
        torch.testing.assert_close(padding[:, :, t], padding_mask, **SAME)
    for h in range(grid[1]):
        for w in range(grid[2]):
            torch.testing.assert_close(frames[:, :, :, h, w], frame_mask[..., 0, 0], **SAME)


@pytest.mark.verifies("patches.network_input")
@given(channels, triples, seeds)
def test_text2world_has_all_channels_but_the_frame_mask(C, grid, seed):
    """16 + 1 against 16 + 1 + 1: what a Video2World network adds to its weights is one channel, the last but one."""
    x, (frame_mask, padding_mask) = normal(seed + 2, 2, C, *grid), masks(seed, grid)
    video2world = patches.network_input(x, frame_mask, padding_mask)
    without = torch.cat([video2world[:, :C], video2world[:, C + 1 :]], dim=1)
    torch.testing.assert_close(patches.network_input(x, None, padding_mask), without, **SAME)


@pytest.mark.verifies("patches.network_input", "patches.patchify")
@given(triples, seeds)
def test_of_the_72_features_of_a_token_the_last_four_are_padding_and_the_four_before_given_frames(grid, seed):
    """Where the weights of the checkpoints expect them: 16 latent channels of four pixels each come first."""
    T, H, W = grid
    x, (frame_mask, padding_mask) = normal(seed + 2, 2, 16, T, 2 * H, 2 * W), masks(seed, (T, 2 * H, 2 * W))
    tokens = patches.patchify(patches.network_input(x, frame_mask, padding_mask), (1, 2, 2))
    latents, frames, padding = tokens.split([64, 4, 4], dim=2)
    torch.testing.assert_close(latents, patches.patchify(x, (1, 2, 2)), **SAME)
    torch.testing.assert_close(frames[:, :: H * W], frame_mask.reshape(2, T, 1).expand(-1, -1, 4), **SAME)
    torch.testing.assert_close(padding[:, 0], padding_mask[:, 0, :2, :2].flatten(1), **SAME)


def mask_channels(x, frame_mask, padding_mask):
    """Those there are, the frame mask first."""
    both = [frame_mask, padding_mask[:, :, None]]
    return [mask.expand(-1, -1, *x.shape[2:]) for mask in both if mask is not None]


@impostor("patches.network_input", "padding mask before the frame mask")
def network_input_with_padding_mask_first(x, frame_mask, padding_mask):
    return torch.cat([x, *mask_channels(x, frame_mask, padding_mask)[::-1]], dim=1)


@impostor("patches.network_input", "masks in front of the latents")
def network_input_with_latents_last(x, frame_mask, padding_mask):
    return torch.cat([*mask_channels(x, frame_mask, padding_mask), x], dim=1)


@impostor("patches.network_input", "masks upside down: 1 where a pixel is real, as attention masks have it")
def network_input_with_masks_inverted(x, frame_mask, padding_mask):
    return torch.cat([x, *(1 - mask for mask in mask_channels(x, frame_mask, padding_mask))], dim=1)


@impostor("patches.network_input", "an empty frame mask in Text2World too: 18 channels where its weights have 17")
def network_input_with_a_frame_mask_always(x, frame_mask, padding_mask):
    frame_mask = x.new_zeros(1, 1, 1, 1, 1).expand(len(x), -1, -1, -1, -1) if frame_mask is None else frame_mask
    return torch.cat([x, *mask_channels(x, frame_mask, padding_mask)], dim=1)


@impostor("patches.network_input", "padding mask in the first frame only")
def network_input_with_padding_in_one_frame(x, frame_mask, padding_mask):
    out = torch.cat([x, *mask_channels(x, frame_mask, padding_mask)], dim=1)
    out[:, -1, 1:] = 0
    return out


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


@impostor("patches.patchify", "`view` where axes must be moved: rows of the grid, not patches")
def patchify_by_view(x, patch_size):
    r, m, n = patch_size
    return x.reshape(len(x), -1, x.shape[1] * r * m * n)


# --- grid_positions


@pytest.mark.verifies("patches.grid_positions", by="point")
def test_positions_of_a_grid_of_two_by_one_by_two():
    positions = patches.grid_positions((2, 1, 2), torch.device("cpu"))
    assert positions.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


@pytest.mark.verifies("patches.grid_positions")
@given(triples)
def test_the_positions_of_a_token_spell_its_number(grid):
    """Time, height and width are the digits of l, the fastest one last; none is left out."""
    T, H, W = grid
    t, h, w = patches.grid_positions(grid, torch.device("cpu")).unbind(dim=1)
    assert torch.equal((t * H + h) * W + w, torch.arange(T * H * W))
    for axis, size in zip((t, h, w), grid, strict=True):
        assert axis.unique().tolist() == list(range(size))


@pytest.mark.verifies("patches.grid_positions", "patches.patchify")
@given(triples, triples)
def test_every_token_is_told_the_place_it_was_cut_from(grid, patch_size):
    """A clip whose three channels hold each pixel's own (t, h, w), counted in patches."""
    axes = [torch.arange(size).repeat_interleave(p) for size, p in zip(grid, patch_size, strict=True)]
    clip = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    told = patches.grid_positions(grid, torch.device("cpu"))
    cut = rearrange(patches.patchify(clip, patch_size), "1 L (C P) -> L C P", C=3)
    assert torch.equal(cut, told[:, :, None].expand_as(cut))


@impostor("patches.grid_positions", "meshgrid as NumPy indexes it: height runs before time")
def positions_of_numpys_meshgrid(grid, device):
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1).reshape(-1, 3)


@impostor("patches.grid_positions", "columns in the order h, w, t")
def positions_in_the_order_h_w_t(grid, device):
    return torch.cartesian_prod(*[torch.arange(size, device=device) for size in grid])[:, [1, 2, 0]]


@impostor("patches.grid_positions", "counted from one")
def positions_from_one(grid, device):
    return torch.cartesian_prod(*[torch.arange(size, device=device) for size in grid]) + 1


@impostor("patches.grid_positions", "counted in latent pixels, two to a token")
def positions_in_latent_pixels(grid, device):
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.cartesian_prod(*axes) * torch.tensor([1, 2, 2], device=device)


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


# --- edges


def test_an_empty_batch_goes_through_and_stays_empty():
    x = normal(0, 0, 2, 3, 4, 4)
    tokens = patches.patchify(patches.network_input(x, x.new_zeros(0, 1, 3, 1, 1), x.new_zeros(0, 1, 4, 4)), (1, 2, 2))
    assert tokens.shape == (0, 12, 16)
    assert patches.unpatchify(tokens, (3, 2, 2), (1, 2, 2)).shape == (0, 4, 3, 4, 4)
