"""What the presets are said to cost: held against the models, the sampler and the page that people read."""

import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_ref import catalogue, doctor
from cosmos_ref.config import PRESETS, ClipConfig, SampleConfig, latent_shape
from cosmos_ref.model.initialization import build_denoiser
from cosmos_ref.pipelines.sample import sample, schedule

TOKENS = {
    "720p 16:9": 56_320,
    "720p 4:3": 42_240,
    "720p 1:1": 57_600,
    "720p 3:4": 42_240,
    "720p 9:16": 56_320,
    "512p 16:9": 7_680,
    "512p 4:3": 10_240,
    "512p 1:1": 8_192,
    "512p 3:4": 10_240,
    "512p 9:16": 7_680,
}


def shown(name, width=80):
    """What `cosmos-ref presets` prints in a terminal of so many columns."""
    page = io.StringIO()
    catalogue.show_presets(Console(file=page, width=width), name)
    return page.getvalue()


def line(page, start):
    (found,) = [text.split() for text in page.splitlines() if text.strip().startswith(start + "  ")]
    return found[len(start.split()) :]


class RealBytes(TorchDispatchMode):
    """Counts the bytes that come into being outside of the meta device."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out.is_meta:
            self.total += out.numel() * out.element_size()
        return out


# --- numbers


@pytest.mark.parametrize("name", PRESETS)
def test_the_catalogue_counts_what_the_model_has(name):
    counted = sum(parameter.numel() for parameter in build_denoiser(PRESETS[name]).parameters())
    assert catalogue.parameter_count(PRESETS[name]) == counted


@pytest.mark.parametrize(("name", "tokens"), TOKENS.items())
def test_every_resolution_of_cosmos_has_its_tokens(name, tokens):
    config = PRESETS["7b"]
    (clip,) = [ClipConfig(*clip[2:]) for clip in catalogue.RESOLUTIONS if " ".join(clip[:2]) == name]
    assert catalogue.token_count(config, clip) == tokens
    channels, frames, height, width = latent_shape(config, clip)
    assert (channels, frames) == (16, 16 if name.startswith("720p") else 8)
    assert (8 * height, 8 * width) == (clip.height, clip.width)


@pytest.mark.parametrize("guidance", [0.0, 7.0])
@pytest.mark.parametrize("last_sigma", ["zero", "sigma_min"])
@pytest.mark.parametrize("solver", ["euler", "heun", "res_2ab"])
def test_calls_are_those_that_the_sampler_makes(solver, last_sigma, guidance):
    settings = SampleConfig(solver=solver, last_sigma=last_sigma, guidance=guidance, num_steps=5)
    config = replace(PRESETS["7b"], sample=settings)
    evaluations = []

    def denoise(x, sigma):
        evaluations.append(sigma)
        return x

    sample(denoise, torch.ones(1, 1, 1, 1, 1), schedule(config.diffusion, settings), settings)
    assert catalogue.calls(config) == (2 if guidance else 1) * len(evaluations)


def test_weights_of_the_parts_of_7b():
    assert catalogue.part_sizes(PRESETS["7b"]) == {
        "denoiser": 7_236_192_256,
        "T5-11b encoder": 4_864_791_552,
        "tokenizer": 105_653_696,
    }


# --- the page


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", [None, *PRESETS])
def test_nothing_is_cut_off(name, width):
    page = shown(name, width)
    assert "\u2026" not in page
    assert max(map(len, page.splitlines())) <= width


def test_the_list_names_every_preset_with_its_size():
    page = shown(None)
    assert line(page, "7b") == ["7.24", "B", "121x704x1280", "56,320", "2.21", "PFLOP", "13.5", "GiB"]
    assert line(page, "14b-video2world") == ["14.3", "B", "121x704x1280", "56,320", "3.85", "PFLOP", "26.6", "GiB"]
    assert all(line(page, name) for name in PRESETS)


def test_the_page_of_7b_is_exact_where_that_is_the_point():
    page = " ".join(shown("7b").split())
    for text in ("7,236,192,256", "11,108,583,424", "34.86%", "105,653,696", "4,864,791,552"):
        assert text in page
    assert "Training holds 135 GiB" in page and "activations of 180 GiB" in page
    assert "70 calls: 35 steps of res_2ab" in page


def test_the_page_of_14b_shows_what_each_resolution_takes():
    page = shown("14b")
    for name, tokens in TOKENS.items():
        assert f"{tokens:,}" in line(page, name)
    assert line(page, "720p 16:9")[1:] == ["16x16x88x160", "56,320", "3.85", "PFLOP", "269", "PFLOP"]


@pytest.mark.parametrize("name", ["7b", "14b-video2world"])
def test_a_page_allocates_nothing(name):
    with RealBytes() as real:
        shown(name)
    assert real.total < 2**20


@given(st.integers(1000, 10**18))
def test_a_rounded_number_is_not_far_off(number):
    """Three digits: at most half a unit of the last one, 0.5 % of 100."""
    prefixes = {prefix: 1000**power for power, prefix in enumerate("kMGTPE", 1)}
    value, unit = catalogue.flop(number).split()
    assert float(value) * prefixes[unit.removesuffix("FLOP")] == pytest.approx(number, rel=0.00501)
    value, unit = catalogue.memory(number).split()
    power = ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    if power < 4:  # beyond there is no larger unit, and nothing is rounded away
        assert len(value.replace(".", "")) <= 4
    assert float(value) * 1024**power == pytest.approx(number, rel=0.00501)


# --- what fits


@pytest.mark.parametrize("name", PRESETS)
def test_what_fits_is_decided_to_the_byte(name):
    config = PRESETS[name]
    to_sample, to_train = doctor.sampling_bytes(config), doctor.training_bytes(config)
    assert doctor.fits(config, to_sample - 1) == "no"
    assert doctor.fits(config, to_sample) == doctor.fits(config, to_train - 1) == "samples"
    assert doctor.fits(config, to_train) == "trains"


@pytest.mark.parametrize(("name", "gib", "says"), [("7b", 16, "no"), ("7b", 40, "samples"), ("14b", 52, "samples")])
def test_a_bfloat16_model_samples_where_float32_would_not_fit(name, gib, says):
    """NVIDIA's own figures on an H100, text encoder and tokenizer offloaded: 38 GB for 7B, 52 GB for 14B."""
    config = PRESETS[name]
    assert doctor.fits(config, gib * 2**30) == says
    wide = replace(config, sample=replace(config.sample, precision="fp32"))
    assert doctor.sampling_bytes(wide) > doctor.sampling_bytes(config) + 2 * catalogue.parameter_count(config)
    assert doctor.fits(wide, gib * 2**30) == "no"
