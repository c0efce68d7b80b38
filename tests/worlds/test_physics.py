"""The laws of mechanics, for all seeds, and proof that wrong mechanics breaks them."""

from math import inf, isfinite, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cosmos_ref.errors import UserError
from cosmos_ref.worlds import physics
from cosmos_ref.worlds.physics import bounce, pair_hit_time, simulate_marbles, wall_hit_time

FRAMES = 9
seeds = st.integers(0, 2**32 - 1)
thousandths = st.integers(-100, 100).map(lambda k: k / 1000)


def crowd(seed):
    """Three or four marbles in three dimensions, gravity in any direction or none: harder than any drawn scene."""
    random = np.random.default_rng(seed)
    box = (float(random.uniform(0.8, 1.6)), 1.0, float(random.uniform(0.6, 1.2)))
    radii, positions = [], []
    for _ in range(int(random.integers(3, 5))):
        while True:
            r = float(random.uniform(0.08, 0.15))
            p = [float(random.uniform(r + 0.02, side - r - 0.02)) for side in box]
            if all(np.linalg.norm(np.subtract(p, q)) > r + s + 0.01 for q, s in zip(positions, radii, strict=True)):
                break
        radii.append(r)
        positions.append(tuple(p))
    velocities = [tuple(random.uniform(-0.1, 0.1, 3).tolist()) for _ in radii]
    gravity = tuple(random.uniform(-0.015, 0.015, 3).tolist()) if random.random() < 0.7 else (0.0, 0.0, 0.0)
    return {"radii": radii, "positions": positions, "velocities": velocities, "box": box, "gravity": gravity}


def at_finer_frames(world, factor):
    """The same world in a smaller unit of time."""
    return world | {
        "velocities": [tuple(u / factor for u in v) for v in world["velocities"]],
        "gravity": tuple(g / factor**2 for g in world["gravity"]),
    }


def energy(world, states):
    masses = np.array(world["radii"]) ** 3
    x, v = states[..., :3], states[..., 3:]
    return (masses * ((v**2).sum(-1) / 2 - x @ np.array(world["gravity"]))).sum(-1)


def check_energy_is_conserved(world):
    states = simulate_marbles(**world, frames=FRAMES).states
    e = energy(world, states)
    kinetic = (np.array(world["radii"]) ** 3 * (states[..., 3:] ** 2).sum(-1) / 2).sum(-1)
    assert np.abs(e - e[0]).max() <= 1e-10 * kinetic.max()


def check_no_marble_overlaps_or_leaves(world):
    """At eight instants per frame. 1e-12: rounding of a few contacts."""
    states = simulate_marbles(**at_finer_frames(world, 8), frames=8 * FRAMES - 7).states
    x, r = states[..., :3], np.array(world["radii"])
    assert (x - r[:, None] >= -1e-12).all() and (x + r[:, None] <= np.array(world["box"]) + 1e-12).all()
    for i in range(len(r)):
        for j in range(i):
            assert (np.linalg.norm(x[:, i] - x[:, j], axis=-1) >= r[i] + r[j] - 1e-12).all()


@given(seeds)
def test_energy_is_conserved(seed):
    check_energy_is_conserved(crowd(seed))


@given(seeds)
def test_no_marble_overlaps_another_or_leaves_the_box(seed):
    check_no_marble_overlaps_or_leaves(crowd(seed))


def _late_root(gap, speed, acceleration):
    """The root at which the gap opens again."""
    t = wall_hit_time(gap, speed, acceleration)
    return t + 2 * sqrt(max(speed**2 - 2 * acceleration * gap, 0)) / acceleration if acceleration > 0 else t


