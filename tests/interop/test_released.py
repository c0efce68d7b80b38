import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_ref.checkpoint import save_checkpoint
from cosmos_ref.config import PRESETS
from cosmos_ref.errors import UserError
from cosmos_ref.interop.convert import convert
from cosmos_ref.interop.names import from_ours, our_shapes, to_ours
from cosmos_ref.interop.released import open_release, t5_parameters
from cosmos_ref.interop.tokenizer_names import tokenizer_names
from tests.interop.files import (
    CODER,
    DISCRETE,
    WORLD,
    groups_of,
    nested,
    our_coder,
    same,
    values,
    write_jit,
    write_statistics,
    written,
)

FLOAT = dict(precision=torch.float32, device="cpu")
CODER_STATE = our_coder()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights of the last step and a tokenizer, as a checkpoint of ours."""
    state = groups_of(values(WORLD))
    folder = tmp_path_factory.mktemp("ours") / "checkpoint"
    return save_checkpoint(folder, WORLD, {"model": state["model"], "tokenizer": CODER_STATE}, {})


def beside(checkpoint, folder):
    """NVIDIA's tokenizer as safetensors in a folder, with statistics."""
    folder.mkdir(exist_ok=True)
    converted = convert(checkpoint, folder / "whole", "nvidia", max_shard_bytes=10**9).folder
    for name in ("autoencoder.safetensors", "mean_std.pt"):
        (converted / "tokenizer" / name).rename(folder / name)
    return folder


def pipeline(checkpoint, tmp_path):
    return convert(checkpoint, tmp_path / "a", "diffusers").folder, {}


def transformer_alone(checkpoint, tmp_path):
    folder = convert(checkpoint, tmp_path / "a", "diffusers", max_shard_bytes=30_000).folder
    return folder / "transformer", {"tokenizer": folder / "vae"}


def nvidia(checkpoint, tmp_path):
    return convert(checkpoint, tmp_path / "a", "nvidia").folder, {}


def nvidia_pickle_without_prefix(checkpoint, tmp_path):
    folder = tmp_path / "a"
    beside(checkpoint, folder)
    state = load_file(folder / "whole" / "model.safetensors")
    torch.save({name.removeprefix("net."): tensor for name, tensor in state.items()}, folder / "model.pt")
    return folder, {}


def training(checkpoint, tmp_path):
    _, state = written(tmp_path / "a", "nvidia-training", WORLD)
    state = {name: values(WORLD)[name.replace("ema.", "model.", 1)] for name in state}  # both sets are the same
    torch.save(nested(state, WORLD), tmp_path / "iter_000000100_model.pt")
    return tmp_path / "iter_000000100_model.pt", {"tokenizer": beside(checkpoint, tmp_path / "coder")}


def one_file(checkpoint, tmp_path):
    written(tmp_path / "a", "diffusers", WORLD)
    return tmp_path / "a" / "model.safetensors", {"tokenizer": checkpoint}


def ours(checkpoint, tmp_path):
    return checkpoint, {}


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (pipeline, "diffusers"),
        (transformer_alone, "diffusers"),
        (nvidia, "nvidia"),
        (nvidia_pickle_without_prefix, "nvidia"),
        (training, "nvidia-training"),
        (one_file, "diffusers"),
        (ours, "ours"),
    ],
)
def test_every_layout_is_recognised_and_gives_the_same_weights(make, layout, checkpoint, tmp_path):
    folder, more = make(checkpoint, tmp_path)
    release = open_release(folder, WORLD, **more, **FLOAT)
    assert release.layout == layout
    denoiser, tokenizer = release.load_denoiser(), release.load_tokenizer()
    same(denoiser.state_dict(), groups_of(values(WORLD))["model"])
    same(tokenizer.state_dict(), CODER_STATE)
    assert not any(weight.requires_grad for weight in (*denoiser.parameters(), *tokenizer.parameters()))
    assert not denoiser.training and not tokenizer.training


