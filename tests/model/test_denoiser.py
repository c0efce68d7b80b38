import ast
import math
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cosmos_ref
from cosmos_ref.config import ModelConfig
from cosmos_ref.equations import edm
from cosmos_ref.model.denoiser import Text2WorldDenoiser, Video2WorldDenoiser, weighted_error
from cosmos_ref.model.dit import CosmosDiT
from tests.blocks.filled import filled
from tests.strategies import normal, seeds

S = 0.5  # sigma_data
CHANNELS = 3
V2W = ModelConfig(
    width=32,
    depth=2,
    num_heads=2,
    text_width=6,
    adaln_lora_dim=3,
    video2world=True,
    channels=CHANNELS,
    mlp_ratio=2.0,
    max_tokens=(4, 4, 4),
)
T2W = replace(V2W, video2world=False)
EXACT = dict(rtol=1e-11, atol=1e-11)  # float64 rounding through two blocks, of numbers of about ten
levels = st.floats(math.log(2e-3), math.log(80)).map(math.exp)
few = settings(max_examples=15)


def text_condition(seed=0, batch=2):
    return {
        "text_embeddings": normal(seed + 1, batch, 5, 6),
        "fps": torch.full((batch,), 24.0, dtype=torch.float64),
        "padding_mask": (normal(seed + 2, batch, 1, 4, 6) > 0).double(),
    }


def video_condition(seed=0, given_frames=(1, 2), augment_sigma=(0.1, 0.01)):
    mask = torch.arange(3)[None] < torch.tensor(given_frames)[:, None]
    return text_condition(seed) | {
        "frame_mask": mask.double().reshape(2, 1, 3, 1, 1),
        "given_latents": normal(seed + 3, 2, CHANNELS, 3, 4, 6),
        "augment_sigma": torch.tensor(augment_sigma, dtype=torch.float64),
    }


def noisy(seed=0):
    return normal(seed, 2, CHANNELS, 3, 4, 6)


def both(sigma):
    return torch.full((2,), sigma, dtype=torch.float64)


def seen(denoiser, *arguments, **condition):
    """D, and what the network met (its input) and said (F) on the way to it."""
    network = denoiser.network
    with mock.patch.object(network, "forward", wraps=network.forward) as forward:
        D = denoiser(*arguments, **condition)
    network_input, told, *rest = forward.call_args.args
    return D, network_input, told, network(network_input, told, *rest)


@pytest.fixture(scope="module")
def text2world():
    return Text2WorldDenoiser(filled(CosmosDiT(T2W)), S)


@pytest.fixture(scope="module")
def video2world():
    return Video2WorldDenoiser(filled(CosmosDiT(V2W)), S)


# --- preconditioning


@few
@given(a=levels, b=levels)
def test_a_denoiser_is_the_preconditioned_network(text2world, video2world, a, b):
    sigma, x = torch.tensor([a, b], dtype=torch.float64), noisy()
    var = (sigma**2 + S**2).reshape(-1, 1, 1, 1, 1)
    for denoiser, condition in ((text2world, text_condition()), (video2world, video_condition())):
        D, _, told, F = seen(denoiser, x, sigma, **condition)
        expected = x * S**2 / var + F * S * sigma.reshape(-1, 1, 1, 1, 1) / var.sqrt()
        torch.testing.assert_close(D, expected, **EXACT)
        torch.testing.assert_close(told, sigma.log() / 4, **EXACT)


def test_without_noise_the_denoised_estimate_is_the_sample(text2world, video2world):
    """|D - x| is sigma |F|, and F stays below 100 here."""
    x = noisy()
    for denoiser, condition in ((text2world, text_condition()), (video2world, video_condition())):
        torch.testing.assert_close(denoiser(x, both(1e-9), **condition), x, rtol=0, atol=1e-7)


@few
@given(sigma=levels, seed=seeds)
def test_network_input_is_latents_at_unit_variance_then_padding(text2world, sigma, seed):
    x, condition = noisy(seed), text_condition(seed)
    _, network_input, _, _ = seen(text2world, x, both(sigma), **condition)
    assert network_input.shape[1] == CHANNELS + 1
    torch.testing.assert_close(network_input[:, :CHANNELS], x / math.sqrt(sigma**2 + S**2), **EXACT)
    for frame in range(3):
        assert torch.equal(network_input[:, -1, frame], condition["padding_mask"][:, 0])


@few
@given(sigma=levels, seed=seeds)
def test_a_video_network_has_the_given_frames_mask_between_latents_and_padding(video2world, sigma, seed):
    """The mask stays when the frames are released, at any noise level."""
    condition = video_condition(seed)
    _, network_input, _, _ = seen(video2world, noisy(seed), both(sigma), **condition)
    assert network_input.shape[1] == CHANNELS + 2
    for frame in range(3):
        assert torch.equal(network_input[:, -1, frame], condition["padding_mask"][:, 0])
        expected = condition["frame_mask"][:, 0, frame].expand(2, 4, 6)
        assert torch.equal(network_input[:, CHANNELS, frame], expected)


