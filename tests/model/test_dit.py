from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.config import ModelConfig
from cosmos_ref.equations.patches import grid_positions
from cosmos_ref.model.dit import CosmosDiT, token_grid
from tests.blocks.filled import filled
from tests.model.straight_line import straight_line
from tests.strategies import normal, seeds

SMALL = ModelConfig(
    width=24,
    depth=2,
    num_heads=2,
    text_width=6,
    adaln_lora_dim=3,
    video2world=True,
    channels=3,
    mlp_ratio=2.0,
    max_tokens=(16, 4, 4),
)
few = settings(max_examples=10)
EXACT = dict(rtol=1e-11, atol=1e-11)  # float64 rounding through two blocks, of numbers of about ten

model_configs = st.builds(
    ModelConfig,
    width=st.sampled_from([24, 28, 32]),  # two heads of 12, 14, 16: uneven axes too
    depth=st.integers(1, 3),
    num_heads=st.just(2),
    text_width=st.integers(1, 7),
    adaln_lora_dim=st.integers(1, 4),
    video2world=st.booleans(),
    channels=st.integers(1, 3),
    mlp_ratio=st.sampled_from([1.0, 2.5]),
    patch_size=st.sampled_from([(1, 2, 2), (1, 1, 2), (2, 2, 1)]),
    rope_ratios=st.tuples(*[st.sampled_from([1.0, 2.0, 0.7])] * 3),
    max_tokens=st.just((3, 3, 4)),
)


def inputs(config, grid=(2, 2, 3), batch=2, text_length=4, seed=0, fps=(24.0, 30.0)):
    T, H, W = (size * patch for size, patch in zip(grid, config.patch_size, strict=True))
    return {
        "x": normal(seed, batch, config.in_channels, T, H, W),
        "c_noise": normal(seed + 1, batch),
        "text_embeddings": normal(seed + 2, batch, text_length, config.text_width),
        "positions": grid_positions(grid, torch.device("cpu")),
        "fps": torch.tensor(fps[:batch], dtype=torch.float64),
    }


@pytest.fixture(scope="module")
def network():
    return filled(CosmosDiT(SMALL))


@settings(max_examples=25)
@given(
    config=model_configs,
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    text_length=st.integers(1, 4),
    fps=st.tuples(*[st.floats(5, 60)] * 2),
    seed=seeds,
)
def test_the_network_is_its_description(config, grid, text_length, fps, seed):
    network = filled(CosmosDiT(config), seed % 100)
    given_ = inputs(config, grid, 2, text_length, seed, fps)
    x, c_noise, text, _, fps_ = given_.values()
    expected = straight_line(dict(network.named_parameters()), config, x, c_noise, text, fps_)
    torch.testing.assert_close(network(**given_), expected, rtol=1e-10, atol=1e-10)


# --- laws


def test_prepared_once_it_serves_every_noise_level(network):
    given_ = inputs(SMALL)
    prepared = network.prepare(given_["text_embeddings"], given_["positions"], given_["fps"])
    c_noise = normal(1, 3)
    modulations = network.modulations(c_noise)
    for level in range(3):
        x = normal(10 + level, *given_["x"].shape)
        expected = network(**given_ | {"x": x, "c_noise": c_noise[level].expand(2)})
        torch.testing.assert_close(network.run(x, modulations.at(level), prepared), expected, **EXACT)


@few
@given(seed=seeds)
def test_a_clip_does_not_feel_its_neighbours_in_the_batch(network, seed):
    given_ = inputs(SMALL, batch=3, seed=seed, fps=(24.0, 30.0, 12.0))
    together = network(**given_)
    for i in range(3):
        alone = {name: value if name == "positions" else value[i : i + 1] for name, value in given_.items()}
        torch.testing.assert_close(network(**alone), together[i : i + 1], **EXACT)


@few
@given(fps=st.floats(1, 60))
def test_half_the_frame_rate_is_twice_the_time_between_frames(fps):
    """The learned table counts frames, so it is silenced here; the rotary time is frames over frame rate."""
    network = filled(CosmosDiT(SMALL))
    torch.nn.init.zeros_(network.position_embedding.t)
    given_ = inputs(SMALL) | {"fps": torch.tensor([fps, 24.0], dtype=torch.float64)}
    half = given_ | {"fps": given_["fps"] / 2}
    twice = given_ | {"positions": given_["positions"] * torch.tensor([2, 1, 1])}
    torch.testing.assert_close(network(**half), network(**twice), **EXACT)
    assert (network(**half) - network(**given_)).abs().max() > 1e-6


