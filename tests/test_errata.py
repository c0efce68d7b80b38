"""What the page of errata says: its pages agree, the tests it names exist, and the figures that no other test holds."""

import inspect
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.config import PRESETS
from cosmos_ref.equations import causal, edm, guidance, losses, noise, solvers
from cosmos_ref.errors import UserError
from tests.oracles import conftest  # noqa: F401 (diffusers as the oracles have it: without torchvision)
from tests.strategies import normal, seeds, sigma_datas, sigmas

ROOT = Path(__file__).parent.parent
SIGMA_DATA = 0.5
OFFICIAL = dict(num_steps=35, sigma_min=2e-4, sigma_max=80.0, rho=7.0)


def level(sigma: float) -> torch.Tensor:
    return torch.tensor([sigma], dtype=torch.float64)


# --- the pages

ENTRY = re.compile(r"^### (\d+)\. [^\n]*\{ #([a-z0-9-]+) \}\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (\d+) \| \[[^\]]+\]\(#([a-z0-9-]+)\) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|", re.MULTILINE)
TEST = re.compile(r"`(tests/[^`]+)`")


def page(language: str) -> str:
    return (ROOT / "docs" / language / "errata.md").read_text(encoding="utf-8")


def entries(language: str) -> dict[str, list[str]]:
    """Tests that each entry names, by its anchor, in the page's order."""
    return {anchor: TEST.findall(text) for _, anchor, text in ENTRY.findall(page(language))}


def test_both_languages_have_the_same_errata_in_the_same_order_with_the_same_tests():
    assert list(entries("en").items()) == list(entries("pt").items())
    assert len(entries("en")) >= 25


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_table_has_a_row_for_every_erratum_and_they_are_counted_without_a_gap(language):
    listed = [(int(number), anchor) for number, anchor, *_ in ROW.findall(page(language))]
    assert listed == [(int(number), anchor) for number, anchor, _ in ENTRY.findall(page(language))]
    assert [number for number, _ in listed] == list(range(1, len(listed) + 1))


def test_both_tables_say_the_same_of_the_same_sources():
    assert [row[2:] for row in ROW.findall(page("en"))] == [row[2:] for row in ROW.findall(page("pt"))]


@pytest.mark.slow
def test_every_erratum_names_tests_that_exist():
    """pytest itself is asked, with the very words that a reader would paste."""
    named = entries("en")
    assert not [anchor for anchor, tests in named.items() if not tests]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    ids = sorted({test for tests in named.values() for test in tests})
    found = subprocess.run([*command, *ids], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]


# --- the loss


@given(sigmas, sigma_datas)
def test_the_seeds_weight_leaves_each_level_to_count_as_its_sigma(sigma, sigma_data):
    """lambda c_out^2 is what an error of the network costs: sigma * sigma_data without the square, 1 with it."""
    of_the_seed = (sigma**2 + sigma_data**2) / (sigma * sigma_data)
    cost = of_the_seed * edm.c_out(sigma, sigma_data) ** 2
    torch.testing.assert_close(cost, sigma * sigma_data, rtol=1e-12, atol=0)  # a few roundings of float64


def test_at_a_tenth_of_sigma_data_the_two_weights_are_a_factor_of_forty_apart():
    sigma = level(SIGMA_DATA / 10)
    of_the_seed = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA)
    assert (edm.loss_weight(sigma, SIGMA_DATA) / of_the_seed).item() == pytest.approx(40, rel=1e-12)  # 1 / (0.05 * 0.5)


@given(weighted_error=st.floats(1e-3, 1e3), bound=st.floats(0, 1e6))
def test_the_seeds_total_loss_falls_below_any_bound(weighted_error, bound):
    """lambda L + u: u need only be small enough, whatever the network does."""
    u = -bound - weighted_error - 1
    assert weighted_error + u < -bound