@pytest.mark.parametrize(
    ("name", "impostor", "law"),
    [
        ("bounce", lambda n, v1, v2, m1, m2: bounce(n, v1, v2, 1, 1), check_energy_is_conserved),
        (
            "bounce",
            lambda n, v1, v2, m1, m2: bounce(n, v1, v2, m1 ** (2 / 3), m2 ** (2 / 3)),
            check_energy_is_conserved,
        ),
        ("pair_hit_time", lambda *_: inf, check_no_marble_overlaps_or_leaves),
        ("pair_hit_time", lambda o, v, d: pair_hit_time(o, v, 0.9 * d), check_no_marble_overlaps_or_leaves),
        ("wall_hit_time", lambda gap, v, a: wall_hit_time(gap, v, 0), check_no_marble_overlaps_or_leaves),
        ("wall_hit_time", _late_root, check_no_marble_overlaps_or_leaves),
    ],
    ids=["equal-masses", "mass-r-squared", "pass-through", "too-small", "no-gravity-in-walls", "late-root"],
)
def test_laws_reject_wrong_mechanics(monkeypatch, name, impostor, law):
    monkeypatch.setattr(physics, name, impostor)
    with pytest.raises(AssertionError):
        for seed in range(40):
            law(crowd(seed))


@given(seeds)
def test_time_is_reversible(seed):
    world = crowd(seed)
    there = simulate_marbles(**world, frames=FRAMES).states[-1]
    back = world | {"positions": there[:, :3].tolist(), "velocities": (-there[:, 3:]).tolist()}
    again = simulate_marbles(**back, frames=FRAMES).states[-1]
    # Contacts amplify rounding errors by a factor of a few each.
    np.testing.assert_allclose(again[:, :3], world["positions"], atol=1e-8)
    np.testing.assert_allclose(-again[:, 3:], world["velocities"], atol=1e-8)


@given(seeds, st.sampled_from([0, 1, 2]))
def test_the_mirror_image_is_a_world_too(seed, axis):
    world = crowd(seed)
    flip = np.ones(3)
    flip[axis] = -1
    shift = np.where(flip < 0, world["box"], 0.0)
    mirrored = world | {
        "positions": (np.array(world["positions"]) * flip + shift).tolist(),
        "velocities": (np.array(world["velocities"]) * flip).tolist(),
        "gravity": (np.array(world["gravity"]) * flip).tolist(),
    }
    states = simulate_marbles(**world, frames=FRAMES).states
    reflected = simulate_marbles(**mirrored, frames=FRAMES).states
    np.testing.assert_allclose(reflected[..., :3], states[..., :3] * flip + shift, atol=1e-8)
    np.testing.assert_allclose(reflected[..., 3:], states[..., 3:] * flip, atol=1e-8)


@given(seeds, st.integers(2, 7))
def test_the_frame_rate_does_not_change_the_motion(seed, factor):
    """What a time stepper cannot do: between the frames nothing is approximated."""
    world = crowd(seed)
    states = simulate_marbles(**world, frames=FRAMES).states
    finer = simulate_marbles(**at_finer_frames(world, factor), frames=factor * (FRAMES - 1) + 1).states[::factor]
    np.testing.assert_allclose(finer[..., :3], states[..., :3], atol=1e-8)


@given(seeds)
def test_marbles_touch_what_they_hit_at_the_time_of_contact(seed):
    world = crowd(seed)
    x_max, y_max, z_max = world["box"]
    for contact in simulate_marbles(**world, frames=FRAMES).contacts:
        assume(contact.time > 1e-3)
        # With the contact as the unit of time, frame 1 is the moment of contact.
        x = simulate_marbles(**at_finer_frames(world, 1 / contact.time), frames=2).states[1, :, :3]
        r = world["radii"]
        if contact.kind == "pair":
            i, j = contact.who
            gap = np.linalg.norm(x[i] - x[j]) - r[i] - r[j]
        else:
            i = contact.who[0]
            gap = {
                "left": x[i, 0] - r[i],
                "right": x_max - r[i] - x[i, 0],
                "ceiling": x[i, 1] - r[i],
                "floor": y_max - r[i] - x[i, 1],
                "front": x[i, 2] - r[i],
                "back": z_max - r[i] - x[i, 2],
            }[contact.wall]
        assert abs(gap) <= 1e-9


