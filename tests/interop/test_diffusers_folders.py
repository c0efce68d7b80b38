"""What we write for diffusers, diffusers loads; what it writes, we load."""

import pytest
import torch

from cosmos_ref.checkpoint import save_checkpoint
from cosmos_ref.interop.convert import convert
from cosmos_ref.interop.names import diffusers_config, from_ours
from cosmos_ref.interop.released import open_release
from cosmos_ref.interop.tokenizer_names import tokenizer_names, vae_config
from tests.interop.files import CODER, WORLD, groups_of, our_coder, same, values
from tests.tokenizer.small import drawn_video

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    state = groups_of(values(WORLD))
    groups = {"model": state["model"], "tokenizer": our_coder()}
    return save_checkpoint(tmp_path_factory.mktemp("ours") / "checkpoint", WORLD, groups, {})


@torch.no_grad()
@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000], ids=["one file", "shards"])
def test_diffusers_loads_the_folders_that_convert_writes(checkpoint, max_shard_bytes, tmp_path, monkeypatch):
    from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel

    # Parts that stay in float32 make it ask for accelerate, which is not installed; here all are float32.
    monkeypatch.setattr(CosmosTransformer3DModel, "_keep_in_fp32_modules", None)

    folder = convert(checkpoint, tmp_path / "out", "diffusers", max_shard_bytes=max_shard_bytes).folder
    transformer, report = CosmosTransformer3DModel.from_pretrained(folder / "transformer", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    names = from_ours("diffusers", WORLD)
    same(transformer.state_dict(), {names[f"model.{name}"]: t for name, t in groups_of(values(WORLD))["model"].items()})
    assert {key: transformer.config[key] for key in diffusers_config(WORLD) if key[0] != "_"} == {
        key: value for key, value in diffusers_config(WORLD).items() if key[0] != "_"
    }
    vae, report = AutoencoderKLCosmos.from_pretrained(folder / "vae", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, 5, -1, 1, 1) for name in ("mean", "std"))
    ours = open_release(checkpoint, WORLD, precision=torch.float32, device="cpu").load_tokenizer()
    video = drawn_video(1, 17).float()
    # float32: the same sums in another order, as in the parity tests of the tokenizer.
    torch.testing.assert_close(
        (vae.encode(video).latent_dist.mode() - mean) / std, ours.encode(video), rtol=1e-4, atol=1e-4
    )


def test_we_load_the_folders_that_diffusers_writes(tmp_path):
    from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel

    state = our_coder()
    plain = {key: value for key, value in diffusers_config(WORLD).items() if key[0] != "_"}
    transformer = CosmosTransformer3DModel(**plain)
    settings = vae_config(CODER, state["mean"], state["std"])
    vae = AutoencoderKLCosmos(**{key: value for key, value in settings.items() if key[0] != "_"})
    transformer.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    vae.save_pretrained(tmp_path / "vae")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    release = open_release(tmp_path, WORLD, precision=torch.float32, device="cpu")
    theirs, names = transformer.state_dict(), from_ours("diffusers", WORLD)
    same(
        release.load_denoiser().state_dict(),
        {name.removeprefix("model."): theirs[there] for name, there in names.items()},
    )
    theirs, names = vae.state_dict(), tokenizer_names(CODER)
    statistics = {name: state[name] for name in ("mean", "std")}
    same(release.load_tokenizer().state_dict(), {name: theirs[there] for name, there in names.items()} | statistics)
