"""`cosmos-ref sample` on weights that diffusers wrote: the video is that of diffusers' own pipelines."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from diffusers import (
    AutoencoderKLCosmos,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    CosmosVideoToWorldPipeline,
    EDMEulerScheduler,
)
from transformers import AutoTokenizer, T5EncoderModel

from cosmos_ref import cli
from cosmos_ref.config import PRESETS, ClipConfig, TextConfig
from cosmos_ref.interop.names import diffusers_config
from cosmos_ref.pipelines.sample import noise_from_seed
from cosmos_ref.pipelines.world_model import WorldModel
from cosmos_ref.tokenizer.plan import plans_from_whole_to_smallest
from cosmos_ref.video_io import read_clip, write_video
from tests.conditioning.small_t5 import write_t5
from tests.oracles.test_trajectories import NoGuard
from tests.strategies import normal
from tests.tokenizer.small import SMALL

pytestmark = pytest.mark.oracle

CODER = replace(SMALL["CV8x8x8"], latent_frames=3)
SHAPE = (CODER.channels, 3, 4, 4)
STEPS, GUIDANCE, SEED = 5, 3.0, 3
NAMES = {False: "7b", True: "7b-video2world"}


def small(video2world):
    """The preset of 7B with small numbers; its text is as wide as the small T5."""
    config = PRESETS[NAMES[video2world]]
    model = replace(
        config.model, width=32, depth=2, num_heads=2, text_width=32, adaln_lora_dim=8, channels=5, max_tokens=(8, 8, 8)
    )
    return replace(
        config,
        model=model,
        tokenizer=CODER,
        text=TextConfig(encoder="t5", length=12, width=32),
        clip=ClipConfig(frames=17, height=32, width=32, fps=24.0),
        sample=replace(config.sample, precision="fp32"),
    )


class Unguarded(NoGuard):
    """Lets every prompt and video pass."""

    def check_text_safety(self, text):
        return True

    def check_video_safety(self, video):
        return video


@pytest.fixture(scope="module", params=[False, True], ids=["text2world", "video2world"])
def release(request, tmp_path_factory):
    """A pipeline's folder with random weights, written by diffusers and transformers; and the pipeline itself."""
    video2world = request.param
    folder, config = tmp_path_factory.mktemp("release"), small(video2world)
    generator = torch.Generator().manual_seed(0)
    arguments = {key: value for key, value in diffusers_config(config).items() if key != "_class_name"}
    transformer = CosmosTransformer3DModel(**arguments)
    statistics = [normal(i, CODER.channels * CODER.latent_frames).tolist() for i in (1, 2)]
    vae = AutoencoderKLCosmos(
        latent_channels=CODER.channels,
        encoder_block_out_channels=CODER.encoder_widths,
        decode_block_out_channels=CODER.decoder_widths[::-1],
        num_layers=CODER.num_blocks,
        latents_mean=statistics[0],
        latents_std=[abs(value) + 0.5 for value in statistics[1]],
    )
    with torch.no_grad():
        for weight in (*transformer.parameters(), *vae.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
        # So that a video stays within its range, where ours is cut off.
        vae.decoder.conv_out.conv_t.weight.mul_(0.01)
        vae.decoder.conv_out.conv_t.bias.mul_(0.01)
    transformer.save_pretrained(folder / "transformer", max_shard_size="100KB")  # in several files
    vae.save_pretrained(folder / "vae")
    write_t5(folder / "text_encoder", folder / "tokenizer")
    kind = CosmosVideoToWorldPipeline if video2world else CosmosTextToWorldPipeline
    pipeline = kind(
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer,
        vae,
        EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, final_sigmas_type="sigma_min"),
        safety_checker=Unguarded(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return folder, pipeline, video2world


def numbered_film(path, count=20):
    """A video whose frames are grey steps: the number of a frame can be read off it."""
    levels = torch.linspace(0.8, -0.8, count)
    write_video(path, levels[None, :, None, None].expand(3, count, 32, 32), 24.0)
    return path


def test_the_video_is_that_of_diffusers_pipeline(release, tmp_path, monkeypatch):
    """From the same folder, prompts, noise and conventions; given frames are the last of a longer film."""
    folder, pipeline, video2world = release
    config = small(video2world)
    monkeypatch.setitem(PRESETS, config.name, config)
    options = {"prompt": "a red marble falls", "negative_prompt": "a marble hits"}
    arguments = ["sample", "--preset", config.name, "--weights", str(folder), "--out", str(tmp_path / "a.mp4")]
    arguments += ["--prompt", options["prompt"], "--negative-prompt", options["negative_prompt"]]
    arguments += ["--like", "diffusers", "--num-steps", str(STEPS), "--guidance", str(GUIDANCE), "--seed", str(SEED)]
    arguments += ["--fps", "30", "--offload", "disk"]
    theirs_too = {}
    if video2world:
        film = numbered_film(tmp_path / "film.mp4")
        arguments += ["--frames", str(film), "--given", "9", "--augment-sigma", "0.1"]
        last = read_clip(film, frames=9, from_end=True).video
        assert last.mean((0, 2, 3)).diff().max() < -0.05 and last[:, -1].mean() < -0.75  # the ninth is the film's last
        theirs_too = {"video": (last[None].transpose(1, 2) + 1) / 2, "augment_sigma": 0.1}  # it wants [0, 1]
        streams = iter(range(2, 100))  # the first starts the sampler, the second is not used where noise is fresh
        monkeypatch.setattr(
            "diffusers.pipelines.cosmos.pipeline_cosmos_video2world.randn_tensor",
            lambda shape, **_: noise_from_seed(SEED, next(streams) * 2**32, SHAPE)[None],
        )
    ours, theirs = [], []
    monkeypatch.setattr("cosmos_ref.generate.write_video", lambda path, video, fps: ours.append((video, fps)))
    cli.main(arguments)
    decode = pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda *a, **b: theirs.append(decode(*a, **b)) or theirs[0])
    pipeline(
        **options,
        **theirs_too,
        height=32,
        width=32,
        num_frames=17,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        fps=30,
        latents=noise_from_seed(SEED, 0, SHAPE)[None],
        max_sequence_length=config.text.length,
    )
    (video, fps), expected = ours[0], theirs[0][0][0]
    assert fps == 30 and expected.abs().max() < 1 and expected.std() > 0.05
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-5)  # float32; 2e-7 was seen