@given(weighted_error=st.floats(1e-3, 1e3), u=st.floats(-600, 1e6))
def test_divided_by_e_to_the_u_it_never_falls_below_one_plus_the_log_of_the_error(weighted_error, u):
    loss = losses.uncertainty_weighted(level(weighted_error), level(1.0), level(u)).item()
    assert loss >= 1 + math.log(weighted_error) - 1e-12  # the minimum itself is met up to a rounding


def test_a_loss_below_zero_is_no_sign_of_a_mistake():
    """At its best u the loss is 1 + ln(lambda L), below 0 as soon as lambda L is below 1/e = 0.368."""
    weighted_error = level(0.1)
    least = losses.uncertainty_weighted(weighted_error, level(1.0), weighted_error.log())
    assert least.item() == pytest.approx(1 + math.log(0.1), rel=1e-12) and least.item() < -1.3


def test_with_a_frozen_denoiser_only_the_uncertainty_would_learn():
    """Taken at its word, the D_0 of the seed's total loss has no theta in it."""
    theta, u = level(0.3).requires_grad_(), level(0.0).requires_grad_()
    x, x0, weight = level(1.5), level(1.0), edm.loss_weight(level(1.0), SIGMA_DATA)

    def total(parameter):
        return losses.uncertainty_weighted((parameter * x - x0) ** 2, weight, u).sum()

    frozen = torch.autograd.grad(total(theta.detach()), [theta, u], allow_unused=True)
    assert frozen[0] is None and frozen[1].abs() > 0.1
    assert torch.autograd.grad(total(theta), theta)[0].abs() > 0.1


@given(seeds, sigmas)
def test_an_error_of_the_noise_is_an_error_of_the_video_over_sigma_squared(seed, sigma):
    """So a loss on the noise is the same loss, otherwise weighted: at sigma 0.002 and 80 by factors 1.6e9 apart."""
    x0, n, guess = normal(seed, 3, 8).unbind()
    x = x0 + sigma * n
    D = x - sigma * guess
    of_the_video, of_the_noise = (D - x0).square().sum(), (guess - n).square().sum()
    # x - x0 loses up to three digits where sigma is 0.002
    torch.testing.assert_close(of_the_video, sigma.square().sum() * of_the_noise, rtol=1e-10, atol=0)


def test_a_denoiser_that_returned_the_noise_would_do_worse_than_nothing():
    """Its error is 1 + sigma_data^2 at every level; leaving the sample as it is costs sigma^2: less, below 1.118."""
    x0, n = normal(1, 100_000) * SIGMA_DATA, normal(2, 100_000)
    for sigma in (0.002, 0.1, 1.0):
        nothing = (x0 + sigma * n - x0).square().mean().item()
        assert (n - x0).square().mean().item() == pytest.approx(1.25, rel=0.02)  # 4 standard errors are 1.8 %
        assert nothing == pytest.approx(sigma**2, rel=0.02) and nothing < 1.25


def test_summed_or_averaged_the_network_learns_the_same_once_the_uncertainty_is_at_its_best():
    """Then u of the sum is larger by ln N, and the gradient of the network is the same, whichever norm is printed."""
    x0, start, weight, count = normal(1, 50), normal(2, 50), 4.0, 50
    gradients, best = [], []
    for error in (lambda D: (D - x0).square().sum(), lambda D: (D - x0).square().mean()):
        D = start.clone().requires_grad_()
        u = (weight * error(start)).log()
        gradients.append(torch.autograd.grad(losses.uncertainty_weighted(error(D), level(weight), u).sum(), D)[0])
        best.append(u)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=0)
    assert (best[0] - best[1]).item() == pytest.approx(math.log(count), rel=1e-12)


