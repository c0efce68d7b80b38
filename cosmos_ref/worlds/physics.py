"""Marbles in a box, simulated exactly: every contact time is the root of a polynomial of degree one or two.

Under one uniform gravity all marbles share the same acceleration. A wall contact is then a quadratic in time
along one axis, and a pair contact is a quadratic too, because the *relative* acceleration of two marbles is
zero. So there is no time step: the simulation jumps from contact to contact, and the frames are read off the
parabolas in between.

Units: lengths in box heights, time in frames; x to the right, y down, z away from the camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from cosmos_ref.errors import UserError

Vector = tuple[float, float, float]

WALLS = (("left", "right"), ("ceiling", "floor"), ("front", "back"))

# Elastic marbles in a box meet a few times a frame; a thousand contacts mean one that rests (Zeno's paradox).
MAX_CONTACTS_PER_FRAME = 1000

# Pairs that meet slower than this only graze: rounding could let them collide again and again at one instant.
GRAZING_SPEED = 1e-12


@dataclass(frozen=True)
class Contact:
    """Something that changed a velocity: `who` met a wall of the box, each other, or was pushed."""

    time: float
    kind: str  # "wall" | "pair" | "push"
    who: tuple[int, ...]  # one marble, or the two of a pair
    wall: str | None = None  # "left" | "right" | "ceiling" | "floor" | "front" | "back"


@dataclass(frozen=True)
class Trajectory:
    """What the marbles did: `states` (frames, marbles, 6) and the contacts in the order of time.

    A state is position and velocity in float64; the velocity at a frame is the one after everything that
    happened up to and including that instant.
    """

    states: np.ndarray
    contacts: tuple[Contact, ...]


def wall_hit_time(gap: float, speed: float, acceleration: float) -> float:
    r"""Time until a gap to a wall closes, `inf` if it never does.

    $$\text{gap} + \text{speed}\,t + \tfrac12\,\text{acceleration}\,t^2 = 0$$

    Of the two roots only one has the gap shrinking (its slope there is minus the root of the discriminant).
    That is the one returned: a marble that has just bounced and still touches the wall does not hit it again.
    """
    gap = max(gap, 0.0)  # below zero by a rounding error only
    discriminant = speed * speed - 2 * acceleration * gap
    if discriminant < 0:
        return inf  # turns round before the wall
    closing = sqrt(discriminant)
    if speed < 0:
        return max(2 * gap / (closing - speed), 0.0)  # the same root as below, without its cancellation
    if acceleration < 0:
        return (speed + closing) / -acceleration
    return inf


def pair_hit_time(offset: Sequence[float], velocity: Sequence[float], distance: float) -> float:
    r"""Time until two marbles touch, `inf` if they never do.

    $$\lVert \text{offset} + \text{velocity}\,t \rVert = \text{distance}$$

    `offset` and `velocity` are those of the second marble relative to the first, `distance` the sum of the
    radii. Of the two roots the one with the marbles approaching is returned, so a pair that has just bounced
    does not bounce again.
    """
    (x, y, z), (u, v, w) = offset, velocity
    approach = x * u + y * v + z * w
    if approach >= 0:
        return inf
    # |velocity|^2 distance^2 - |offset x velocity|^2: no cancellation, however close to grazing
    speed2 = u * u + v * v + w * w
    discriminant = speed2 * distance * distance - (y * w - z * v) ** 2 - (z * u - x * w) ** 2 - (x * v - y * u) ** 2
    if discriminant <= (GRAZING_SPEED * distance) ** 2:
        return inf
    gap = x * x + y * y + z * z - distance * distance
    return max(gap / (sqrt(discriminant) - approach), 0.0)


def bounce(
    offset: Sequence[float], v1: Sequence[float], v2: Sequence[float], m1: float, m2: float
) -> tuple[list[float], list[float]]:
    r"""Velocities after an elastic, frictionless collision of two touching spheres.

    $$v_1' = v_1 + \frac{2 m_2}{m_1 + m_2}\,(u\cdot n)\,n \qquad
      v_2' = v_2 - \frac{2 m_1}{m_1 + m_2}\,(u\cdot n)\,n$$

    with $u = v_2 - v_1$ and $n$ the unit vector along `offset`, from the first centre to the second.
    """
    x, y, z = offset
    scale = ((v2[0] - v1[0]) * x + (v2[1] - v1[1]) * y + (v2[2] - v1[2]) * z) / (x * x + y * y + z * z)
    k1, k2 = 2 * m2 / (m1 + m2) * scale, 2 * m1 / (m1 + m2) * scale
    return (
        [v1[0] + k1 * x, v1[1] + k1 * y, v1[2] + k1 * z],
        [v2[0] - k2 * x, v2[1] - k2 * y, v2[2] - k2 * z],
    )


def simulate_marbles(
    radii: Sequence[float],
    positions: Sequence[Vector],
    velocities: Sequence[Vector],
    *,
    box: Vector,
    gravity: Vector,
    frames: int,
    push: tuple[int, Vector] | None = None,
) -> Trajectory:
    """Simulate spheres of equal density (mass = radius cubed) that bounce elastically, in a box.

    Args:
        radii: One per marble, in box heights.
        positions: Centres at frame 0.
        velocities: Velocities at frame 0, per frame.
        box: (width, height, depth); one corner is the origin.
        gravity: Acceleration of every marble, per frame squared.
        frames: Number of frames; frame k is read at time k.
        push: (frame, velocity change) of marble 0, at that instant.

    Raises:
        UserError: A marble overlaps another or a wall at the start, or comes to rest on a wall under gravity.
    """
    _check_start(radii, positions, box)
    if push is not None and push[0] < 0:
        raise UserError(f"push at frame {push[0]}: a marble can be pushed at frame 0 or later")
    masses = [r**3 for r in radii]
    x = [list(map(float, p)) for p in positions]
    v = [list(map(float, u)) for u in velocities]
    states = np.empty((frames, len(radii), 6))
    contacts: list[Contact] = []
    now, frame, contacts_this_frame = 0.0, 0, 0

    while True:
        wait, kind, who, axis, side = _next_contact(radii, x, v, box, gravity)
        if push is not None and push[0] - now <= wait:
            wait, kind, who = push[0] - now, "push", (0,)

        while frame < frames and frame < now + wait:
            for i, (p, u) in enumerate(zip(x, v, strict=True)):
                states[frame, i] = [c for half in _fly(p, u, gravity, frame - now) for c in half]
            frame, contacts_this_frame = frame + 1, 0
        if frame == frames:
            return Trajectory(states, tuple(contacts))

        for i, (p, u) in enumerate(zip(x, v, strict=True)):
            x[i], v[i] = _fly(p, u, gravity, wait)
        now += wait
        i, j = who[0], who[-1]
        if kind == "wall":
            # Placed exactly on the wall: no rounding error can push the marble outside or let it hit twice.
            x[i][axis] = box[axis] - radii[i] if side else radii[i]
            v[i][axis] = -abs(v[i][axis]) if side else abs(v[i][axis])
        elif kind == "pair":
            offset = [b - a for a, b in zip(x[i], x[j], strict=True)]
            v[i], v[j] = bounce(offset, v[i], v[j], masses[i], masses[j])
        else:
            assert push is not None
            v[i] = [u + d for u, d in zip(v[i], push[1], strict=True)]
            push = None
        contacts.append(Contact(now, kind, who, WALLS[axis][side] if kind == "wall" else None))

        contacts_this_frame += 1
        if contacts_this_frame > MAX_CONTACTS_PER_FRAME:
            raise UserError(
                f"marble {i} comes to rest at time {now:.3f}: marbles bounce without loss and never rest; "
                "start it away from the wall it falls to, or give it a speed"
            )


def _fly(x: Sequence[float], v: Sequence[float], gravity: Vector, time: float) -> tuple[list[float], list[float]]:
    """Position and velocity after a free flight."""
    return (
        [p + u * time + 0.5 * g * time * time for p, u, g in zip(x, v, gravity, strict=True)],
        [u + g * time for u, g in zip(v, gravity, strict=True)],
    )


def _next_contact(
    radii: Sequence[float], x: list[list[float]], v: list[list[float]], box: Vector, gravity: Vector
) -> tuple[float, str, tuple[int, ...], int, int]:
    """Waiting time until the next contact, its kind and marbles, and for a wall its axis and side."""
    wait, kind, axis, side = inf, "", 0, 0
    who: tuple[int, ...] = (0,)
    for i, radius in enumerate(radii):
        for k in range(3):
            near, far = x[i][k] - radius, box[k] - radius - x[i][k]
            t = wall_hit_time(near, v[i][k], gravity[k])
            if t < wait:
                wait, kind, who, axis, side = t, "wall", (i,), k, 0
            t = wall_hit_time(far, -v[i][k], -gravity[k])
            if t < wait:
                wait, kind, who, axis, side = t, "wall", (i,), k, 1
        for j in range(i):
            offset = [a - b for a, b in zip(x[i], x[j], strict=True)]
            velocity = [a - b for a, b in zip(v[i], v[j], strict=True)]
            t = pair_hit_time(offset, velocity, radius + radii[j])
            if t < wait:
                wait, kind, who = t, "pair", (j, i)
    return wait, kind, who, axis, side


def _check_start(radii: Sequence[float], positions: Sequence[Vector], box: Vector) -> None:
    """Raise UserError unless the marbles start inside the box and apart (they may touch, up to rounding)."""
    for i, (r, p) in enumerate(zip(radii, positions, strict=True)):
        if not all(r - 1e-9 <= c <= side - r + 1e-9 for c, side in zip(p, box, strict=True)):
            raise UserError(f"marble {i} of radius {r} at {p} is not inside the box {box}; move it inside")
        for j in range(i):
            distance = sqrt(sum((a - b) ** 2 for a, b in zip(p, positions[j], strict=True)))
            if distance < r + radii[j] - 1e-9:
                raise UserError(f"marbles {j} and {i} overlap at the start: {distance} < {r + radii[j]} apart")
