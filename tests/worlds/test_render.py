"""The picture is the same at every resolution and in every batch, and shows what is in front."""

import math

import pytest
import torch
from einops import reduce
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.worlds import PALETTE, Camera, Marble, Occluder, Scene, draw_scene, film, render, simulate
from cosmos_ref.worlds.scene import WALL

seeds = st.integers(0, 2**32 - 1)


def still(*marbles, box=(1.0, 1.0, 1.0), camera=None, occluder=None):
    """One frame of resting marbles: (colour, x, y, z, radius)."""
    return Scene(
        box,
        (0.0, 0.0, 0.0),
        tuple(Marble(r, colour, (x, y, z), (0.0, 0.0, 0.0)) for colour, x, y, z, r in marbles),
        camera or Camera((box[0] / 2, box[1] / 2)),
        occluder,
    )


@settings(max_examples=15)
@given(seeds, st.sampled_from([(32, 32), (24, 36), (40, 64)]))
def test_halving_a_picture_of_twice_the_size_gives_the_picture(seed, size):
    height, width = size
    small = simulate([seed], frames=2, height=height, width=width)
    large = simulate([seed], frames=2, height=2 * height, width=2 * width)
    halved = reduce(large.video, "B C T (H a) (W b) -> B C T H W", "mean", a=2, b=2)
    difference = (halved - small.video).abs()
    # Edges are blurred by one pixel, not half: a quarter of the full range at worst, and next to nothing on average.
    assert difference.max() < 0.3
    assert difference.mean() < 0.006
    assert (large.visibility - small.visibility).abs().max() < 0.03


@pytest.mark.parametrize("camera", [Camera((0.55, 0.4), 1.0), Camera((0.5, 0.5), 1.2)])
def test_the_comparison_of_sizes_notices_a_misplaced_camera(camera):
    """The impostor of the law above: half a pixel of shift or a wrong zoom is not within its tolerance."""
    scene = still(("red", 0.4, 0.5, 0.5, 0.12))
    large = film([scene], 1, 64, 64).video
    moved = film([still(("red", 0.4, 0.5, 0.5, 0.12), camera=camera)], 1, 32, 32).video
    halved = reduce(large, "B C T (H a) (W b) -> B C T H W", "mean", a=2, b=2)
    assert (halved - moved).abs().max() > 0.3


@given(st.lists(seeds, min_size=2, max_size=5, unique=True), st.integers(0, 4))
def test_a_clip_is_the_same_bit_for_bit_in_any_batch(batch, place):
    seed = batch[place % len(batch)]
    # A giant in the batch enlarges the window in which every marble is drawn.
    giant = still(("blue", 0.5, 0.5, 0.5, 0.4))
    alone = simulate([seed], frames=3, height=32, width=32)
    together = film([draw_scene(s) for s in batch] + [giant], 3, 32, 32)
    index = batch.index(seed)
    assert torch.equal(alone.video[0], together.video[index])
    assert torch.equal(alone.visibility[0], together.visibility[index])
    assert torch.equal(alone.states[0].nan_to_num(), together.states[index].nan_to_num())
    assert alone.captions[0] == together.captions[index]
    assert alone.contacts[0] == together.contacts[index]


def test_the_nearer_marble_covers_the_farther_whatever_their_order():
    near, far = ("red", 0.5, 0.5, 0.2, 0.1), ("blue", 0.5, 0.5, 0.8, 0.1)
    for marbles, hidden in (((near, far), 1), ((far, near), 0)):
        batch = film([still(*marbles)], 1, 64, 64)
        middle = (batch.video[0, :, 0, 36, 36] + 1) / 2
        assert middle[0] > middle[2]  # red
        # The edges of the two discs coincide; only their half covered pixels let some blue through.
        assert batch.visibility[0, 0, hidden] < 0.1
        assert batch.visibility[0, 0, 1 - hidden] == 1


def test_each_marble_keeps_its_own_size_whatever_is_in_front():
    small, large = ("red", 0.3, 0.5, 0.8, 0.05), ("blue", 0.7, 0.5, 0.2, 0.15)
    seen = film([still(small, large)], 1, 64, 64).video
    nearer = film([still((*small[:3], 0.1, 0.05), large)], 1, 64, 64).video
    assert torch.equal(seen, nearer)  # apart from each other, depth does not show


