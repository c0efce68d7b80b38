"""Metrics with ground truth, computed from pixels without any network."""

from cosmos_ref.evaluation.marbles import MarbleReport, colour_accuracy, compare
from cosmos_ref.evaluation.tracking import Tracks, copy_last_frame, extrapolate, track

__all__ = [
    "MarbleReport",
    "Tracks",
    "colour_accuracy",
    "compare",
    "copy_last_frame",
    "extrapolate",
    "track",
]
