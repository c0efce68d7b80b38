import pytest
import torch

from cosmos_ref.demo import figures
from cosmos_ref.demo.report import Report
from cosmos_ref.page.html import Film
from cosmos_ref.video_io import write_video

FRAMES = 9


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Report:
    """A report of random clips and made-up numbers: every film differs, so that none can stand for another."""
    folder = tmp_path_factory.mktemp("films")
    generator = torch.Generator().manual_seed(0)

    def film(name: str, caption: str = 'one <red> marble & "more"', width: int = 32) -> Film:
        video = torch.rand(3, FRAMES, 32, width, generator=generator) * 2 - 1
        return Film(write_video(folder / f"{name}.mp4", video, 6, scale=2), caption, (("truth", "verdade"),))

    errors = {"model": [1.0, 2.0], "copy": [2.0, 3.0], "linear": [1.5, 2.5]}
    row = {"what": "denoiser, batch 1", "max_abs": 1e-7, "relative": 1e-7, "limit": 1e-5}
    metrics = {
        "config": {"name": "tiny", "train": {"num_steps": 5}},
        "machine": {"cpu": "a processor", "cpu_cores": 2, "memory_gib": 8.0, "system": "a system"},
        "versions": {"Python": "3.11"},
        "seconds": {"train": 2.0, "export": 1.0},
        "total_seconds": 3.0,
        "peak_memory_gib": 1.5,
        "reconstruction": {"file": "clip.mp4", "psnr": 30.0, "held_out_psnr": 31.0, "compression": 5.0},
        "training": {"seconds": 2.0, "clips": 80, "steps": 5, "clips_per_cpu_second": 60.0, "parameters": 1.3e6},
        "denoising": {"mean_before": 2.0, "mean_after": 0.5, "improvement": 4.0},
        "video2world": {
            "scenes": 64,
            "given_frames": 3,
            "visible_share": 0.9,
            "centre_error": {"model": 1.0, "copy": 2.0, "linear": 1.5},
        },
        "text2world": {"clips": 64, "colour_accuracy": 0.95},
        "export": {
            "single_calls": [row],
            "sampling": row,
            "final_relative_error": 1e-6,
            "megabytes": 5.4,
            "seconds_pytorch": 1.0,
            "seconds_onnxruntime": 1.0,
        },
    }
    return Report(
        world=film("world", width=64),
        reconstruction=film("reconstruction", caption=""),
        video2world=[film(f"v{i}", caption=f"scene {i}") for i in range(2)],
        text2world=[film(f"t{i}", caption=f"prompt {i}") for i in range(3)],
        exported=[film("exported")],
        loss_curve=figures.loss_curve([1, 2, 3], [2.0, 1.5, 1.0]),
        error_over_sigma=figures.error_over_sigma([0.1, 1.0], [2.0, 2.0], [0.5, 0.4], [0.5, 0.4]),
        error_over_frames=figures.error_over_frames([3, 4], errors),
        metrics=metrics,
    )
