"""A training that starts from another one's weights starts where that one stood."""

import dataclasses

import pytest
import torch

from cosmos_ref.checkpoint import load_strict, save_checkpoint
from cosmos_ref.config import PRESETS, preset
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import build_denoiser, new_model
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.initial import load_initial
from cosmos_ref.training.run import start_run
from cosmos_ref.training.sources import WorldSource
from tests.blocks.filled import filled
from tests.strategies import normal

MICRO = PRESETS["micro"]


def changed(section, **settings):
    return dataclasses.replace(MICRO, **{section: dataclasses.replace(getattr(MICRO, section), **settings)})


TEXT2WORLD = changed("model", video2world=False)


def weights(config, seed=0):
    """A denoiser in which nothing is zero or one, rounded to the float32 of a checkpoint."""
    return filled(build_denoiser(config).to_empty(device="cpu"), seed).float()


def saved(folder, config, **groups):
    return save_checkpoint(folder, config, groups, {"step": 3})


def started(config, folder):
    denoiser = build_denoiser(config)
    load_strict(denoiser, load_initial(config, folder).denoiser, "the denoiser")
    return denoiser.double()


def arguments(frames=2, height=4, width=4):
    """A batch of two: noisy latents, levels, text, frame rates, padding."""
    padding = (normal(5, 2, 1, height, width) > 0).double()
    levels = torch.tensor([0.4, 3.0], dtype=torch.float64)
    rates = torch.tensor([24.0, 12.0], dtype=torch.float64)
    return normal(1, 2, 16, frames, height, width), levels, normal(2, 2, 24, 16), rates, padding


def test_a_video2world_network_from_text2world_weights_does_not_see_which_frames_are_marked(tmp_path):
    """Whatever the mask is: its weights are zero.

    Float64, to 1e-12: the products with zero are exact, but a longer sum may be added in another order.
    """
    text2world = weights(TEXT2WORLD)
    video2world = started(MICRO, saved(tmp_path / "c", TEXT2WORLD, model=text2world.state_dict()))
    x, sigma, text, fps, padding = arguments()
    expected = text2world.double()(x, sigma, text, fps, padding)
    assert expected.std() > 0.1
    unmarked = torch.zeros(2, 1, 2, 1, 1, dtype=torch.float64)
    above = 2 * sigma  # given frames that are noisier than the sample are not put in, but stay marked
    for mask in (unmarked, 1 - unmarked, (normal(3, 2, 1, 2, 1, 1) > 0).double()):
        found = video2world(x, sigma, text, fps, padding, mask, normal(4, *x.shape), above)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_video2world_network_from_text2world_weights_can_learn_the_mask(tmp_path):
    text2world = weights(TEXT2WORLD)
    video2world = started(MICRO, saved(tmp_path / "c", TEXT2WORLD, model=text2world.state_dict()))
    x, sigma, text, fps, padding = arguments()
    mask = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 2, 1, 1).expand(2, 1, 2, 1, 1)
    video2world(x, sigma, text, fps, padding, mask, x, 2 * sigma).square().sum().backward()
    gradient = video2world.network.patch_embedding.weight.grad
    columns = gradient.unflatten(1, (18, 4))  # patches of 1 x 2 x 2, channel outermost
    assert (columns[:, 16].abs().amax(dim=0) > 1e-3).all()  # the mask stands behind 16 channels of latents
    assert (video2world.network.patch_embedding.weight.unflatten(1, (18, 4))[:, 16] == 0).all()


@pytest.mark.parametrize("config", [MICRO, TEXT2WORLD], ids=["video2world", "text2world"])
def test_the_same_network_gets_the_very_weights_of_its_average(tmp_path, config):
    ema, model = weights(config, 1).state_dict(), weights(config, 2).state_dict()
    _, uncertainty = new_model(config, torch.Generator().manual_seed(3))
    uncertainty = filled(uncertainty).float().state_dict()
    tokenizer = {"mean": torch.ones(3)}
    folder = saved(tmp_path / "c", config, model=model, ema=ema, uncertainty=uncertainty, tokenizer=tokenizer)
    found = load_initial(config, folder)
    for expected, tensors in ((ema, found.denoiser), (uncertainty, found.uncertainty), (tokenizer, found.tokenizer)):
        assert expected.keys() == tensors.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_a_run_gives_its_newest_checkpoint_and_without_an_average_the_last_weights(tmp_path):
    for step in (2, 10):
        saved(tmp_path / "checkpoints" / f"step_{step:07d}", MICRO, model=weights(MICRO, step).state_dict())
    found = load_initial(MICRO, tmp_path)
    assert torch.equal(
        found.denoiser["network.blocks.1.mlp.layer1.weight"], weights(MICRO, 10).network.blocks[1].mlp.layer1.weight
    )
    assert found.folder.name == "step_0000010" and found.uncertainty is None and found.tokenizer is None


def test_weights_in_half_precision_become_float32(tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in weights(MICRO).state_dict().items()}
    found = load_initial(MICRO, saved(tmp_path / "c", MICRO, model=half))
    assert all(torch.equal(found.denoiser[name], tensor.float()) for name, tensor in half.items())
    assert {tensor.dtype for tensor in found.denoiser.values()} == {torch.float32}