def test_ten_times_the_loss_is_the_same_training_under_adam():
    """Adam divides by the size of the gradient; an eps of 1e-10 leaves a relative 1e-9 of the factor."""
    x, y, ends = normal(1, 64, 4), normal(2, 64), []
    for scale in (1.0, 10.0):
        w = normal(3, 4).requires_grad_()
        adam = torch.optim.AdamW([w], lr=1e-2, betas=(0.9, 0.99), eps=1e-10, weight_decay=0.1)
        for _ in range(50):
            adam.zero_grad()
            (scale * (x @ w - y).square().mean()).backward()
            adam.step()
        ends.append(w.detach())
    assert (ends[0] - normal(3, 4)).abs().min() > 0.1
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=0)


# --- noise levels


def share_above(sigma: float, frames: int) -> float:
    """Of the levels drawn for a clip of so many latent frames (P_mean 0, P_std 1), the share above sigma."""
    unshifted = sigma / noise.video_noise_shift(level(1.0), frames).item()
    return 1 - NormalDist(0, 1).cdf(math.log(unshifted))


def test_training_hardly_ever_draws_the_levels_where_sampling_begins():
    """Above 80 lie six levels in a million, and 1.4 in a thousand once those of a clip are shifted by sqrt(16)."""
    assert share_above(80, frames=1) == pytest.approx(5.88e-6, rel=1e-3)
    assert share_above(80, frames=16) == pytest.approx(1.369e-3, rel=1e-3)
    visited = noise.karras_sigmas(**OFFICIAL)[:-1].tolist()
    assert sum(share_above(sigma, frames=1) < 1e-4 for sigma in visited) == 4  # 80, 67.1, 56.1 and 46.6
    assert sum(share_above(sigma, frames=16) < 1e-4 for sigma in visited) == 0


def test_by_the_frames_one_sees_the_shift_would_be_eleven_and_not_four():
    shifts = [noise.video_noise_shift(level(1.0), frames).item() for frames in (121, causal.latent_length(121, 8))]
    assert shifts == [11, 4]


def test_c_noise_in_bfloat16_names_a_level_up_to_two_percent_off():
    """1.0955 becomes 1.09375, so that the network is told 79.4 instead of 80."""
    c_noise = edm.c_noise(noise.karras_sigmas(**OFFICIAL)[:-1])
    told = c_noise.bfloat16().double()
    off = (4 * (told - c_noise)).exp() - 1
    assert told[0].item() == 1.09375 and off[0].item() == pytest.approx(-0.0070, abs=1e-4)
    assert off.abs().max().item() == pytest.approx(0.0173, abs=1e-4)


def test_the_schedule_in_float32_is_off_in_the_sixth_digit():
    """A seventh power of a float32 (relative 6e-8): 79.99998 where 80 is meant. diffusers once had it; no more."""
    ramp = torch.linspace(0, 1, 36, dtype=torch.float32)
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    in_float32 = (high + ramp * (low - high)) ** 7
    exact = noise.karras_sigmas(36, 0.002, 80.0, 7.0)[:-1]
    assert 1e-7 < ((in_float32 - exact) / exact).abs().max() < 1e-5


@pytest.mark.oracle
def test_the_scheduler_of_diffusers_starts_eight_in_a_hundred_thousand_too_loud():
    """sqrt(80^2 + 1): it adds the variance of data of deviation 1, which latents times 0.5 are not."""
    from diffusers import EDMEulerScheduler

    start = EDMEulerScheduler(sigma_max=80, sigma_min=2e-4, sigma_data=SIGMA_DATA).init_noise_sigma
    assert start == pytest.approx(80.00624976, rel=1e-9) and start / 80 - 1 == pytest.approx(7.8e-5, rel=1e-2)
    assert math.hypot(80, SIGMA_DATA) / 80 - 1 == pytest.approx(1.95e-5, rel=1e-2)  # what the data would add


# --- sampling with diffusers' parts


@pytest.mark.oracle
def test_the_36th_call_of_diffusers_changes_nothing():
    """Its last two levels are both 0.002: whatever the network says there, the sample stays as it is, to the bit."""
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(36)
    x, moved = normal(1, 8).float(), []
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(x, timestep)
        stepped = scheduler.step(1e3 * normal(2, 8).float(), timestep, x).prev_sample
        moved.append(not torch.equal(stepped, x))
    assert moved == 35 * [True] + [False]