@pytest.mark.parametrize("blind_to", ["padding_mask", "frame_mask"])
def test_mask_channels_meet_the_last_columns_of_the_patch_embedding(blind_to):
    """Weights are in order of channels, four to a patch: without a mask's four columns, nothing of it is felt."""
    network = filled(CosmosDiT(V2W))
    columns = slice(-4, None) if blind_to == "padding_mask" else slice(-8, -4)
    denoiser, x, sigma = Video2WorldDenoiser(network, S), noisy(), both(0.001)  # both samples' frames are released
    condition = video_condition()
    other = condition | {blind_to: 1 - condition[blind_to]}
    assert (denoiser(x, sigma, **condition) - denoiser(x, sigma, **other)).abs().max() > 1e-6
    with torch.no_grad():
        network.patch_embedding.weight[:, columns] = 0
    assert torch.equal(denoiser(x, sigma, **condition), denoiser(x, sigma, **other))


# --- given frames


@few
@given(seed=seeds, sigma=st.floats(0.2, 80))
def test_given_frames_come_at_unit_variance_for_their_own_noise(video2world, seed, sigma):
    x, condition = noisy(seed), video_condition(seed)
    _, network_input, _, _ = seen(video2world, x, both(sigma), **condition)
    for b, (n, augment_sigma) in enumerate(((1, 0.1), (2, 0.01))):
        expected = condition["given_latents"][b, :, :n] / math.sqrt(augment_sigma**2 + S**2)
        torch.testing.assert_close(network_input[b, :CHANNELS, :n], expected, **EXACT)
        expected = x[b, :, n:] / math.sqrt(sigma**2 + S**2)
        torch.testing.assert_close(network_input[b, :CHANNELS, n:], expected, **EXACT)


@few
@given(seed=seeds, factor=st.floats(0.01, 1.0))
def test_given_frames_are_released_once_the_sample_is_no_noisier_than_they_are(video2world, seed, factor):
    """At sigma = augment_sigma itself they are released, and each sample has its own level."""
    x, condition = noisy(seed), video_condition(seed)
    other = condition | {"given_latents": noisy(seed + 9)}
    released, held = factor * condition["augment_sigma"], condition["augment_sigma"] * 1.001
    assert torch.equal(video2world(x, released, **condition), video2world(x, released, **other))
    mixed = torch.stack([released[0], held[1]])
    difference = (video2world(x, mixed, **condition) - video2world(x, mixed, **other)).abs().amax(dim=(1, 2, 3, 4))
    assert difference[0] == 0 < difference[1]


@few
@given(seed=seeds, sigma=levels)
def test_what_is_not_given_is_not_seen(video2world, seed, sigma):
    x, condition = noisy(seed), video_condition(seed)
    elsewhere = 1 - condition["frame_mask"]
    other = condition | {"given_latents": condition["given_latents"] + 100 * elsewhere}
    assert torch.equal(video2world(x, both(sigma), **condition), video2world(x, both(sigma), **other))


@few
@given(seed=seeds, sigma=levels)
def test_with_no_frame_given_it_is_the_text2world_network(video2world, seed, sigma):
    """The one with the mask's four columns taken out."""
    weights = video2world.network.state_dict()
    own = 4 * CHANNELS
    embedding = weights["patch_embedding.weight"]
    weights["patch_embedding.weight"] = torch.cat([embedding[:, :own], embedding[:, own + 4 :]], dim=1)
    text2world = Text2WorldDenoiser(CosmosDiT(T2W).double(), S)
    text2world.network.load_state_dict(weights)
    expected = text2world(noisy(seed), both(sigma), **text_condition(seed))
    D = video2world(noisy(seed), both(sigma), **video_condition(seed, given_frames=(0, 0)))
    torch.testing.assert_close(D, expected, **EXACT)


# --- scale and precision


@given(seeds, levels)
@few
def test_prepared_once_a_denoiser_says_what_it_says_at_once(text2world, video2world, seed, sigma):
    """What a sampler calls, step by step, and what training calls are the same denoiser."""
    x, levels_ = noisy(seed), torch.tensor([sigma, 2 * sigma], dtype=torch.float64)
    for denoiser, condition in ((text2world, text_condition(seed)), (video2world, video_condition(seed))):
        condition = condition | {"fps": torch.tensor([24.0, 12.0], dtype=torch.float64)}
        rest = {name: tensor for name, tensor in condition.items() if name not in ("text_embeddings", "fps")}
        prepared = denoiser.prepare(x, condition["text_embeddings"], condition["fps"])
        stepwise = denoiser.run(x, levels_, denoiser.modulations(levels_), prepared, **rest)
        torch.testing.assert_close(stepwise, denoiser(x, levels_, **condition), **EXACT)