@given(seeds)
def test_momentum_is_conserved_until_a_wall_is_hit(seed):
    world = crowd(seed) | {"gravity": (0.0, 0.0, 0.0)}
    result = simulate_marbles(**at_finer_frames(world, 8), frames=8 * FRAMES)
    first_wall = min([c.time for c in result.contacts if c.kind == "wall"], default=inf)
    free = result.states[: int(min(first_wall, 8 * FRAMES - 1)) + 1]
    momentum = (np.array(world["radii"])[:, None] ** 3 * free[..., 3:]).sum(1)
    scale = (np.array(world["radii"]) ** 3).sum() * 0.1 / 8
    assert np.abs(momentum - momentum[0]).max() <= 1e-13 * scale


@given(seeds)
def test_free_flight_is_the_parabola(seed):
    world = crowd(seed)
    result = simulate_marbles(**at_finer_frames(world, 8), frames=8 * FRAMES)
    first = min([c.time for c in result.contacts], default=inf)
    t = np.arange(8 * FRAMES)[:, None, None]
    x, v, g = (np.array(a) for a in (world["positions"], world["velocities"], world["gravity"]))
    parabola = x + v / 8 * t + 0.5 * g / 64 * t * t
    before = t[:, 0, 0] < first
    # Within the rounding of three additions: nothing is accumulated from frame to frame.
    assert np.abs(result.states[before, :, :3] - parabola[before]).max() <= 1e-15


# ---- contact times: the first root -----------------------------------------------------------------------------


def check_wall_hit(hit_time, gap, speed, acceleration):
    t = hit_time(gap, speed, acceleration)
    before = np.linspace(0, t if isfinite(t) else 1000, 2001)
    assert (gap + speed * before + acceleration * before**2 / 2 >= -1e-9).all()
    if isfinite(t):
        assert t >= 0
        assert abs(gap + speed * t + acceleration * t**2 / 2) <= 1e-9
        assert speed + acceleration * t <= 1e-9  # closing


@given(st.integers(0, 100).map(lambda k: k / 100), thousandths, thousandths)
def test_a_wall_is_hit_at_the_first_closing_root(gap, speed, acceleration):
    check_wall_hit(wall_hit_time, gap, speed, acceleration)


def check_pair_hit(hit_time, offset, velocity, distance):
    t = hit_time(offset, velocity, distance)
    before = np.linspace(0, t if isfinite(t) else 1000, 5001)[:, None]
    gaps = np.linalg.norm(np.array(offset) + np.array(velocity) * before, axis=1) - distance
    assert (gaps >= -1e-9).all()
    if isfinite(t):
        assert t >= 0
        assert abs(gaps[-1]) <= 1e-9
        assert np.dot(np.array(offset) + np.array(velocity) * t, velocity) < 0  # approaching


@given(
    st.lists(thousandths.map(lambda x: 10 * x), min_size=3, max_size=3),
    st.lists(thousandths, min_size=3, max_size=3),
    st.integers(1, 100).map(lambda k: k / 200),
)
def test_a_pair_meets_at_the_first_approaching_root(offset, velocity, distance):
    assume(np.linalg.norm(offset) >= distance)
    check_pair_hit(pair_hit_time, offset, velocity, distance)


@pytest.mark.parametrize(
    "impostor",
    [
        lambda gap, speed, a: gap / -speed if speed < 0 else inf,
        lambda gap, speed, a: min([t.real for t in np.roots([a / 2, speed, gap]) if t.real >= 0], default=inf),
        lambda gap, speed, a: max([t.real for t in np.roots([a / 2, speed, gap]) if t.imag == 0], default=inf),
        lambda gap, speed, a: inf,
    ],
    ids=["no-acceleration", "real-part", "last-root", "never"],
)
def test_the_law_of_wall_hits_rejects_impostors(impostor):
    with pytest.raises(AssertionError):
        for gap in (0.1, 0.5):
            for speed in (-0.05, 0.02, 0.05):
                for acceleration in (-0.01, 0.0, 0.0005, 0.05):
                    check_wall_hit(impostor, gap, speed, acceleration)


