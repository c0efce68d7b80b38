"""Draws marbles as shaded, anti-aliased discs by signed distance: every resolution shows the same picture."""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.worlds.scene import BACKGROUND, PALETTE, Scene

LIGHT = (-0.36, -0.48, 0.8)  # unit vector towards the light: from the upper left, in front of the box
AMBIENT = 0.64  # brightness where the light does not reach
GLOSS = 0.6  # how white the highlight is
GLOSS_EDGE = 0.84  # cosine to the light where the highlight ends


def render(
    scenes: Sequence[Scene], states: Float[Tensor, "B T N 6"], *, height: int, width: int
) -> tuple[Float[Tensor, "B 3 T H W"], Float[Tensor, "B T N"]]:
    """Draw a batch of trajectories as their cameras see them, in float32 on the device of `states`.

    Marbles nearer to the camera cover those behind them, the wall covers all. Only elementwise arithmetic
    that IEEE 754 rounds exactly is used, so a clip is the same to the last bit whatever batch it is drawn in.

    Args:
        scenes: One per clip: radii, colours, walls and cameras.
        states: Positions and velocities; places without a marble are NaN.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        The video in [-1, 1], and the visible fraction of each marble's disc (0 for absent marbles).
    """
    device, (frames, places) = states.device, states.shape[1:3]

    def table(rows: list) -> Tensor:
        return torch.tensor(rows, dtype=torch.float32, device=device)

    # A place without a marble gets a negative radius: it covers nothing.
    absent = [places - len(s.marbles) for s in scenes]
    radii = table([[m.radius for m in s.marbles] + [-9.0] * n for s, n in zip(scenes, absent, strict=True)])
    colours = table(
        [[PALETTE[m.colour] for m in s.marbles] + [BACKGROUND] * n for s, n in zip(scenes, absent, strict=True)]
    )
    walls = table([[s.occluder.left, s.occluder.width] if s.occluder else [-9.0, 0.0] for s in scenes])
    wall_colours = table([s.occluder.colour if s.occluder else BACKGROUND for s in scenes])
    cameras = table([[*s.camera.centre, s.camera.view_height] for s in scenes])

    # From here on lengths are in pixels, measured from the upper left corner of the image.
    zoom = height / cameras[:, 2]
    corner = cameras[:, :2] - table([width, height]) / 2 / zoom[:, None]
    centres = (states[..., :2].float().nan_to_num() - corner[:, None, None]) * zoom[:, None, None, None]
    radii = radii * zoom[:, None]
    left = (walls[:, 0] - corner[:, 0]) * zoom
    right = left + walls[:, 1] * zoom

    # Nearest marble first: what a layer leaves uncovered is left for the layers behind it.
    order = states[..., 2].nan_to_num(torch.inf).argsort(dim=2, stable=True)
    centres = centres.gather(2, repeat(order, "B T N -> B T N xy", xy=2))
    radii = repeat(radii, "B N -> B T N", T=frames).gather(2, order)
    colours = repeat(colours, "B N rgb -> B T N rgb", T=frames)
    colours = colours.gather(2, repeat(order, "B T N -> B T N rgb", rgb=3))

    x = torch.arange(width, device=device) + 0.5
    wall = (x - left[:, None] + 0.5).clamp(0, 1) * (right[:, None] - x + 0.5).clamp(0, 1)
    uncovered = repeat(1 - wall, "B W -> B T (H W)", T=frames, H=height)
    picture = repeat(wall_colours.T[:, :, None] * wall, "rgb B W -> rgb B T (H W)", T=frames, H=height)

    # Each marble is drawn in a window just large enough for the largest, since most pixels show none.
    window = int(radii.max().ceil()) * 2 + 3
    visible = []
    for place in range(max(len(s.marbles) for s in scenes)):
        centre, radius = centres[:, :, place], radii[:, :, place, None]
        columns = _window(centre[..., 0], window, width)
        rows = _window(centre[..., 1], window, height)
        pixels = rearrange(rows * width, "B T h -> B T h 1") + rearrange(columns, "B T w -> B T 1 w")
        pixels = rearrange(pixels, "B T h w -> B T (h w)")
        covered, brightness, gloss = _sphere(
            columns + 0.5 - centre[..., 0, None], rows + 0.5 - centre[..., 1, None], radius
        )
        shown = covered * uncovered.gather(2, pixels)
        uncovered.scatter_add_(2, pixels, -shown)
        # In double precision: the sum is then the same whatever the size of the window.
        visible.append(shown.double().sum(-1) / covered.double().sum(-1).clamp(min=1e-6))
        white = shown * gloss
        hue = (shown - white) * brightness
        for channel in range(3):
            picture[channel].scatter_add_(2, pixels, hue * colours[:, :, place, channel, None] + white)
    for channel in range(3):
        picture[channel] += BACKGROUND[channel] * uncovered

    visibility = torch.zeros(order.shape, device=device)
    visible = torch.stack(visible, dim=2).float()
    visibility.scatter_(2, order[:, :, : visible.shape[2]], visible)
    return rearrange(picture * 2 - 1, "rgb B T (H W) -> B rgb T H W", H=height).contiguous(), visibility


def _window(centre: Float[Tensor, "B T"], size: int, limit: int) -> Int[Tensor, "B T size"]:
    """Indices of up to `size` pixels around a centre, all inside an image of `limit` pixels."""
    size = min(size, limit)
    first = (centre - size / 2).round().clamp(0, limit - size).long()
    return first[..., None] + torch.arange(size, device=centre.device)


def _sphere(
    x: Float[Tensor, "B T w"], y: Float[Tensor, "B T h"], radius: Float[Tensor, "B T 1"]
) -> tuple[Float[Tensor, "B T P"], Float[Tensor, "B T P"], Float[Tensor, "B T P"]]:
    """Coverage, brightness and highlight of a sphere at pixels offset by (x, y) from its centre.

    The coverage is the signed distance of the pixel centre to the edge, from half a pixel inside to half a
    pixel outside. The brightness follows the cosine between the surface and the light.
    """
    x, y = rearrange(x, "B T w -> B T 1 w"), rearrange(y, "B T h -> B T h 1")
    radius = radius[..., None]
    square = x * x + y * y
    covered = (radius + 0.5 - square.sqrt()).clamp(0, 1)
    lit = (1 - square / (radius * radius)).clamp(min=0).sqrt() * LIGHT[2]
    lit = lit + (x * LIGHT[0] + y * LIGHT[1]) / radius
    gloss = ((lit - GLOSS_EDGE) / (1 - GLOSS_EDGE)).clamp(0, 1)
    brightness = AMBIENT + (1 - AMBIENT) * lit.clamp(0, 1)
    flat = "B T h w -> B T (h w)"
    return rearrange(covered, flat), rearrange(brightness, flat), rearrange(GLOSS * gloss * gloss, flat)
