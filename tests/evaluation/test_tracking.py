"""The tracker finds what the renderer drew, and each metric sees the damage it is made for."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.errors import UserError
from cosmos_ref.evaluation import Tracks, colour_accuracy, compare, copy_last_frame, extrapolate, track
from cosmos_ref.worlds import KINDS, PALETTE, Scene, film, simulate

NAMES = list(PALETTE)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=25)
@given(seeds, st.sampled_from(KINDS), st.sampled_from([(32, 32), (64, 64), (32, 48)]))
def test_the_tracker_finds_every_visible_marble_within_half_a_pixel(seed, kind, size):
    batch = simulate([seed], frames=5, height=size[0], width=size[1], kind=kind)
    tracks = track(batch.video)
    for place, marble in enumerate(batch.scenes[0].marbles):
        colour = NAMES.index(marble.colour)
        full = batch.visibility[0, :, place] > 0.999
        truth = batch.states[0, :, place, :2] * size[0]
        assert ((tracks.centres[0, :, colour] - truth).norm(dim=-1)[full] < 0.5).all()
        disc = torch.pi * (marble.radius * size[0]) ** 2
        # Whole pixels are counted: half a pixel all around a disc of radius 3 is a third of it.
        assert ((tracks.areas[0, :, colour] / disc - 1).abs()[full] < 0.33).all()


@given(seeds, st.sampled_from(KINDS))
def test_the_tracker_finds_no_colour_that_is_not_there(seed, kind):
    batch = simulate([seed], frames=3, height=32, width=32, kind=kind)
    tracks = track(batch.video)
    absent = [name not in {m.colour for m in batch.scenes[0].marbles} for name in NAMES]
    # Where two marbles touch, a pixel is a mixture, and may have a third hue.
    assert (tracks.areas[0, :, absent] <= 2).all()


def test_a_hidden_marble_has_no_area_and_no_centre():
    batch = simulate([1], frames=9, height=64, width=64, kind="permanence")
    colour = NAMES.index(batch.scenes[0].marbles[0].colour)
    tracks = track(batch.video)
    assert tracks.areas[0, 4, colour] == 0 and tracks.centres[0, 4, colour].isnan().all()
    assert tracks.areas[0, 8, colour] > 0


@given(seeds)
def test_a_video_turned_by_90_degrees_gives_turned_tracks(seed):
    batch = simulate([seed], frames=2, height=32, width=32, kind="single")
    tracks, turned = track(batch.video), track(batch.video.transpose(-1, -2))
    torch.testing.assert_close(turned.centres, tracks.centres.flip(-1), equal_nan=True)
    assert torch.equal(turned.areas, tracks.areas)


def test_copying_repeats_the_last_given_frame_only():
    video = simulate([0], frames=9, height=32, width=32).video
    copied = copy_last_frame(video, 3)
    assert torch.equal(copied[:, :, :3], video[:, :, :3])
    assert all(torch.equal(copied[:, :, t], video[:, :, 2]) for t in range(3, 9))


def true_tracks(batch):
    """Tracks without a tracker: from the states of one-marble scenes, in box heights."""
    centres = torch.full((*batch.states.shape[:2], len(NAMES), 2), torch.nan)
    areas = torch.zeros(centres.shape[:3])
    for i, scene in enumerate(batch.scenes):
        colour = NAMES.index(scene.marbles[0].colour)
        centres[i, :, colour] = batch.states[i, :, 0, :2].float()
        areas[i, :, colour] = 1.0
    return Tracks(centres, areas)


@given(seeds, st.integers(2, 7))
def test_extrapolation_misses_a_falling_marble_by_g_h_h_plus_1_over_2(seed, given_frames):
    """The backward difference is v - g/2 behind, so that after h frames the parabola is g h (h + 1) / 2 lower."""
    batch = simulate([seed], frames=9, height=32, width=32, kind="free_fall")
    truth = true_tracks(batch)
    missed = (truth.centres - extrapolate(truth, given_frames).centres)[0, given_frames:]
    colour = NAMES.index(batch.scenes[0].marbles[0].colour)
    h = torch.arange(1, 10 - given_frames)
    torch.testing.assert_close(missed[:, colour, 1], 0.012 * h * (h + 1) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(missed[:, colour, 0], torch.zeros(len(h)), atol=1e-5, rtol=0)


def test_extrapolation_from_one_frame_or_after_hiding_stays_in_place():
    centres = torch.tensor([[[[torch.nan, torch.nan]], [[5.0, 6.0]], [[7.0, 7.0]]]])
    tracks = Tracks(centres, torch.ones(1, 3, 1))
    assert extrapolate(tracks, 2).centres[0, 2, 0].tolist() == [5.0, 6.0]
    moved = Tracks(centres.flip(1), torch.ones(1, 3, 1))
    assert extrapolate(moved, 1).centres[0, 1:, 0].tolist() == [[7.0, 7.0]] * 2


@given(seeds, st.sampled_from(KINDS))
def test_the_truth_has_no_errors(seed, kind):
    batch = simulate([seed], frames=9, height=32, width=32, kind=kind)
    report = compare(track(batch.video), batch, 3)
    assert report.mean_centre_error == 0 and report.mean_missing_rate == 0
    assert report.frames == [3, 4, 5, 6, 7, 8]


def test_a_shift_by_3_and_4_pixels_is_an_error_of_5():
    batch = simulate(range(20), frames=5, height=32, width=32, kind="free_fall")
    inside = [i for i, s in enumerate(batch.scenes) if 0.3 < s.marbles[0].position[0] < 0.7]
    chosen = film([batch.scenes[i] for i in inside], 5, 32, 32)
    report = compare(track(chosen.video.roll((4, 3), (-2, -1))), chosen, 3)
    assert report.mean_centre_error == pytest.approx(5, abs=1e-4)
    assert report.centre_error == pytest.approx([5, 5], abs=1e-4)


def test_vanished_marbles_are_missing_and_have_no_centre_error():
    batch = simulate(range(8), frames=6, height=32, width=32, kind="single")
    vanished = batch.video.clone()
    vanished[:, :, 4:] = 0.88  # the background
    report = compare(track(vanished), batch, 3)
    assert report.missing_rate == [0, 1, 1]
    assert report.mean_missing_rate == pytest.approx(2 / 3)
    assert report.judged == 24
    assert report.centre_error[0] == 0 and report.centre_error[1] != report.centre_error[1]  # NaN


def test_hidden_marbles_are_not_judged():
    batch = simulate(range(4), frames=9, height=64, width=64, kind="permanence")
    report = compare(track(batch.video), batch, 3)
    assert report.judged == int((batch.visibility[:, 3:] >= 0.5).sum()) < 4 * 6
    assert report.missing_rate[1] != report.missing_rate[1]  # frame 4: nobody to judge


def test_recoloured_marbles_are_missing_and_not_what_was_asked_for():
    batch = simulate(range(16), frames=5, height=32, width=32, kind="single")
    following = {name: NAMES[(i + 1) % len(NAMES)] for i, name in enumerate(NAMES)}
    wrong = film(
        [replace(s, marbles=tuple(replace(m, colour=following[m.colour]) for m in s.marbles)) for s in batch.scenes],
        5,
        32,
        32,
    )
    assert compare(track(wrong.video), batch).mean_missing_rate == 1
    assert colour_accuracy(wrong.video, batch.captions) == 0


def test_colours_are_right_on_the_truth_and_an_extra_marble_is_noticed():
    for kind in KINDS:
        batch = simulate(range(32), frames=9, height=32, width=32, kind=kind)
        assert colour_accuracy(batch.video, batch.captions) == 1
    mixed = simulate(range(32), frames=9, height=32, width=32)
    fewer = film([Scene(s.box, s.gravity, s.marbles[:1], s.camera) for s in mixed.scenes], 9, 32, 32)
    several = sum(len(s.marbles) > 1 for s in mixed.scenes)
    assert colour_accuracy(mixed.video, fewer.captions) == pytest.approx(1 - several / 32)
    assert colour_accuracy(fewer.video, mixed.captions) == pytest.approx(1 - several / 32)


def test_baselines_are_ordered_as_physics_says():
    """A straight line beats standing still while nothing happens, and loses to it after a push it cannot foresee."""
    fall = simulate(range(64), frames=9, height=32, width=32, kind="free_fall")
    copied = compare(track(copy_last_frame(fall.video, 3)), fall, 3)
    straight = compare(extrapolate(track(fall.video), 3), fall, 3)
    assert straight.mean_centre_error < 0.8 * copied.mean_centre_error
    assert copied.centre_error == sorted(copied.centre_error)
    push = simulate(range(64), frames=9, height=32, width=32, kind="push")
    copied = compare(track(copy_last_frame(push.video, 3)), push, 3)
    straight = compare(extrapolate(track(push.video), 3), push, 3)
    assert straight.mean_centre_error > 0.95 * copied.mean_centre_error


def test_what_cannot_be_compared_is_refused():
    batch = simulate([0, 1], frames=5, height=32, width=32)
    with pytest.raises(UserError):
        compare(track(batch.video[:1]), batch)
    with pytest.raises(UserError):
        compare(track(batch.video), batch, 5)
    with pytest.raises(UserError):
        copy_last_frame(batch.video, 0)
    with pytest.raises(UserError):
        colour_accuracy(batch.video, ["one red marble floats"])


def test_crumbs_of_a_marble_do_not_count_but_half_of_it_does():
    """With 0.4 of the radius 16 % of the area are left, with 0.7 half of it; the limit is 30 %."""
    batch = simulate(range(16), frames=3, height=64, width=64, kind="single")
    for factor, missing in ((0.4, 1), (0.7, 0)):
        shrunk = film(
            [replace(s, marbles=(replace(s.marbles[0], radius=factor * s.marbles[0].radius),)) for s in batch.scenes],
            3,
            64,
            64,
        )
        assert compare(track(shrunk.video), batch).missing_rate[0] == missing
        assert colour_accuracy(shrunk.video, batch.captions) == 1 - missing