def test_nvidias_folder_as_it_is_published(tmp_path):
    """A pickle and TorchScript, which takes a word of consent."""
    _, state = written(tmp_path / "other", "nvidia", WORLD)
    names = from_ours("nvidia", WORLD)
    (tmp_path / "release").mkdir()
    torch.save({names[name]: tensor for name, tensor in state.items()}, tmp_path / "release" / "model.pt")
    theirs = write_jit(tmp_path / "release" / "tokenizer", CODER)
    mean, _ = write_statistics(tmp_path / "release" / "tokenizer")
    with pytest.raises(UserError, match=r"encoder\.jit is TorchScript.*allow"):
        open_release(tmp_path / "release", WORLD, **FLOAT)
    tokenizer = open_release(tmp_path / "release", WORLD, allow_torchscript=True, **FLOAT).load_tokenizer()
    names = tokenizer_names(CODER, "nvidia")
    for name, weight in tokenizer.named_parameters():
        assert torch.equal(weight, theirs[names[name]])
    assert torch.equal(tokenizer.mean, mean.view(5, 16)[:, :3])


def test_the_average_is_preferred(checkpoint, tmp_path):
    _, state = written(tmp_path / "a", "nvidia-training", WORLD)
    torch.save(nested(state, WORLD), tmp_path / "model.pt")
    release = open_release(tmp_path / "model.pt", WORLD, tokenizer=checkpoint, precision=torch.bfloat16, device="cpu")
    same(release.load_denoiser().state_dict(), groups_of(state)["ema"])


def test_weights_take_the_precision_and_the_bytes_that_were_announced(checkpoint, tmp_path):
    for precision in (torch.float32, torch.bfloat16, torch.float64):
        release = open_release(checkpoint, WORLD, precision=precision, device="cpu")
        modules = {"denoiser": release.load_denoiser(), "tokenizer": release.load_tokenizer()}
        for name, module in modules.items():
            assert {tensor.dtype for tensor in module.state_dict().values()} == {precision}
            assert sum(tensor.nbytes for tensor in module.state_dict().values()) == release.bytes[name]
        assert release.bytes.keys() == modules.keys()


def test_the_text_encoder_of_a_pipeline_is_found_and_weighed(checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    folder, _ = pipeline(checkpoint, tmp_path)
    for gated in ("relu", "gated-gelu"):
        config = transformers.T5Config(
            vocab_size=11, d_model=24, d_kv=7, d_ff=50, num_layers=3, num_heads=5, feed_forward_proj=gated
        )
        config.save_pretrained(folder / "text_encoder")
        release = open_release(folder, WORLD, precision=torch.bfloat16, device="cpu")
        assert release.t5_folder == folder / "text_encoder"
        with torch.device("meta"):
            numbers = sum(weight.numel() for weight in transformers.T5EncoderModel(config).parameters())
        assert release.bytes["text_encoder"] == 2 * numbers
    elsewhere = (folder / "text_encoder").rename(tmp_path / "t5")
    assert open_release(folder, WORLD, t5=elsewhere, **FLOAT).t5_folder == elsewhere
    (elsewhere / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"config\.json is not of a T5 model"):
        t5_parameters(elsewhere)


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "asked"),
    [("14b-video2world", "7b"), ("7b", "7b-video2world"), ("7b-video2world", "14b"), ("tiny", "micro")],
)
@pytest.mark.parametrize("layout", ["nvidia", "nvidia-training", "diffusers"])
def test_weights_of_another_preset_say_which_one(weights, asked, layout):
    shapes = our_shapes(PRESETS[weights])
    theirs = {name: shapes[ours] for ours, name in from_ours(layout, PRESETS[weights]).items()}
    with pytest.raises(UserError, match=f"^these are weights of {weights}, not of {asked}: ask for preset {weights}"):
        to_ours(theirs, layout, PRESETS[asked])


def change(name, value):
    def apply(folder):
        file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        state = load_file(file)
        state[name] = value(state[name])
        save_file({name: tensor for name, tensor in state.items() if tensor is not None}, file)

    return apply


