"""What is recorded of an update, and the page that is made of it."""

import dataclasses
import math
import re

import pytest
import torch

from cosmos_ref.config import PRESETS
from cosmos_ref.equations import costs
from cosmos_ref.training.data import Batch
from cosmos_ref.training.metrics import PASSES, batch_costs, peak_flops, sigma_edges, sigma_record, sigma_sums
from cosmos_ref.training.progress import thousands
from cosmos_ref.training.report import over_sigma, write_report
from tests.strategies import normal

MICRO = PRESETS["micro"]


def test_ranges_of_noise_levels_are_each_a_standard_deviation_wide():
    """So of many clips the middle one gets 38 %, its neighbours 24 % each, the rest is beyond."""
    d, sigma = MICRO.diffusion, torch.exp(normal(0, 40000) * MICRO.diffusion.p_std + MICRO.diffusion.p_mean)
    assert sigma_edges(MICRO, "video") == pytest.approx(
        [math.exp(d.p_mean + d.p_std * z) for z in (-1.5, -0.5, 0.5, 1.5)]
    )
    clips = sigma_sums(sigma, sigma, sigma, sigma_edges(MICRO, "video"))[0] / len(sigma)
    # Five standard deviations of a share of 40000 draws.
    assert clips.tolist() == pytest.approx([0.067, 0.242, 0.383, 0.242, 0.067], abs=0.012)


def test_errors_are_averaged_over_the_clips_of_their_range():
    sums = sigma_sums(torch.tensor([1.0, 3, 8]), torch.tensor([2.0, 4, 9]), torch.tensor([0.1, 0.2, 5]), [0.5, 1])
    assert sigma_record("image", sums) == {
        "image_clips_1": 2,
        "image_error_1": 2,
        "image_expected_1": 3,
        "image_clips_3": 1,
        "image_error_3": 8,
        "image_expected_3": 9,
    }


def test_an_update_costs_three_calls_of_the_network_for_each_clip():
    batch = Batch(
        torch.zeros(2, 16, 3, 4, 4), {"text_embeddings": torch.zeros(2, 24, 16)}, torch.zeros(1), torch.ones(2)
    )
    tokens, flops = batch_costs(batch, MICRO)
    assert tokens == 2 * 3 * 2 * 2
    patch = {"patch_in": (16 + 2) * 4, "patch_out": 16 * 4}
    call = costs.flops(12, 24, width=32, depth=2, text_width=16, mlp_width=128, adaln_lora_dim=8, **patch)
    assert flops == PASSES * 2 * sum(call.values()) == 6 * sum(call.values())


def test_a_cpu_has_no_known_peak_unless_someone_gives_it():
    assert peak_flops(torch.device("cpu"), "bf16", None) is None
    assert peak_flops(torch.device("cpu"), "bf16", 0.5) == 5e11


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "fp32", 67),
        ("X", "bf16", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(monkeypatch, name, precision, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision, None) == (tflops and tflops * 1e12)


@pytest.mark.parametrize(
    ("value", "shown"), [(7, "7"), (999, "999"), (12345, "12.3k"), (7.2e9, "7.2G"), (math.nan, "?")]
)
def test_large_numbers_are_shown_in_three_digits(value, shown):
    assert thousands(value) == shown


def records(steps=40):
    """Of a training whose images have twice the error of its videos, at every noise level that occurs."""
    for step in range(1, steps + 1):
        domain = "image" if step % 4 == 0 else "video"
        error = (2.0 if domain == "image" else 1.0) + (step <= steps // 2)
        speeds = dict(seconds=2.0, clips_per_second=3.0, tokens_per_second=1500.0, tflops=0.1, data_wait=0.25)
        sums = {
            f"{domain}_{name}_{i}": v for i in (2, 3) for name, v in dict(clips=i, error=error, expected=0.5).items()
        }
        yield dict(
            step=step, domain=domain, loss=error, weighted_error=error, grad_norm=1.0, lr=1e-3, memory_gib=1.0
        ) | (speeds | sums)


def test_the_page_averages_the_last_quarter_by_clip():
    rows = over_sigma(MICRO, list(records()), "image")
    assert [(error, expected) for _, error, expected in rows] == [(2.0, 0.5), (2.0, 0.5)]
    assert [sigma for sigma, _, _ in rows] == pytest.approx([math.exp(-1), 1])  # the middles of ranges 2 and 3
    mixed = [
        dict(domain="video", video_clips_1=1, video_error_1=1.0, video_expected_1=1.0),
        dict(domain="video", video_clips_1=3, video_error_1=5.0, video_expected_1=2.0),
    ]
    ((_, error, expected),) = over_sigma(MICRO, mixed * 4, "video")
    assert (error, expected) == (4.0, 1.75)


def test_the_page_says_all_twice_and_needs_nothing_else(tmp_path):
    config = dataclasses.replace(MICRO, name="<b>mine</b>")
    text = write_report(config, list(records()), tmp_path / "report.html").read_text()
    assert text.count('lang="en"') == text.count('lang="pt"') + 1  # and the page itself
    assert text.count("<svg") == 7
    assert "<b>mine" not in text and "&lt;b&gt;mine" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)|https?://|@import|url\((?!#)', text)
    assert "240<" in text and "1.5k<" in text and "25.0 %" in text  # clips, tokens a second, waiting
    assert "train.learning_rate" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_without_images_shows_none(tmp_path):
    only = [record for record in records() if record["domain"] == "video"]
    assert ">images<" not in write_report(MICRO, only, tmp_path / "report.html").read_text()


def test_ranges_of_noise_levels_follow_the_shift_of_videos():
    shifted = dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, video_noise_shift=True))
    for video, image in zip(sigma_edges(shifted, "video"), sigma_edges(shifted, "image"), strict=True):
        assert video == pytest.approx(math.sqrt(3) * image)  # 5 frames are 3 latent frames
    assert sigma_edges(shifted, "image") == sigma_edges(MICRO, "video")