# --- the same release, otherwise


@pytest.fixture
def sampled(release, tmp_path, monkeypatch):
    """Makes videos from the release by the command line, a few steps each, and gives them before they are written."""
    folder, _, video2world = release
    config = small(video2world)
    monkeypatch.setitem(PRESETS, config.name, config)
    made = []
    monkeypatch.setattr("cosmos_ref.generate.write_video", lambda path, video, fps: made.append(video))

    def sample(*options, weights=("--preset", config.name, "--weights", str(folder))):
        prompts = ["--prompt", "a red marble", "--negative-prompt", "a marble hits", "--num-steps", "3"]
        cli.main(["sample", *weights, "--out", str(tmp_path / "a.mp4"), *prompts, *map(str, options)])
        return made.pop()

    return sample


def test_what_becomes_of_the_parts_not_in_use_does_not_matter(sampled):
    kept, moved, read_again = (sampled("--offload", offload) for offload in ("none", "cpu", "disk"))
    assert torch.equal(kept, moved) and torch.equal(kept, read_again)


def test_embeddings_written_beforehand_make_the_same_video(release, sampled, tmp_path):
    folder, _, _ = release
    table = tmp_path / "prompts.safetensors"
    t5 = ["--t5", str(folder / "text_encoder"), "--preset", "7b-video2world" if release[2] else "7b"]
    cli.main(["encode-text", "a red marble", "a marble hits", "--out", str(table), *t5])
    assert torch.equal(sampled("--text-embeddings", table), sampled())


def test_a_converted_checkpoint_makes_the_same_video(release, sampled, tmp_path, capsys):
    folder, _, video2world = release
    cli.main(["convert", str(folder), "--out", str(tmp_path / "ours"), "--to", "ours"])
    name = "7b-video2world" if video2world else "7b"
    assert f"network and tokenizer of {name}, from diffusers to ours" in capsys.readouterr().out
    ours = "--weights", str(tmp_path / "ours"), "--t5", str(folder / "text_encoder")
    for precision in ("fp32", "bf16"):
        options = "--precision", precision, "--max-memory", 1
        converted, plan = sampled(*options, weights=ours), capsys.readouterr().out
        assert torch.equal(converted, sampled(*options))
        assert plan == capsys.readouterr().out


def test_pieces_that_fit_the_memory_make_the_same_video(sampled):
    """The tokenizer goes through the clip in chunks, which changes nothing but rounding."""
    whole = sampled("--offload", "disk")
    with mock.patch("cosmos_ref.pipelines.memory.plans_from_whole_to_smallest", in_single_frames):
        pieces = sampled("--offload", "disk")
    assert not torch.equal(pieces, whole)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


def in_single_frames(*clip):
    return [plan for plan in plans_from_whole_to_smallest(*clip) if plan.latent_frames == 1][:1]


def test_each_clip_of_a_long_video_goes_on_from_the_last_frames_of_the_one_before(release, sampled, monkeypatch):
    if not release[2]:
        with pytest.raises(SystemExit) as refusal:
            sampled("--clips", 2)
        assert refusal.value.code == cli.USAGE
        return
    met = []
    encode = WorldModel.encode
    monkeypatch.setattr(WorldModel, "encode", lambda self, video: met.append(video) or encode(self, video))
    long, short = sampled("--clips", 3, "--given", 9), sampled()
    assert long.shape[1] == 17 + 8 + 8
    assert torch.equal(long[:, :17], short)
    assert torch.equal(met[0][0], long[:, 8:17]) and torch.equal(met[1][0], long[:, 16:25])
    assert (long[:, 17:25] - long[:, 25:33]).abs().max() > 0.01  # other noise, another clip