@few
@given(fps=st.floats(1, 60))
def test_an_image_has_no_frame_rate(network, fps):
    given_ = inputs(SMALL, grid=(1, 2, 3))
    other = given_ | {"fps": torch.full((2,), fps, dtype=torch.float64)}
    assert torch.equal(network(**given_), network(**other))


@few
@given(order=st.permutations(range(4)))
def test_the_text_is_a_set_of_rows(network, order):
    """What order words have, the text encoder says."""
    given_ = inputs(SMALL)
    shuffled = given_ | {"text_embeddings": given_["text_embeddings"][:, order]}
    torch.testing.assert_close(network(**shuffled), network(**given_), **EXACT)


@few
@given(seed=seeds, axis=st.integers(2, 4))
def test_the_network_tells_where_a_patch_stands(network, seed, axis):
    """Turned around along an axis, an input does not come out merely turned around."""
    given_ = inputs(SMALL, grid=(2, 2, 2), seed=seed)
    turned = network(**given_ | {"x": given_["x"].flip(axis)}).flip(axis)
    assert (turned - network(**given_)).abs().max() > 1e-3


def test_tokens_run_over_width_first_then_height_then_time():
    positions = grid_positions((2, 3, 4), torch.device("cpu"))
    assert positions[[1, 4, 12]].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert token_grid(torch.zeros(1, 1, 2, 6, 8), (1, 2, 2)) == (2, 3, 4)


def test_angles_in_bfloat16_are_off_as_far_as_nvidias():
    """At 704x1280 and 121 frames, 7B's inference is 0.026 rad off on t, 0.074 on h, 0.15 on w."""
    config = replace(
        SMALL,
        width=256,  # two heads of 128 channels
        depth=1,
        rope_ratios=(2.0, 1.0, 1.0),
        max_tokens=(16, 44, 80),
    )
    positions, tables = grid_positions((16, 44, 80), torch.device("cpu")), []
    for angles in ("bf16", "fp32"):
        network = filled(CosmosDiT(replace(config, angles=angles))).float()
        prepared = network.prepare(torch.zeros(1, 1, 6), positions, torch.tensor([24.0]))
        tables.append(torch.complex(prepared.cos, prepared.sin)[0, :, :64])
    error = (tables[0] / tables[1]).angle().abs().amax(dim=0)
    worst = [axis.max().item() for axis in error.split([22, 21, 21])]
    assert worst == pytest.approx([0.0255, 0.0740, 0.1481], abs=1e-4)


def test_the_epsilon_of_queries_and_keys_is_theirs_alone(network):
    given_ = inputs(SMALL)
    other = filled(CosmosDiT(replace(SMALL, qk_norm_eps=1e-2)))
    changed = {name: norm.eps for name, norm in other.named_modules() if isinstance(norm, RMSNorm) and norm.eps == 1e-2}
    assert len(changed) == 4 * SMALL.depth and all(name.endswith(("norm_q", "norm_k")) for name in changed)
    assert 1e-4 < (other(**given_) - network(**given_)).abs().max() < 1


def parameters_with_gradient(network, config):
    given_ = inputs(config, grid=tuple(config.max_tokens))
    network(**given_).square().mean().backward()
    return {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_gradients_reach_every_parameter():
    config = replace(SMALL, max_tokens=(2, 2, 3))
    network = filled(CosmosDiT(config))
    assert parameters_with_gradient(network, config) == {name for name, _ in network.named_parameters()}


def test_a_smaller_grid_takes_the_first_rows_of_the_position_tables():
    config = replace(SMALL, max_tokens=(4, 4, 4))
    network = filled(CosmosDiT(config))
    network(**inputs(config, grid=(2, 3, 1))).sum().backward()
    for axis, used in zip("thw", (2, 3, 1), strict=True):
        gradient = getattr(network.position_embedding, axis).grad.abs().amax(dim=1)
        assert (gradient > 0).tolist() == [i < used for i in range(4)]


def test_a_grid_larger_than_the_position_tables_is_an_error():
    config = replace(SMALL, max_tokens=(1, 4, 4))
    with pytest.raises(IndexError):
        filled(CosmosDiT(config))(**inputs(config, grid=(2, 2, 2)))
