"""The released models, from their presets alone. Nothing here has memory: all weights are on the meta device."""

from dataclasses import replace

import pytest

from cosmos_ref.config import PRESETS, ModelConfig
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty

RELEASED = {
    "7b": (7_236_192_256, 570),
    "7b-video2world": (7_236_208_640, 570),
    "14b": (14_267_149_312, 730),
    "14b-video2world": (14_267_169_792, 730),
}
GROUPS = {  # of the Text2World models, 7B and 14B
    "patch_embedding": (278_528, 348_160),
    "position_embedding.t": (524_288, 655_360),
    "position_embedding.h": (491_520, 614_400),
    "position_embedding.w": (491_520, 614_400),
    "noise_embedding.linear": (67_108_864, 104_857_600),
    "noise_embedding.norm": (4_096, 5_120),
    ".self_attention.": (1_879_055_360, 3_774_882_816),
    ".cross_attention.": (1_174_412_288, 2_264_933_376),
    ".mlp.": (3_758_096_384, 7_549_747_200),
    ".adaln_": (352_321_536, 566_231_040),
    "final_layer.adaln.": (3_145_728, 3_932_160),
    "final_layer.linear": (262_144, 327_680),
}


@pytest.mark.parametrize(("name", "numbers", "tensors"), [(name, *counts) for name, counts in RELEASED.items()])
def test_a_released_model_has_its_number_of_parameters(name, numbers, tensors):
    parameters = list(build_denoiser(PRESETS[name]).parameters())
    assert (sum(p.numel() for p in parameters), len(parameters)) == (numbers, tensors)


@pytest.mark.parametrize(("name", "column"), [("7b", 0), ("14b", 1)])
def test_every_group_of_a_released_model_has_its_number_of_parameters(name, column):
    parameters = dict(build_denoiser(PRESETS[name]).network.named_parameters())
    counts = {group: sum(p.numel() for n, p in parameters.items() if group in n) for group in GROUPS}
    assert counts == {group: count[column] for group, count in GROUPS.items()}
    assert sum(counts.values()) == sum(p.numel() for p in parameters.values())


@pytest.mark.parametrize("name", RELEASED)
def test_building_a_released_model_allocates_nothing(name):
    for module in (build_denoiser(PRESETS[name]), build_uncertainty(PRESETS[name])):
        assert all(tensor.is_meta for tensor in module.state_dict().values())


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_its_hyper_parameters(name):
    large = name.startswith("14b")
    assert PRESETS[name].model == ModelConfig(
        width=5120 if large else 4096,
        depth=36 if large else 28,
        num_heads=40 if large else 32,
        text_width=1024,
        adaln_lora_dim=256,
        video2world=name.endswith("video2world"),
        channels=16,
        mlp_ratio=4.0,
        patch_size=(1, 2, 2),
        rope_ratios=(2.0, 2.0, 2.0) if large else (2.0, 1.0, 1.0),
        max_tokens=(128, 120, 120),
    )


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_has_heads_and_patches_of_its_size(name):
    """What follows from the hyper-parameters: 128 channels a head; latents, then masks, in patches of four."""
    model, network = PRESETS[name].model, build_denoiser(PRESETS[name]).network
    assert model.head_dim == 128
    assert network.patch_embedding.in_features == 4 * (16 + (2 if model.video2world else 1))
    assert network.final_layer.linear.out_features == 4 * 16
    assert not [parameter for parameter, _ in network.named_parameters() if parameter.endswith("bias")]


@pytest.mark.parametrize("name", ["7b", "14b"])
def test_video2world_is_text2world_with_a_mask_and_nothing_else(name):
    text2world, video2world = PRESETS[name], PRESETS[f"{name}-video2world"]
    same = replace(video2world, name=name, model=replace(video2world.model, video2world=False))
    assert same == text2world
