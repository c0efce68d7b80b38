"""A small simulated world of marbles with exact ground truth: physics, scenes, captions and pictures."""

from cosmos_ref.worlds.dataset import FPS, WorldBatch, film, simulate
from cosmos_ref.worlds.physics import Contact, Trajectory, simulate_marbles
from cosmos_ref.worlds.render import render
from cosmos_ref.worlds.scene import (
    BACKGROUND,
    KINDS,
    PALETTE,
    Camera,
    Marble,
    Occluder,
    Push,
    Scene,
    describe,
    draw_scene,
)

__all__ = [
    "BACKGROUND",
    "FPS",
    "KINDS",
    "PALETTE",
    "Camera",
    "Contact",
    "Marble",
    "Occluder",
    "Push",
    "Scene",
    "Trajectory",
    "WorldBatch",
    "describe",
    "draw_scene",
    "film",
    "render",
    "simulate",
    "simulate_marbles",
]