def test_sigma_data_multiplies_nowhere_but_in_the_equations():
    """Latents scaled twice, or by another hand, look fine and learn badly."""
    places = set()
    package = Path(cosmos_ref.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
                names = {getattr(side, "id", getattr(side, "attr", None)) for side in (node.left, node.right)}
                if "sigma_data" in names:
                    places.add(path.relative_to(package).as_posix())
    assert places == {"equations/edm.py", "equations/forms.py"}


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_a_bfloat16_network_errs_in_its_own_output_only(sigma):
    """bfloat16 has 8 bits: through two blocks F is right to about 1 %, and 5 % is allowed. The rest of D is float32:
    at sigma 0.002 that allows 1e-4 of x, where preconditioning in bfloat16 would err by 4e-3."""
    network = filled(CosmosDiT(V2W)).float()
    denoiser = Video2WorldDenoiser(network, S)
    condition = {name: value.float() for name, value in video_condition().items()}
    x = (math.sqrt(sigma**2 + S**2) * noisy()).float()
    exact, _, _, F = seen(denoiser, x, both(sigma).float(), **condition)
    network.bfloat16()
    rounded, network_input, told, _ = seen(denoiser, x, both(sigma).float(), **condition)
    assert (rounded.dtype, network_input.dtype, told.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    c_out = sigma * S / math.sqrt(sigma**2 + S**2)
    error, size = ((y.float().square().mean().sqrt().item()) for y in (rounded - exact, F))
    assert 0 < error < 0.05 * c_out * size


def test_the_estimate_has_the_precision_of_the_sample_whatever_the_network_has(text2world):
    """Here float32 around a network in float64, whose own errors are none."""
    x, sigma = noisy(), both(0.7)
    condition = {name: value.float() for name, value in text_condition().items()}
    D = text2world(x.float(), sigma.float(), **condition)
    assert D.dtype == torch.float32
    torch.testing.assert_close(D.double(), text2world(x, sigma, **text_condition()), rtol=1e-5, atol=1e-5)  # float32


# --- weighted error

X0, NOISE = S * normal(0, 256, 4, 3, 4, 4), normal(1, 256, 4, 3, 4, 4)
SIGMA = torch.exp(normal(2, 256))


def test_a_network_that_says_nothing_has_weighted_error_one():
    """For Gaussian latents, c_skip x misses x0 by exactly c_out: what lambda is made to weigh with one."""

    def says_nothing(x, sigma):
        return edm.denoise(torch.zeros_like(x), x, sigma, S)

    mean = weighted_error(says_nothing, X0, {}, NOISE, SIGMA, S).mean().item()
    assert mean == pytest.approx(1, abs=5 * (2 / X0.numel()) ** 0.5)  # five standard deviations of the mean


def test_the_denoiser_sees_noise_of_the_level_it_is_told():
    text = normal(3, 256, 2, 5)
    called = []

    def checks(x, sigma, text_embeddings):
        called.append(torch.equal(sigma, SIGMA) and text_embeddings is text)
        torch.testing.assert_close((x - X0) / sigma.reshape(-1, 1, 1, 1, 1), NOISE)
        return X0

    weighted_error(checks, X0, {"text_embeddings": text}, NOISE, SIGMA, S)
    assert called == [True]


def test_given_frames_have_no_error_and_no_gradient():
    """Whatever is estimated in them; the other frames still count over the whole clip."""
    estimate = normal(3, *X0.shape).requires_grad_()
    given = torch.arange(256) % 3
    frame_mask = (torch.arange(3) < given[:, None]).double().reshape(256, 1, 3, 1, 1)

    def ignores_the_given(x, sigma, frame_mask):
        return estimate

    error = weighted_error(ignores_the_given, X0, {"frame_mask": frame_mask}, NOISE, SIGMA, S)
    error.sum().backward()
    assert (estimate.grad * frame_mask).abs().max() == 0
    generated = (estimate.grad != 0).any(1).any(-1).any(-1)
    assert torch.equal(generated, torch.arange(3) >= given[:, None])
    plain = weighted_error(lambda x, sigma: estimate, X0, {}, NOISE, SIGMA, S)
    torch.testing.assert_close(error[given == 0], plain[given == 0])


def test_the_loss_is_summed_in_float32_whatever_the_network_returns():
    """In bfloat16 neither the estimate's difference from x0 nor its square would keep three digits."""
    rounded = X0.bfloat16()
    error = weighted_error(lambda x, sigma: rounded, X0.float(), {}, NOISE.float(), SIGMA.float(), S)
    assert error.dtype == torch.float32
    expected = edm.loss_weight(SIGMA, S) * (rounded.double() - X0).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(error.double(), expected, rtol=1e-4, atol=0)  # float32, and x0 was rounded to it


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_denoiser_that_knows_the_answer_has_no_error_in_any_precision(dtype):
    """Estimate and answer are rounded alike before they are compared."""
    x0 = X0.to(dtype)
    error = weighted_error(lambda x, sigma: x0, x0, {}, NOISE.to(dtype), SIGMA.float(), S)
    assert torch.equal(error, torch.zeros(256))