@pytest.mark.parametrize(
    "impostor",
    [
        lambda o, v, d: np.linalg.norm(o) / np.linalg.norm(v),
        lambda o, v, d: (np.linalg.norm(o) - d) / np.linalg.norm(v),
        lambda o, v, d: pair_hit_time([*o[:2], 0], v, d),
        lambda o, v, d: inf,
    ],
    ids=["centres-meet", "always-head-on", "flat", "never"],
)
def test_the_law_of_pair_hits_rejects_impostors(impostor):
    with pytest.raises(AssertionError):
        for x in (0.5, -0.6):
            for u in (0.05, -0.05):
                check_pair_hit(impostor, [x, 0.05, -0.1], [u, 0.002, 0.0], 0.2)


def test_a_marble_that_has_just_bounced_does_not_hit_the_wall_again_at_once():
    assert wall_hit_time(0.0, 0.05, 0.0) == inf
    assert wall_hit_time(0.0, 0.05, -0.01) == 10.0  # thrown up from the floor: back after 2 v / g
    assert pair_hit_time([0.2, 0, 0], [0.05, 0, 0], 0.2) == inf
    # Nor does it fall through the wall when rounding has put it a hair behind.
    assert wall_hit_time(-1e-16, 1e-9, -0.01) == pytest.approx(2e-7)


def test_a_dropped_marble_reaches_the_floor_after_root_two_h_over_g():
    fall = {"radii": [0.1], "positions": [(0.5, 0.4, 0.5)], "velocities": [(0, 0, 0)], "box": (1, 1, 1)}
    contact = simulate_marbles(**fall, gravity=(0, 0.02, 0), frames=9).contacts[0]
    assert contact.wall == "floor"
    assert contact.time == pytest.approx(sqrt(2 * 0.5 / 0.02), rel=1e-14)


# ---- the bounce ------------------------------------------------------------------------------------------------


def check_bounce(function, offset, v1, v2, m1, m2):
    offset, v1, v2 = (np.array(a, dtype=float) for a in (offset, v1, v2))
    w1, w2 = (np.array(a) for a in function(offset.tolist(), v1.tolist(), v2.tolist(), m1, m2))
    scale = m1 + m2
    np.testing.assert_allclose(m1 * w1 + m2 * w2, m1 * v1 + m2 * v2, atol=1e-14 * scale)
    assert m1 * w1 @ w1 + m2 * w2 @ w2 == pytest.approx(m1 * v1 @ v1 + m2 * v2 @ v2, abs=1e-14 * scale)
    assert (w2 - w1) @ offset == pytest.approx(-((v2 - v1) @ offset), abs=1e-14)  # they part as fast as they met
    np.testing.assert_allclose(np.cross(w1 - v1, offset), 0, atol=1e-14)  # no friction: along the line of centres


vectors = st.lists(thousandths, min_size=3, max_size=3)
masses = st.floats(0.1, 10)


@given(vectors, vectors, vectors, masses, masses)
def test_a_bounce_keeps_momentum_and_energy_and_acts_along_the_line_of_centres(offset, v1, v2, m1, m2):
    assume(np.linalg.norm(offset) > 0.01)
    check_bounce(bounce, offset, v1, v2, m1, m2)


@pytest.mark.parametrize(
    "impostor",
    [
        lambda n, v1, v2, m1, m2: (v2, v1),
        lambda n, v1, v2, m1, m2: bounce(n, v1, v2, m2, m1),
        lambda n, v1, v2, m1, m2: (v1, v2),
        lambda n, v1, v2, m1, m2: tuple(
            np.array(v) / 2 + np.array(w) / 2 for v, w in zip((v1, v2), bounce(n, v1, v2, m1, m2), strict=True)
        ),
    ],
    ids=["exchange", "masses-swapped", "pass-through", "inelastic"],
)
def test_the_law_of_the_bounce_rejects_impostors(impostor):
    with pytest.raises(AssertionError):
        check_bounce(impostor, [0.2, 0.05, 0.1], [0.05, 0.02, 0.0], [-0.03, 0.0, 0.01], 1.0, 2.0)