def test_a_marble_behind_the_wall_is_invisible_and_beside_it_is_not():
    wall = Occluder(0.4, 0.3)
    for x, visible in ((0.55, 0.0), (0.2, 1.0), (0.85, 1.0)):
        batch = film([still(("green", x, 0.5, 0.5, 0.1), occluder=wall)], 1, 64, 64)
        assert batch.visibility[0, 0, 0] == visible
    half = film([still(("green", 0.4, 0.5, 0.5, 0.1), occluder=wall)], 1, 64, 64)
    assert half.visibility[0, 0, 0] == pytest.approx(0.5, abs=0.01)
    assert half.visibility[0, 0, 1:].tolist() == [0, 0]  # absent marbles
    pixels = (film([still(("green", 0.55, 0.5, 0.5, 0.1), occluder=wall)], 1, 64, 64).video + 1) / 2
    torch.testing.assert_close(pixels[0, :, 0, 32, 35], torch.tensor(WALL))


@given(st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.floats(0.05, 0.15), st.sampled_from([32, 64, 128]))
def test_the_disc_has_its_area_and_its_centre(x, y, radius, size):
    """Measured on the green marble's shadow: how much of the background is gone (in the red channel)."""
    scene = still(("green", x, y, 0.5, radius))
    video = film([scene], 1, size, size).video[0, :, 0].double()
    background = film([still(("green", 0.5, 0.5, 0.5, 1e-3), camera=Camera((9.0, 9.0)))], 1, size, size).video[0, :, 0]
    changed = (video - background).abs().sum(0)
    hit = (changed > 0.2).float()
    grid = (torch.arange(size) + 0.5) / size
    assert hit.sum() / size**2 == pytest.approx(math.pi * radius**2, abs=2 * math.pi * radius / size)
    assert (hit.sum(0) @ grid) / hit.sum() == pytest.approx(x, abs=0.5 / size)
    assert (hit.sum(1) @ grid) / hit.sum() == pytest.approx(y, abs=0.5 / size)


@given(seeds)
def test_zooming_in_shows_the_middle_of_the_larger_picture(seed):
    scene = draw_scene(seed, "mixed")
    zoomed = Scene(scene.box, scene.gravity, scene.marbles, Camera((0.5, 0.5), 0.5), scene.occluder, scene.push)
    large = film([scene], 2, 64, 64).video[..., 16:48, 16:48]
    # The same floats in another order: rounding of coordinates up to 64 in float32, times the steepest edge.
    torch.testing.assert_close(film([zoomed], 2, 32, 32).video, large, atol=1e-4, rtol=0)


@given(seeds)
def test_moving_a_marble_by_whole_pixels_moves_its_picture(seed):
    shift = seed % 7
    here = film([still(("yellow", 0.375, 0.5, 0.5, 0.1))], 1, 64, 64).video
    there = film([still(("yellow", 0.375 + shift / 64, 0.5, 0.5, 0.1))], 1, 64, 64).video
    torch.testing.assert_close(there, here.roll(shift, -1), atol=1e-5, rtol=0)


def test_pixels_stay_in_range_and_marbles_show_their_colour():
    batch = simulate(range(32), frames=3, height=32, width=32)
    assert batch.video.dtype == torch.float32
    assert batch.video.min() >= -1 and batch.video.max() <= 1
    for colour, rgb in PALETTE.items():
        pixels = film([still((colour, 0.5, 0.5, 0.5, 0.2))], 1, 64, 64).video[0, :, 0, 26:40, 26:40].mean((1, 2))
        shown, meant = (pixels + 1) / 2, torch.tensor(rgb)
        likeness = torch.cosine_similarity(shown - shown.mean(), meant - meant.mean(), dim=0)
        assert likeness > 0.999  # shading and highlight keep the hue


def test_the_device_and_the_number_of_places_come_from_the_states():
    scene = draw_scene(0, "single")
    states = torch.from_numpy(scene.run(2).states)[None]
    video, visibility = render([scene], states, height=32, width=32)
    padded, _ = render([scene], torch.cat([states, torch.full_like(states, torch.nan)], 2), height=32, width=32)
    assert visibility.shape == (1, 2, 1)
    assert torch.equal(video, padded)
