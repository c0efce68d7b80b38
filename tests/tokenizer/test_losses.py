"""What the loss of a tokenizer sees, and what it does not."""

import math

import pytest
import torch
from einops import rearrange

from cosmos_ref import worlds
from cosmos_ref.tokenizer.losses import (
    FilterBank,
    LossWeights,
    TokenizerLoss,
    brought_back,
    default_loss,
    oriented_waves,
    pyramid_flow,
)
from tests.strategies import normal

ALL = LossWeights(1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def video():
    """Two scenes, 32x32, seen by a camera that moves: something of everything."""
    return worlds.simulate([0, 1], frames=3, height=32, width=32, kind="mixed").video


def grating(wavelength: float, angle: float, shift: float = 0.0, size: int = 24) -> torch.Tensor:
    """Grey waves across the direction of `angle`, moved along it by `shift` pixels."""
    down, right = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    along = math.cos(angle) * right + math.sin(angle) * down
    return torch.cos(2 * math.pi / wavelength * (along - shift)).expand(1, 3, size, size)


def moved_pattern(right: float, down: float, size: int = 32) -> torch.Tensor:
    """A smooth pattern in three colours, moved by so many pixels."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    x, y = x - right, y - down
    colours = [
        torch.sin(0.35 * x + 0.1 * y) + torch.cos(0.3 * y),
        torch.sin(0.2 * x - 0.3 * y),
        torch.cos(0.25 * (x + y)),
    ]
    return torch.stack(colours)[None] / 2


def blurred(video: torch.Tensor, width: float) -> torch.Tensor:
    kernel = torch.exp(-(torch.arange(-6, 7.0) ** 2) / (2 * width**2))
    kernel = kernel / kernel.sum()
    frames = rearrange(video, "B C T H W -> (B T C) 1 H W")
    frames = torch.nn.functional.pad(frames, (6, 6, 6, 6), mode="reflect")
    frames = torch.nn.functional.conv2d(frames, kernel[None, None, None])
    frames = torch.nn.functional.conv2d(frames, kernel[None, None, :, None])
    return rearrange(frames, "(B T C) 1 H W -> B C T H W", T=video.shape[2], C=3)


def perceptual(reconstruction: torch.Tensor, video: torch.Tensor) -> float:
    _, parts = default_loss()(reconstruction, video, LossWeights(0.0, 1.0, 0.0, 0.0))
    return parts["perceptual"].item()


# --- the filter bank


def test_perceptual_loss_is_nothing_exactly_where_the_frames_are_the_same(video):
    """The finest layer holds the pixels, so no two frames have the same features."""
    assert perceptual(video, video) == 0
    for t in range(video.shape[2]):
        other = video.clone()
        other[1, 2, t, 31, 0] += 1e-3
        assert perceptual(other, video) > 0


def test_more_of_a_distortion_is_further_away(video):
    noise = normal(0, *video.shape).float()
    rows = [
        [blurred(video, width) for width in (0.5, 1.0, 2.0)],
        [video + level * noise for level in (0.02, 0.05, 0.1, 0.2)],
        [video.roll(pixels, dims=-1) for pixels in (1, 2, 3)],
        [video + step for step in (0.02, 0.05, 0.1)],
    ]
    for row in rows:
        distances = [perceptual(distorted, video) for distorted in row]
        assert distances == sorted(distances) and distances[0] > 0


def test_of_equal_errors_a_change_of_light_is_the_least_and_blur_the_worst(video):
    """At the same mean magnitude. Pixels alone could not tell them apart."""
    noise = normal(0, *video.shape).float()
    blur = blurred(video, 1.5)
    error = (blur - video).abs().mean()
    distorted = [video + error, video + noise * (error / noise.abs().mean()), blur]
    brighter, noisy, soft = (perceptual(d, video) for d in distorted)
    assert 1.5 * brighter < noisy and 1.2 * noisy < soft


@pytest.mark.parametrize("k", range(4))
def test_waves_in_a_direction_excite_the_filters_of_that_direction(k):
    energy = FilterBank(1)(grating(4.0, math.pi * k / 4))[0][0, 3:, 6:-6, 6:-6]
    by_direction = rearrange(energy, "(colour K) H W -> K (colour H W)", K=4).mean(1)
    assert by_direction.argmax() == k and by_direction[k] > 3 * by_direction[(k + 2) % 4]


def test_energy_says_that_there_are_waves_and_not_where_their_crests_are():
    """Moved by a quarter of their length, crests become slopes; the energy changes by some percent."""
    here, there = (FilterBank(1)(grating(4.0, 0.0, shift))[0][..., 6:-6, 6:-6] for shift in (0.0, 1.0))
    assert (here[:, 3:] - there[:, 3:]).abs().max() < 0.1 * here[:, 3:].max()
    assert (here[:, :3] - there[:, :3]).abs().max() > 0.9


def test_filters_have_no_answer_to_a_grey_wall():
    assert oriented_waves().sum(dim=(1, 2)).abs().max() < 1e-6  # float32
    grey = torch.full((1, 3, 16, 16), 0.7, requires_grad=True)
    layers = FilterBank()(grey)
    assert max(layer[:, 3:].abs().max().item() for layer in layers) < 1e-4
    sum(layer.sum() for layer in layers).backward()
    assert grey.grad is not None and torch.isfinite(grey.grad).all()


def test_frames_of_any_size_have_features():
    for size in ((1, 1), (3, 2), (17, 40)):
        for layer in FilterBank()(normal(0, 1, 3, *size).float()):
            assert torch.isfinite(layer).all()


# --- flow


@pytest.mark.parametrize("step", [(0.0, 0.0), (0.5, -0.25), (1.0, 1.0), (3.0, -2.0)])
def test_the_pyramid_finds_a_known_step_of_a_smooth_pattern(step):
    """In the mean to a thirtieth of a pixel, which is what bilinear interpolation leaves; nowhere worse than a half."""
    found = pyramid_flow(moved_pattern(0, 0), moved_pattern(*step))[0, :, 8:-8, 8:-8]
    error = found - torch.tensor(step)[:, None, None]
    assert error.mean(dim=(1, 2)).abs().max() < 1 / 30
    assert error.abs().max() < 0.5


def test_frames_are_brought_back_by_whole_pixels_exactly():
    frames = normal(0, 1, 3, 8, 10)
    flow = torch.tensor([2.0, -1.0], dtype=torch.float64)[None, :, None, None].expand(1, 2, 8, 10)
    back = brought_back(frames, flow)
    torch.testing.assert_close(back[..., 1:, :-2], frames[..., :-1, 2:], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        back[..., 0, :-2], frames[..., 0, 2:], rtol=0, atol=1e-12
    )  # beyond the border: the border


def test_gradients_of_motion_are_finite_where_nothing_is_seen_and_where_nothing_moves(video):
    grey = torch.zeros(1, 3, 2, 32, 32)
    for clip in (grey, video[:1, :, :1].repeat(1, 1, 2, 1, 1), video):
        clip = clip.clone().requires_grad_()
        total, _ = default_loss()(clip, clip.detach() + 0.1, LossWeights(0.0, 0.0, 0.0, 1.0))
        total.backward()
        assert torch.isfinite(clip.grad).all()


def test_flicker_is_seen_in_the_motion(video):
    """The same error in every frame, and one that changes its sign: in each frame they are equally large."""
    still = video[:, :, :1].repeat(1, 1, 3, 1, 1)
    error = 0.1 * blurred(normal(3, *still[:, :, :1].shape).float(), 1.0)
    signs = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    steady, flickering = still + error, still + error * signs
    distances = [default_loss()(clip, still, ALL)[1]["flow"] for clip in (steady, flickering)]
    assert distances[0] < 1e-5 < 0.01 < distances[1]


# --- the whole loss


def test_networks_that_are_passed_in_are_the_ones_that_are_asked(video):
    """With features that are the pixels and a flow that is their change, each part has a value by hand."""
    loss = TokenizerLoss(lambda frames: [frames], lambda a, b: (b - a)[:, :2], layer_weights=(3.0,))
    weights = LossWeights(absolute=1.0, perceptual=0.5, gram=2.0, flow=10.0)
    total, parts = loss(1.1 * video, video, weights)
    assert math.isclose(parts["absolute"], 0.1 * video.abs().mean(), rel_tol=1e-5)
    assert math.isclose(parts["perceptual"], 3 * parts["absolute"], rel_tol=1e-5)
    assert math.isclose(parts["flow"], 0.1 * video[:, :2].diff(dim=2).abs().mean(), rel_tol=1e-4)
    flat = video.flatten(2)
    energies = flat @ flat.mT / flat.shape[2]
    assert math.isclose(parts["gram"], 3 * ((0.21 * energies) ** 2).mean(), rel_tol=1e-4)
    summed = parts["absolute"] + 0.5 * parts["perceptual"] + 2 * parts["gram"] + 10 * parts["flow"]
    assert math.isclose(total, summed, rel_tol=1e-6)


def test_texture_is_that_of_the_whole_clip(video):
    """In another order the frames are far from the original, and have its texture."""
    _, parts = default_loss()(video.flip(2), video, ALL)
    assert parts["gram"] < 1e-9 and parts["absolute"] > 1e-3


def test_what_has_no_weight_is_not_computed(video):
    def never(*frames):
        raise AssertionError("asked for")

    total, parts = TokenizerLoss(never, never, (1.0,))(video + 0.1, video, LossWeights(1.0, 0.0, 0.0, 0.0))
    assert list(parts) == ["absolute"] and math.isclose(total, 0.1, rel_tol=1e-5)
    asked = TokenizerLoss(default_loss().features, never, default_loss().layer_weights)
    _, parts = asked(video + 0.1, video, LossWeights(1.0, 1.0, 0.0, 0.0))
    assert list(parts) == ["absolute", "perceptual"]


def test_an_image_has_no_motion(video):
    _, parts = default_loss()(video[:, :, :1] + 0.1, video[:, :, :1], ALL)
    assert list(parts) == ["absolute", "perceptual", "gram"]


def test_every_part_pulls_the_reconstruction_to_the_original(video):
    """A small step down the gradient of a part lowers that part."""
    start = video + 0.1 * normal(1, *video.shape).float()
    for name in ("absolute", "perceptual", "gram", "flow"):
        weights = LossWeights(**{part: float(part == name) for part in ("absolute", "perceptual", "gram", "flow")})
        clip = start.clone().requires_grad_()
        before, _ = default_loss()(clip, video, weights)
        before.backward()
        step = 1e-3 * before.item() / clip.grad.norm() ** 2
        after, _ = default_loss()(clip.detach() - step * clip.grad, video, weights)
        assert after < before, name
