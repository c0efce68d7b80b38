"""What is drawn from a seed is what was promised, and captions tell the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.errors import UserError
from cosmos_ref.worlds import KINDS, PALETTE, Camera, Marble, Occluder, Push, Scene, describe, draw_scene
from cosmos_ref.worlds.scene import ASPECTS

seeds = st.integers(0, 2**64 - 2)
aspects = st.floats(*ASPECTS)


@given(seeds, st.sampled_from(KINDS), aspects)
def test_the_same_seed_gives_the_same_scene_and_another_a_different_one(seed, kind, aspect):
    assert draw_scene(seed, kind, aspect=aspect) == draw_scene(seed, kind, aspect=aspect)
    assert draw_scene(seed, kind, aspect=aspect) != draw_scene(seed + 1, kind, aspect=aspect)


@given(seeds, st.sampled_from(KINDS), aspects)
def test_every_scene_keeps_to_the_limits_of_the_world(seed, kind, aspect):
    scene = draw_scene(seed, kind, aspect=aspect)
    assert scene.box[0] == aspect and scene.box[1] == 1
    assert scene.gravity in {(0, 0, 0), (0, 0.012, 0)}
    colours = [m.colour for m in scene.marbles]
    assert 1 <= len(colours) <= 3 and len(set(colours)) == len(colours) and set(colours) <= set(PALETTE)
    for marble in scene.marbles:
        assert 0.09 <= marble.radius <= 0.12
        assert np.linalg.norm(marble.velocity) <= 0.055 + 1e-12
        assert marble.position[2] == 0.5 and marble.velocity[2] == 0  # flat
        if scene.occluder:
            assert not 0 <= marble.position[0] - scene.occluder.left <= scene.occluder.width
    assert (scene.run(9).states[:, :, 2] == 0.5).all()


@given(seeds, aspects)
def test_collision_scenes_begin_with_a_collision_between_frames_3_and_5(seed, aspect):
    first = draw_scene(seed, "collision", aspect=aspect).run(9).contacts[0]
    assert first.kind == "pair" and 3 - 1e-9 <= first.time <= 5 + 1e-9


@given(seeds, aspects)
def test_permanence_scenes_hide_the_marble_at_frame_4_only_for_a_while(seed, aspect):
    scene = draw_scene(seed, "permanence", aspect=aspect)
    trajectory = scene.run(9)
    x, r = trajectory.states[:, 0, 0], scene.marbles[0].radius
    left, right = scene.occluder.left, scene.occluder.left + scene.occluder.width
    assert left <= x[4] - r and x[4] + r <= right
    for frame in (0, 8):
        assert x[frame] + r <= left or x[frame] - r >= right
    assert not trajectory.contacts


@given(seeds, aspects)
def test_free_fall_scenes_fall_and_touch_nothing(seed, aspect):
    scene = draw_scene(seed, "free_fall", aspect=aspect)
    trajectory = scene.run(9)
    assert not trajectory.contacts
    np.testing.assert_allclose(np.diff(trajectory.states[:, 0, 1], 2), 0.012, atol=1e-14)


@given(seeds, aspects)
def test_push_scenes_have_one_marble_that_a_push_sends_off(seed, aspect):
    scene = draw_scene(seed, "push", aspect=aspect)
    assert len(scene.marbles) == 1 and not any(scene.gravity) and scene.push.frame == 2
    assert 0.03 <= np.linalg.norm(scene.push.velocity_change) <= 0.055
    assert any(c.kind == "push" and c.time == 2 for c in scene.run(9).contacts)


def test_mixed_scenes_have_the_promised_shares():
    """1000 scenes: three standard deviations of a share of 0.5 are 0.047."""
    scenes = [draw_scene(seed, "mixed") for seed in range(1000)]
    share = lambda test: np.mean([test(s) for s in scenes])  # noqa: E731
    assert abs(share(lambda s: s.occluder is not None) - 0.3) < 0.045
    assert abs(share(lambda s: s.push is not None) - 0.3) < 0.045
    assert abs(share(lambda s: any(s.gravity)) - 0.5) < 0.048
    for count in (1, 2, 3):
        assert abs(share(lambda s, n=count: len(s.marbles) == n) - 1 / 3) < 0.045
    for colour in PALETTE:
        assert abs(share(lambda s, c=colour: s.marbles[0].colour == c) - 1 / 4) < 0.042


def test_single_scenes_have_one_marble_and_nothing_else():
    scenes = [draw_scene(seed, "single") for seed in range(200)]
    assert all(len(s.marbles) == 1 and s.occluder is None and s.push is None for s in scenes)
    assert {any(s.gravity) for s in scenes} == {True, False}


@given(seeds, st.sampled_from(KINDS), st.integers(1, 17))
def test_captions_tell_the_truth(seed, kind, frames):
    scene = draw_scene(seed, kind)
    trajectory = scene.run(frames)
    caption = describe(scene, trajectory)
    words = caption.replace(",", "").split()
    colours = [m.colour for m in scene.marbles]
    assert len(words) <= 22
    assert [w for w in words if w in PALETTE][: len(colours)] == colours
    assert words[0] == ("one", "two", "three")[len(colours) - 1]
    assert bool({"fall", "falls"} & set(words)) == any(scene.gravity)
    assert bool({"float", "floats"} & set(words)) != any(scene.gravity)
    assert ("collide" in words) == any(c.kind == "pair" for c in trajectory.contacts)
    assert ("pushed" in words) == any(c.kind == "push" for c in trajectory.contacts)
    assert ("wall" in words) == (scene.occluder is not None)


def test_captions_name_exactly_the_marbles_that_are_hidden_at_some_frame():
    behind = 0
    for seed in range(500):
        scene = draw_scene(seed, "mixed")
        if scene.occluder is None:
            continue
        trajectory = scene.run(17)
        words = describe(scene, trajectory).replace(",", "").split()
        left, right = scene.occluder.left, scene.occluder.left + scene.occluder.width
        hidden = [
            m.colour
            for m, xs in zip(scene.marbles, trajectory.states[:, :, 0].T, strict=True)
            if any(left <= x - m.radius and x + m.radius <= right for x in xs)
        ]
        assert words[words.index("front") + 1 :] == (["hiding", *hidden] if hidden else [])
        behind += bool(hidden)
    assert behind > 20


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ((-0.05, 0.01, 0), "left"),
        ((0.05, 0.01, 0), "right"),
        ((0.01, -0.05, 0), "up"),
        ((0.01, 0.05, 0), "down"),
    ],
)
def test_the_caption_names_the_direction_of_the_push(change, word):
    marble = Marble(0.1, "blue", (0.5, 0.5, 0.5), (0.0, 0.0, 0.0))
    scene = Scene((1, 1, 1), (0, 0, 0), (marble,), Camera((0.5, 0.5)), push=Push(2, change))
    assert describe(scene, scene.run(4)) == f"one blue marble floats, blue is pushed {word}"


def test_the_longest_caption():
    marbles = tuple(
        Marble(0.09, colour, (x, y, 0.5), (0.0, speed, 0.0))
        for colour, x, y, speed in [("red", 0.5, 0.2, 0.05), ("green", 0.5, 0.5, 0.0), ("blue", 0.5, 0.8, 0.0)]
    )
    scene = Scene((1, 1, 1), (0, 0, 0), marbles, Camera((0.5, 0.5)), Occluder(0.4, 0.2), Push(1, (0.0, 0.01, 0.0)))
    assert describe(scene, scene.run(9)) == (
        "three marbles, red green and blue, float, they collide, red is pushed down, "
        "a wall stands in front hiding red green blue"
    )


@pytest.mark.parametrize(
    "arguments", [{"seed": 0, "kind": "melting"}, {"seed": -1}, {"seed": 2**64}, {"seed": 0, "aspect": 0.3}]
)
def test_scenes_that_cannot_be_drawn_are_refused(arguments):
    with pytest.raises(UserError):
        draw_scene(**arguments)
