"""Scenes of the marble world: what is in the box, drawn from a seed, and a caption of what happens in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin

import numpy as np

from cosmos_ref.errors import UserError
from cosmos_ref.worlds.physics import Trajectory, Vector, simulate_marbles

Colour = tuple[float, float, float]

# Red, green and blue in [0, 1]. The hues are far apart: the hue of a pixel tells the marble.
PALETTE: dict[str, Colour] = {
    "red": (0.86, 0.16, 0.24),
    "yellow": (0.96, 0.76, 0.08),
    "green": (0.10, 0.62, 0.36),
    "blue": (0.16, 0.36, 0.88),
}
# The background and the wall are neutral greys, so that only marbles have a hue.
BACKGROUND: Colour = (0.94, 0.94, 0.94)
WALL: Colour = (0.30, 0.30, 0.30)

KINDS = ("single", "mixed", "collision", "permanence", "free_fall", "push")
ASPECTS = (0.65, 3.0)  # narrower boxes have no room for a wall and marbles beside it
MAX_MARBLES = 3

GRAVITY = 0.012
TOP_SPEED = 0.055
RADII = (0.09, 0.12)
PUSH_FRAME = 2
DIRECTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Marble:
    """A sphere: radius, a colour of `PALETTE`, position and velocity (per frame) at frame 0."""

    radius: float
    colour: str
    position: Vector
    velocity: Vector


@dataclass(frozen=True)
class Occluder:
    """A wall of full height on the front pane of the box: it hides what is behind it and touches nothing."""

    left: float
    width: float
    colour: Colour = WALL


@dataclass(frozen=True)
class Push:
    """An instantaneous change of the velocity of marble 0 at a frame."""

    frame: int
    velocity_change: Vector


@dataclass(frozen=True)
class Camera:
    """A static camera that looks straight into the box (parallel rays): centre and height of its view."""

    centre: tuple[float, float]
    view_height: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip, except its length and its resolution."""

    box: Vector
    gravity: Vector
    marbles: tuple[Marble, ...]
    camera: Camera
    occluder: Occluder | None = None
    push: Push | None = None

    def run(self, frames: int) -> Trajectory:
        """Simulate the scene for `frames` frames (exactly, see `physics`)."""
        return simulate_marbles(
            [m.radius for m in self.marbles],
            [m.position for m in self.marbles],
            [m.velocity for m in self.marbles],
            box=self.box,
            gravity=self.gravity,
            frames=frames,
            push=self.push and (self.push.frame, self.push.velocity_change),
        )