def config_with(part="transformer", **values):
    def apply(folder):
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


def cut(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


WEIGHT = "transformer_blocks.1.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(WEIGHT, lambda t: None), f"missing: {WEIGHT}"),
        (change(WEIGHT, lambda t: t[:, :-1].clone()), f"of another shape: {WEIGHT} is .32, 15., should be .32, 16."),
        (change(WEIGHT, lambda t: t.to(torch.int8)), f"{WEIGHT} of .* is I8"),
        (config_with(rope_scale=[2.0, 1.0, 1.0]), r"rope_scale is \[2.0, 1.0, 1.0\], should be \[1.0, 1.0, 1.0\]"),
        (config_with(max_size=[1, 2, 3]), "max_size is"),
        (cut, r"vae/diffusion_pytorch_model\.safetensors is no whole safetensors file"),
        (lambda folder: (folder / "vae" / "config.json").write_text("{}"), r"config\.json has no mean and standard"),
        (lambda folder: (folder / "vae" / "config.json").unlink(), r"config\.json cannot be read"),
        (
            lambda folder: (folder / "transformer" / "config.json").write_text("5"),
            r"config\.json should hold an object",
        ),
        *((config_with("vae", latents_mean=value), "no lists of numbers") for value in ("abc", {"a": 1}, [["x"]])),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_loaded(damage, message, checkpoint, tmp_path, monkeypatch):
    folder, _ = pipeline(checkpoint, tmp_path)
    damage(folder)
    monkeypatch.setattr("cosmos_ref.interop.released.read_finite", None)  # nothing asks for values
    with pytest.raises(UserError, match=message):
        open_release(folder, WORLD, **FLOAT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_when_it_is_read(value, checkpoint, tmp_path):
    folder, _ = pipeline(checkpoint, tmp_path)
    change(WEIGHT, lambda t: t.index_fill(1, torch.tensor([3]), value))(folder)
    release = open_release(folder, WORLD, **FLOAT)
    with pytest.raises(UserError, match=f"{WEIGHT} of .*transformer.* is not finite"):
        release.load_denoiser()


def test_a_folder_without_a_part_says_which(checkpoint, tmp_path):
    folder, _ = pipeline(checkpoint, tmp_path)
    with pytest.raises(UserError, match="holds no network"):
        open_release(folder / "vae", WORLD, **FLOAT)
    with pytest.raises(UserError, match="transformer holds no tokenizer"):
        open_release(folder / "transformer", WORLD, **FLOAT)
    with pytest.raises(UserError, match="is empty"):
        (tmp_path / "empty").mkdir()
        open_release(tmp_path / "empty", WORLD, **FLOAT)


def test_tensors_that_nobody_knows_are_refused(tmp_path):
    save_file({"unet.conv.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"nobody calls the tensors of a Cosmos network so:\n  unet\.conv\.weight"):
        open_release(tmp_path, WORLD, **FLOAT)


def test_a_checkpoint_of_ours_is_not_taken_for_a_model_of_the_same_shapes(checkpoint):
    turned = replace(WORLD, model=replace(WORLD.model, rope_ratios=(2.0, 1.0, 1.0)))
    with pytest.raises(UserError, match="with other numbers than micro"):
        open_release(checkpoint, turned, **FLOAT)
    longer = replace(WORLD, tokenizer=replace(CODER, latent_frames=4))
    with pytest.raises(UserError, match="has another tokenizer"):
        open_release(checkpoint, longer, **FLOAT)
    rounded = replace(WORLD, model=replace(WORLD.model, angles="bf16"))  # the sampler's choice
    assert open_release(checkpoint, rounded, **FLOAT).config == rounded


def test_a_discrete_tokenizer_is_nothing_to_sample_with(checkpoint):
    with pytest.raises(UserError, match="discrete"):
        open_release(checkpoint, replace(WORLD, tokenizer=DISCRETE), **FLOAT)