@pytest.mark.oracle
def test_what_diffusers_calls_epsilon_is_not_the_noise():
    """A network that says 0 gives the best guess c_skip x; if 0 were the noise, the estimate would be x itself."""
    from diffusers import EDMEulerScheduler

    scheduler, x = EDMEulerScheduler(sigma_data=SIGMA_DATA, prediction_type="epsilon"), normal(1, 1, 5)
    D = scheduler.precondition_outputs(x, torch.zeros_like(x), level(1.0))
    torch.testing.assert_close(D, edm.denoise(torch.zeros_like(x), x, level(1.0), SIGMA_DATA), rtol=1e-12, atol=0)
    torch.testing.assert_close(D, 0.2 * x, rtol=1e-12, atol=0)


@pytest.mark.oracle
def test_diffusers_jumps_from_no_guidance_to_twice_the_text_at_one():
    """Its formula counts from the conditional estimate, where 0 is no guidance; its switch is the other form's."""
    from diffusers import CosmosTextToWorldPipeline

    def guides(strength):
        return CosmosTextToWorldPipeline.do_classifier_free_guidance.fget(SimpleNamespace(_guidance_scale=strength))

    assert not guides(0.5) and not guides(1.0) and guides(1.0 + 1e-9)
    D_text, D_null = level(3.0), level(1.0)
    assert guidance.cfg(D_text, D_null, 1.0).item() == 5  # what it leaves out at 1: 3 + 1 * (3 - 1)


@pytest.mark.oracle
def test_diffusers_documents_the_width_of_another_t5():
    from diffusers import CosmosTransformer3DModel

    documented = re.search(r"text_embed_dim \(`int`, defaults to `(\d+)`\)", CosmosTransformer3DModel.__doc__ or "")
    default = inspect.signature(CosmosTransformer3DModel.__init__).parameters["text_embed_dim"].default
    assert documented and documented[1] == "4096"
    assert default == PRESETS["7b"].text.width == 1024


@pytest.mark.oracle
def test_diffusers_takes_cosmos_1_for_its_successor_when_it_reads_one_file():
    """It looks for the key that tells them apart in a dictionary that it has just emptied."""
    from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers

    name = "net.blocks.block1.blocks.0.block.attn.to_q.0.weight"
    renamed = convert_cosmos_transformer_checkpoint_to_diffusers({name: None})
    assert "transformer_blocks.1.attn1.to_q.weight" not in renamed and len(renamed) == 1


# --- given frames