def draw_scene(seed: int, kind: str = "mixed", *, aspect: float = 1.0) -> Scene:
    """Draw a flat, front-view scene; the same seed, kind and aspect always give the same scene.

    Kinds: `single` one marble and no wall; `mixed` one to three marbles, gravity in half of the scenes, a
    wall in 30 %, a push in 30 %; `collision` two marbles whose first contact is with each other, between
    frames 3 and 5; `permanence` a marble that is hidden by the wall at frame 4 and back in full at frame 8;
    `free_fall` one marble that falls and touches nothing for nine frames; `push` one marble without gravity,
    pushed at frame 2.

    Args:
        seed: Any integer in [0, 2**64).
        kind: One of `KINDS`.
        aspect: Width of the box over its height.

    Raises:
        UserError: Unknown kind, or a seed or aspect outside its range.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of scene {kind!r}; choose one of {', '.join(KINDS)}")
    if not ASPECTS[0] <= aspect <= ASPECTS[1]:
        raise UserError(f"width / height = {aspect:.3f} is not between {ASPECTS[0]} and {ASPECTS[1]}")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed {seed} is not between 0 and 2**64 - 1")
    random = np.random.Generator(np.random.Philox(key=np.array([seed, KINDS.index(kind)], np.uint64)))
    draw = {"collision": _draw_collision, "permanence": _draw_permanence, "free_fall": _draw_free_fall}
    return draw.get(kind, _draw_mixed)(random, kind, aspect)


def describe(scene: Scene, trajectory: Trajectory) -> str:
    """Say in at most 22 words what is in the scene and what happens in this trajectory.

    The number and the colours come first, in the order of the marbles, so that an encoder that knows only
    words and their places can bind them: "two marbles, red and blue, fall, they collide, red is pushed left,
    a wall stands in front hiding blue".
    """
    colours = [m.colour for m in scene.marbles]
    verb = "fall" if any(scene.gravity) else "float"
    if len(colours) == 1:
        clauses = [f"one {colours[0]} marble {verb}s"]
    else:
        number = {2: "two", 3: "three"}[len(colours)]
        clauses = [f"{number} marbles", f"{' '.join(colours[:-1])} and {colours[-1]}", verb]
    if any(c.kind == "pair" for c in trajectory.contacts):
        clauses.append("they collide")
    if any(c.kind == "push" for c in trajectory.contacts):
        assert scene.push is not None
        clauses.append(f"{colours[0]} is pushed {_direction(scene.push)}")
    if scene.occluder is not None:
        hidden = [colours[i] for i in _fully_hidden(scene, trajectory)]
        clauses.append("a wall stands in front" + (f" hiding {' '.join(hidden)}" if hidden else ""))
    return ", ".join(clauses)


def _direction(push: Push) -> str:
    """The word for the nearest of the four directions."""
    dx, dy, _ = push.velocity_change
    return max(DIRECTIONS, key=lambda word: DIRECTIONS[word][0] * dx + DIRECTIONS[word][1] * dy)


def _fully_hidden(scene: Scene, trajectory: Trajectory) -> list[int]:
    """The marbles that are completely behind the wall at some frame."""
    assert scene.occluder is not None
    left, right = scene.occluder.left, scene.occluder.left + scene.occluder.width
    x = trajectory.states[:, :, 0]
    radius = np.array([m.radius for m in scene.marbles])
    return [int(i) for i in np.flatnonzero(((x - radius >= left) & (x + radius <= right)).any(axis=0))]


def _scene(aspect: float, gravity: float, marbles: Sequence[Marble], **more) -> Scene:
    """A scene in a box of height and depth 1, seen in full from the front."""
    return Scene((aspect, 1.0, 1.0), (0.0, gravity, 0.0), tuple(marbles), Camera((aspect / 2, 0.5)), **more)


def _colours(random: np.random.Generator, count: int) -> list[str]:
    """Different colours, so that a colour names its marble."""
    names = list(PALETTE)
    return [names[i] for i in random.permutation(len(names))[:count]]


def _velocity(random: np.random.Generator, slowest: float = 0.01, fastest: float = TOP_SPEED) -> Vector:
    speed, angle = random.uniform(slowest, fastest), random.uniform(0, 2 * pi)
    return (speed * cos(angle), speed * sin(angle), 0.0)


def _draw_mixed(random: np.random.Generator, kind: str, aspect: float) -> Scene:
    """The kinds `mixed`, `single` and `push`: marbles anywhere, but none behind the wall at the start."""
    mixed = kind == "mixed"
    count = int(random.integers(1, MAX_MARBLES + 1)) if mixed else 1
    gravity = GRAVITY if kind != "push" and random.random() < 0.5 else 0.0
    wall = None
    if mixed and random.random() < 0.3:
        width = random.uniform(0.2, 0.3)
        wall = Occluder(random.uniform(0.35, 0.65) * aspect - width / 2, width)
    push = None
    if kind == "push" or (mixed and random.random() < 0.3):
        dx, dy = list(DIRECTIONS.values())[random.integers(len(DIRECTIONS))]
        strength = random.uniform(0.03, TOP_SPEED)
        push = Push(PUSH_FRAME, (strength * dx, strength * dy, 0.0))

    marbles: list[Marble] = []
    for colour in _colours(random, count):
        radius = random.uniform(*RADII)
        while True:
            x = random.uniform(radius, aspect - radius)
            y = random.uniform(radius, 0.95 - radius)  # close to the floor a slow marble would bounce countless times
            behind = wall is not None and wall.left <= x <= wall.left + wall.width
            gaps = [hypot(x - m.position[0], y - m.position[1]) - radius - m.radius for m in marbles]
            if not behind and all(gap > 0.02 for gap in gaps):
                break
        velocity = _velocity(random, fastest=0.02 if kind == "push" else TOP_SPEED)
        marbles.append(Marble(radius, colour, (x, y, 0.5), velocity))
    return _scene(aspect, gravity, marbles, occluder=wall, push=push)


def _draw_collision(random: np.random.Generator, kind: str, aspect: float) -> Scene:
    """Choose the moment and the place of the contact, and go back along the parabolas to frame 0."""
    colours, gravity = _colours(random, 2), GRAVITY if random.random() < 0.5 else 0.0
    while True:
        time = random.uniform(3, 5)
        angle = random.uniform(-0.7, 0.7)  # between the approach and the line of centres: 0 is head-on
        centre = (random.uniform(0.1, 0.9) * aspect, random.uniform(0.1, 0.9))
        radii = random.uniform(*RADII, size=2).tolist()
        velocities = [_velocity(random), _velocity(random)]
        u, v = velocities[0][0] - velocities[1][0], velocities[0][1] - velocities[1][1]
        speed = hypot(u, v)
        if speed < 0.04:
            continue  # a slow approach is no collision to look at
        normal = ((u * cos(angle) - v * sin(angle)) / speed, (u * sin(angle) + v * cos(angle)) / speed)
        marbles = []
        for colour, radius, velocity, side in zip(colours, radii, velocities, (-1, 1), strict=True):
            reach = side * sum(radii) / 2
            x = centre[0] + reach * normal[0] - velocity[0] * time
            y = centre[1] + reach * normal[1] - velocity[1] * time - gravity * time * time / 2
            marbles.append(Marble(radius, colour, (x, y, 0.5), velocity))
        if all(
            m.radius < m.position[0] < aspect - m.radius and m.radius < m.position[1] < 1 - m.radius for m in marbles
        ):
            scene = _scene(aspect, gravity, marbles)
            contacts = scene.run(6).contacts
            if contacts and contacts[0].kind == "pair":
                return scene


def _draw_permanence(random: np.random.Generator, kind: str, aspect: float) -> Scene:
    """A marble crosses behind a wall little wider than itself, in the middle of it at frame 4; no gravity."""
    (colour,) = _colours(random, 1)
    radius, speed = random.uniform(0.09, 0.094), random.uniform(0.053, TOP_SPEED)
    width = 2 * radius + random.uniform(0.02, 0.026)
    side = 1 if random.random() < 0.5 else -1
    reach = 4 * speed + radius
    middle = random.uniform(reach, aspect - reach)
    y = random.uniform(0.12, 0.88)
    marble = Marble(radius, colour, (middle - side * 4 * speed, y, 0.5), (side * speed, 0.0, 0.0))
    return _scene(aspect, 0.0, [marble], occluder=Occluder(middle - width / 2, width))


def _draw_free_fall(random: np.random.Generator, kind: str, aspect: float) -> Scene:
    """A marble high enough to fall for eight frame times without touching anything."""
    (colour,) = _colours(random, 1)
    while True:
        radius = random.uniform(*RADII)
        position = (random.uniform(radius, aspect - radius), random.uniform(radius, 0.6 - radius), 0.5)
        scene = _scene(aspect, GRAVITY, [Marble(radius, colour, position, _velocity(random, 0.0, 0.03))])
        if not scene.run(9).contacts:
            return scene
