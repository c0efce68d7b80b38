"""What the presets are said to cost, and what is said to hold the equations, against what is so."""

import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_ref import catalogue, doctor, evidence
from cosmos_ref.cli import main
from cosmos_ref.config import PRESETS, ClipConfig, SampleConfig, latent_shape
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import build_denoiser
from cosmos_ref.pipelines.sample import sample, schedule

ROOT = Path(__file__).parent.parent
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


# --- the equations' evidence


def equations_shown(id, width=80):
    """What `cosmos-ref equations` prints in a terminal of so many columns."""
    page = io.StringIO()
    catalogue.show_equations(Console(file=page, width=width), id)
    return page.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_equations_is_not_cut_off(width):
    page = equations_shown(None, width)
    assert "\u2026" not in page
    assert max(map(len, page.splitlines())) <= width
    rows = {row[0]: row[1:] for row in map(str.split, page.splitlines()) if row}
    for id, proofs in evidence.read_proofs().items():
        place, laws, impostors = rows[id][:3]
        assert place.startswith(id.split(".")[0] + ".py:")
        assert (int(laws), int(impostors)) == (len(evidence.laws(proofs)), len(evidence.impostors(proofs)))


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_of_an_equation_tells_each_law_and_each_story(width):
    page = " ".join(equations_shown("edm.loss_weight", width).split())
    for proof in evidence.read_proofs()["edm.loss_weight"]:
        assert proof.claim in page
    assert "Karras et al. 2022" in page
    assert "def loss_weight(sigma: Sigma, sigma_data: float) -> Sigma: return" in page


def test_a_test_is_told_as_a_sentence_with_names_whole():
    assert evidence.sentence("test_c_skip_is_the_wiener_gain") == "c_skip is the Wiener gain"
    assert evidence.sentence("test_the_c_of_heun") == "the c of Heun"


def test_an_equation_is_as_good_as_its_worst_proof():
    proofs = [evidence.Proof("a.b", name, "law", name, f"test_a.py::{name}", "test_a.py") for name in ("one", "two")]

    def verdict(*outcomes):
        return evidence.Result(dict(zip(proofs, outcomes, strict=True)), "abc", "2026").verdict

    assert verdict("passed", "passed") == verdict("passed", "skipped") == "holds"
    assert verdict("passed", "failed") == verdict("failed", "not run") == "fails"
    assert verdict("passed", "not run") == "partly run"
    assert verdict("not run", "not run") == verdict("skipped", "not run") == "not run"


def test_a_law_with_parameters_fails_with_the_worst_of_them():
    (law, *_) = evidence.read_proofs()["edm.c_in"]
    tests = {f"{law.test}[1]": "passed", f"{law.test}[2]": "failed", law.test + "_and_more": "passed"}
    entry = {"commit": "0123-dirty", "date": "2026-01-02T03:04:05+00:00", "tests": tests}
    found = evidence.result("edm.c_in", {"edm.c_in": entry})
    assert found.outcomes[law] == "failed" and found.verdict == "fails"
    assert (found.at, found.when) == ("0123, changed", "2026-01-02 03:04 UTC")


# --- running it, as a user does


def run_in(folder, *arguments):
    """`cosmos-ref` of the package in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "cosmos_ref.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


def copy_of(parts, folder):
    """A checkout, or an installation, of parts of the project."""
    for part in parts:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


@pytest.mark.slow
def test_a_wrong_equation_is_found_by_its_tests_and_the_right_one_holds(tmp_path):
    """The seed's loss weight is put in the place of the true one: exit code 1, and the law is named."""
    folder = copy_of(["cosmos_ref", "tests", "pyproject.toml"], tmp_path)
    held = run_in(folder, "equations", "--test", "edm.loss_weight")
    assert held.returncode == 0, held.stdout + held.stderr
    assert "edm.loss_weight holds" in held.stdout and "commit unknown" in held.stdout
    module = folder / "cosmos_ref" / "equations" / "edm.py"
    wrong = "(lambda sigma, sigma_data: (sigma**2 + sigma_data**2) / (sigma * sigma_data)).__code__"
    module.write_text(f"{module.read_text()}\n\nloss_weight.__code__ = {wrong}\n")
    broken = run_in(folder, "equations", "--test", "edm.loss_weight")
    assert broken.returncode == 1
    assert "edm.loss_weight fails" in broken.stdout
    assert re.search(r"fails +every noise level counts the same at initialisation", broken.stdout)
    assert re.search(r"fails +loss_weight at three levels", broken.stdout)


@pytest.mark.slow
def test_an_installed_package_says_in_one_line_that_it_has_no_tests(tmp_path):
    folder = copy_of(["cosmos_ref"], tmp_path)
    refused = run_in(folder, "equations", "--test", "edm.loss_weight")
    assert refused.returncode == 2 and refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert "run it in a checkout" in line
    shown = run_in(folder, "equations", "edm.loss_weight")
    assert shown.returncode == 0 and "an installed package does not carry" in " ".join(shown.stdout.split())


def test_without_pytest_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(evidence.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pytest and hypothesis.*pip install"):
        evidence.run_tests("edm.loss_weight")


def test_an_unknown_equation_is_not_tested(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["equations", "--test", "edm.los_weight"])
    assert ending.value.code == 2
    assert "did you mean edm.loss_weight" in " ".join(capsys.readouterr().err.split())