def nvidias_count(frames: int, chunk: int = 16) -> int:
    """Latents of the given frames by cosmos-predict1, whose remainders are taken to 16 and to 121."""
    whole, rest = 16 * (frames // 121), frames % 121
    if frames % chunk == 1:
        return whole + 1
    return whole + (1 + (rest - 1) // 8 if frames % chunk else 0)


def test_nvidia_counts_one_latent_in_seventeen_frames():
    lengths = [1, 9, 17, 25, 33, 41]
    assert [nvidias_count(frames) for frames in lengths] == [1, 2, 1, 4, 1, 6]
    assert [causal.latent_length(frames, 8) for frames in lengths] == [1, 2, 3, 4, 5, 6]


def test_nvidias_count_is_right_below_a_whole_clip_once_both_remainders_are_to_121():
    for frames in range(1, 121, 8):
        assert nvidias_count(frames, chunk=121) == causal.latent_length(frames, 8)


def given_frames_at_the_end(output_for, num_steps: int = 35) -> float:
    """A given latent of 1 through NVIDIA's Video2World sampling, its noise of 0.001 left out.

    Down to 0.001 each step starts again from the given latent; below, the network is left alone with it, and at such
    levels (at most 0.0006) it can do no more than keep it.
    """
    sigmas, augment_sigma, z = noise.karras_sigmas(num_steps, 2e-4, 80.0, 7.0), level(1e-3), level(1.0)
    x = z
    for sigma, sigma_next in pairwise(sigmas[:, None]):
        F = torch.zeros(1)
        if sigma > augment_sigma:
            x = z * edm.c_in(augment_sigma, SIGMA_DATA) / edm.c_in(sigma, SIGMA_DATA)
            F = output_for(z, x, sigma)
        x = solvers.euler_step(x, edm.denoise(F, x, sigma, SIGMA_DATA), sigma.item(), sigma_next.item())
    return x.item()


def test_nvidias_sampler_leaves_given_frames_1_59_times_too_strong():
    """z / c_out - c_skip x in place of (z - c_skip x) / c_out; fewer steps make it worse, more steps better."""

    def misplaced(z, x, sigma):
        return z / edm.c_out(sigma, SIGMA_DATA) - edm.c_skip(sigma, SIGMA_DATA) * x

    ends = [given_frames_at_the_end(misplaced, num_steps) for num_steps in (35, 10, 100)]
    assert ends == pytest.approx([1.587, 1.956, 1.261], abs=1e-3)


def test_with_the_right_inverse_given_frames_end_as_they_were_given():
    """To 1e-5: at 0.0006 the best denoiser of data of deviation 0.5 shrinks by 1e-6."""

    def right(z, x, sigma):
        return edm.network_target(z, x, sigma, SIGMA_DATA)

    assert [given_frames_at_the_end(right, n) for n in (35, 10, 100)] == pytest.approx([1, 1, 1], abs=1e-5)


def test_white_read_as_x_over_128_comes_back_one_grey_level_darker():
    grey = torch.arange(256, dtype=torch.float64)
    shown = (grey / 128 - 1 + 1) / 2 * 255
    assert (grey - shown).max().item() == pytest.approx(0.996, abs=1e-3) and (grey - shown).argmax() == 255


def given_by_diffusers(frames: int) -> tuple[int, list[float]]:
    """How many latents its pipeline takes as given, and the frames it encodes (each filled with its number)."""
    from diffusers import CosmosVideoToWorldPipeline

    met = []

    def encode(video):
        met.extend(video[0, 0, :, 0, 0].tolist())
        return SimpleNamespace(latents=torch.zeros(1, 16, 16, 2, 2))

    pipeline = SimpleNamespace(
        vae=SimpleNamespace(encode=encode, config=SimpleNamespace(latents_mean=None)),
        vae_scale_factor_temporal=8,
        vae_scale_factor_spatial=8,
        scheduler=SimpleNamespace(config=SimpleNamespace(sigma_data=SIGMA_DATA, sigma_max=80.0)),
    )
    video = torch.arange(1.0, 1.0 + frames).reshape(1, 1, frames, 1, 1).expand(1, 3, frames, 16, 16)
    sizes = dict(batch_size=1, num_channels_latents=16, height=16, width=16, num_frames=121)
    found = CosmosVideoToWorldPipeline.prepare_latents(
        pipeline, video, **sizes, do_classifier_free_guidance=False, dtype=torch.float32
    )
    return int(found[2].sum()), met


@pytest.mark.oracle
def test_diffusers_does_not_look_at_the_newest_three_of_twenty_frames():
    """Three latents are frames 1 to 17; 18 to 20 are encoded beside the padding, and not given. We refuse 20 frames."""
    latents, encoded = given_by_diffusers(20)
    assert latents == 3 and causal.clip_length(latents, 8) == 17
    assert encoded[:20] == list(range(1, 21)) and set(encoded[20:]) == {0.0}
    with pytest.raises(UserError, match="17 or 25"):
        causal.latent_length(20, 8)


@pytest.mark.oracle
def test_diffusers_has_nothing_left_to_generate_after_a_whole_clip():
    """All 16 latents of 121 frames are given: what comes out is what went in."""
    latents, encoded = given_by_diffusers(130)
    assert latents == 16 and encoded == list(range(10, 131))