def test_a_big_marble_throws_a_small_one_ahead():
    """Point value: masses 8 and 1, the small one at rest: 7/9 and 16/9 of the speed."""
    w1, w2 = bounce([1, 0, 0], [0.9, 0, 0], [0, 0, 0], 8, 1)
    assert w1[0] == pytest.approx(0.7) and w2[0] == pytest.approx(1.6)


# ---- ties, pushes, errors --------------------------------------------------------------------------------------


def test_a_marble_shot_into_a_corner_comes_straight_back():
    result = simulate_marbles([0.1], [(0.5, 0.5, 0.5)], [(0.1, 0.1, 0.1)], box=(1, 1, 1), gravity=(0, 0, 0), frames=9)
    assert [c.wall for c in result.contacts] == ["right", "floor", "back"]
    np.testing.assert_allclose(result.states[8], [[0.5, 0.5, 0.5, -0.1, -0.1, -0.1]], atol=1e-15)


def test_two_marbles_that_hit_a_third_from_both_sides_at_once_both_bounce():
    result = simulate_marbles(
        [0.1, 0.1, 0.1],
        [(0.5, 0.5, 0.5), (0.15, 0.5, 0.5), (0.85, 0.5, 0.5)],
        [(0, 0, 0), (0.05, 0, 0), (-0.05, 0, 0)],
        box=(1, 1, 1),
        gravity=(0, 0, 0),
        frames=6,
    )
    np.testing.assert_allclose(result.states[5, :, 3], [0, -0.05, 0.05], atol=1e-15)


@pytest.mark.parametrize("y", [0.6, 0.6 + 1e-9, 0.6 - 1e-9])
def test_grazing_marbles_hardly_disturb_each_other(y):
    """Whether they touch is a matter of rounding; that it does not matter is the law (root of 1e-9 at most)."""
    result = simulate_marbles(
        [0.1, 0.1],
        [(0.2, 0.4, 0.5), (0.8, y, 0.5)],
        [(0.05, 0, 0), (-0.05, 0, 0)],
        box=(1, 1, 1),
        gravity=(0, 0, 0),
        frames=11,
    )
    assert len([c for c in result.contacts if c.kind == "pair"]) <= 1
    np.testing.assert_allclose(result.states[10, :, 3:], [[0.05, 0, 0], [-0.05, 0, 0]], atol=2e-5)
    np.testing.assert_allclose(result.states[10, :, 0], [0.7, 0.3], atol=1e-4)


def test_a_push_changes_the_velocity_of_the_first_marble_at_its_frame_and_nothing_else():
    world = crowd(3) | {"gravity": (0.0, 0.0, 0.0), "velocities": [(0.0, 0.0, 0.0)] * len(crowd(3)["radii"])}
    result = simulate_marbles(**world, frames=4, push=(2, (0.001, 0.002, 0.0)))
    expected = np.zeros((4, len(world["radii"]), 3))
    expected[2:, 0] = (0.001, 0.002, 0.0)
    np.testing.assert_array_equal(result.states[..., 3:], expected)
    assert [(c.time, c.kind, c.who) for c in result.contacts] == [(2.0, "push", (0,))]


@pytest.mark.parametrize(
    ("positions", "gravity", "push", "message"),
    [
        ([(0.5, 0.9, 0.5)], (0, 0.01, 0), None, "rest"),
        ([(0.5, 0.95, 0.5)], (0, 0, 0), None, "not inside the box"),
        ([(0.5, 0.5, 0.5), (0.6, 0.5, 0.5)], (0, 0, 0), None, "overlap"),
        ([(0.5, 0.5, 0.5)], (0, 0, 0), (-1, (0.1, 0, 0)), "frame 0 or later"),
    ],
)
def test_impossible_worlds_are_refused(positions, gravity, push, message):
    with pytest.raises(UserError, match=message):
        simulate_marbles(
            [0.1] * len(positions),
            positions,
            [(0, 0, 0)] * len(positions),
            box=(1, 1, 1),
            gravity=gravity,
            frames=3,
            push=push,
        )