def test_fewer_positions_leave_the_output_as_it_was(tmp_path):
    larger = changed("model", max_tokens=(16, 20, 24))
    before = weights(larger)
    after = started(MICRO, saved(tmp_path / "c", larger, model=before.state_dict()))
    x, sigma, text, fps, padding = arguments(frames=3, height=8, width=8)
    rest = (torch.zeros(2, 1, 3, 1, 1, dtype=torch.float64), x, sigma)
    expected = before.double()(x, sigma, text, fps, padding, *rest)
    torch.testing.assert_close(after(x, sigma, text, fps, padding, *rest), expected, rtol=0, atol=0)


def test_what_a_stage_may_change_is_free(tmp_path):
    folder = saved(tmp_path / "c", MICRO, model=weights(MICRO).state_dict())
    later = dataclasses.replace(
        changed("model", rope_ratios=(1.0, 2.0, 2.0)),
        name="later",
        clip=dataclasses.replace(MICRO.clip, frames=9, height=32, width=32),
        train=dataclasses.replace(MICRO.train, learning_rate=1e-4, seed=7),
    )
    assert load_initial(later, folder).config == MICRO


def test_every_difference_that_does_not_fit_is_listed(tmp_path):
    folder = saved(tmp_path / "c", MICRO, model=weights(MICRO).state_dict())
    other = dataclasses.replace(
        MICRO,
        model=dataclasses.replace(
            MICRO.model, width=64, depth=3, channels=8, video2world=False, max_tokens=(16, 17, 16)
        ),
        tokenizer=dataclasses.replace(MICRO.tokenizer, channels=8),
        diffusion=dataclasses.replace(MICRO.diffusion, sigma_data=1.0),
    )
    with pytest.raises(UserError) as refusal:
        load_initial(other, folder)
    message = str(refusal.value)
    for field in ("width", "depth", "channels", "video2world", "max_tokens"):
        assert f"model.{field}: there" in message
    assert "there 2, here 3" in message and "tokenizer: " in message and "diffusion.sigma_data: " in message
    assert "num_heads" not in message


def test_a_network_that_is_not_whole_is_refused(tmp_path):
    tensors = weights(MICRO).state_dict()
    lost = {name: t for name, t in tensors.items() if name != "network.blocks.0.mlp.layer1.weight"}
    with pytest.raises(UserError, match=r"blocks.0.mlp.layer1.weight: missing, not \(128, 32\)"):
        load_initial(MICRO, saved(tmp_path / "lost", MICRO, model=lost))
    broken = tensors | {"network.final_layer.linear.weight": tensors["network.final_layer.linear.weight"] * torch.nan}
    patchless = {name: t for name, t in tensors.items() if "patch_embedding" not in name}
    with pytest.raises(UserError, match=r"patch_embedding.weight: missing"):
        load_initial(MICRO, saved(tmp_path / "patchless", TEXT2WORLD, model=patchless))
    with pytest.raises(UserError, match=r"final_layer.linear.weight.*earlier checkpoint"):
        load_initial(MICRO, saved(tmp_path / "broken", MICRO, model=broken))
    with pytest.raises(UserError, match="holds no network"):
        load_initial(MICRO, saved(tmp_path / "none", MICRO, tokenizer={"mean": torch.ones(1)}))


def test_weights_that_are_no_checkpoint_are_told_how_to_become_one(tmp_path):
    with pytest.raises(UserError, match=r"holds no complete checkpoint.*cosmos-ref convert WEIGHTS --to ours"):
        load_initial(MICRO, tmp_path)
    file = tmp_path / "model.pt"
    file.touch()
    with pytest.raises(UserError, match=r"is a file.*cosmos-ref convert"):
        load_initial(MICRO, file)


def test_the_released_presets_start_from_one_another_in_names_and_sizes():
    """7B Text2World weights, as sizes only, become a Video2World network's."""
    from cosmos_ref.training.initial import fit_network

    for name in ("7b", "14b"):
        then, now = preset(name), preset(f"{name}-video2world")
        tensors = build_denoiser(then).state_dict()
        fitted = fit_network(dict(tensors), then.model, now.model)
        expected = build_denoiser(now).state_dict()
        assert {key: t.shape for key, t in fitted.items()} == {key: t.shape for key, t in expected.items()}


def test_weights_are_not_trained_on_the_latents_of_another_tokenizer(tmp_path):
    source = WorldSource(MICRO.clip, MICRO.data.world, MICRO.train.seed)
    denoiser, uncertainty = new_model(MICRO, torch.Generator().manual_seed(0))
    known, other = (HaarPCATokenizer.fit(MICRO.tokenizer, source.clips(range(i, i + 8)).video) for i in (0, 100))
    groups = {"model": denoiser, "uncertainty": uncertainty, "tokenizer": known}
    tensors = {name: module.state_dict() for name, module in groups.items()}
    initial = load_initial(MICRO, save_checkpoint(tmp_path / "c", MICRO, tensors, {"step": 1}))
    with pytest.raises(UserError, match="another tokenizer"):
        start_run(MICRO, source, initial=initial, tokenizer=other)
    assert torch.equal(start_run(MICRO, source, initial=initial, tokenizer=known).tokenizer.axes, known.axes)
