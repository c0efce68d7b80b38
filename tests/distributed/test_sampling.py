import contextlib
import copy
from dataclasses import replace

import torch

from cosmos_ref import cli
from cosmos_ref.checkpoint import save_checkpoint
from cosmos_ref.config import ParallelConfig
from cosmos_ref.distributed import fsdp
from cosmos_ref.distributed import layout as layouts
from cosmos_ref.distributed.layout import ManyProcesses
from cosmos_ref.pipelines.text2world import text2world
from cosmos_ref.pipelines.video2world import video2world
from cosmos_ref.pipelines.world_model import in_memory
from cosmos_ref.video_io import read_clip, write_video
from tests.distributed.cases import CPU
from tests.pipelines.micro import micro, moving_waves
from tests.ranks import run_ranks

PROMPTS = ["a wave", None]
LIMIT = dict(rtol=0, atol=1e-5)
"""Float32 rounding of latents of about one, through four steps."""


def clips(model):
    """Latents of both pipelines, with guidance, in clips of two sizes."""
    settings = replace(model.config.sample, guidance=1.5, solver="res_2ab")
    clip = replace(model.config.clip, width=24)
    return [
        text2world(model, PROMPTS, model.config.clip, settings).x0,
        text2world(model, PROMPTS, clip, settings).x0,
        video2world(model, moving_waves(3, clips=2, frames=1), PROMPTS, model.config.clip, settings).x0,
    ]


def samples_are_those_of_one_process(expected):
    for spread_weights in (False, True):
        model = micro()
        denoiser = copy.deepcopy(model.denoiser)
        layout = ManyProcesses(ParallelConfig(cp=4), model.config.model.num_heads, CPU, "fp32", spread_weights)
        layout.place(denoiser)
        together = in_memory(model.config, denoiser, model.tokenizer, model.text_encoder)
        for mine, one in zip(clips(together), expected, strict=True):
            torch.testing.assert_close(mine, one, **LIMIT)


def test_four_processes_sample_what_one_does():
    """By the same samplers, with the weights in every process or spread."""
    run_ranks(samples_are_those_of_one_process, 4, clips(micro()))


def new_weights_are_sampled_from():
    model = micro()
    denoiser = copy.deepcopy(model.denoiser)
    layout = ManyProcesses(ParallelConfig(), model.config.model.num_heads, CPU)
    layout.place(denoiser)
    together = in_memory(model.config, denoiser, model.tokenizer, model.text_encoder)
    settings = model.config.sample

    def sampled():
        return text2world(together, [None], model.config.clip, settings).x0

    before = sampled()
    for tensor in denoiser.state_dict().values():
        layout.write(tensor, layout.whole(tensor) * 0.5)
    fsdp.give_back(denoiser)
    half = copy.deepcopy(model.denoiser)
    for parameter in half.parameters():
        parameter.mul_(0.5)
    alone = in_memory(model.config, half, model.tokenizer, model.text_encoder)
    torch.testing.assert_close(sampled(), text2world(alone, [None], model.config.clip, settings).x0, **LIMIT)
    assert (sampled() - before).abs().max() > 1e-2


def test_weights_written_later_are_those_sampled_from():
    run_ranks(new_weights_are_sampled_from, 2)


def sample_by_command(weights, out, frames):
    layouts.joined = lambda device: contextlib.nullcontext(torch.device(device))  # run_ranks has
    cli.main(["sample", "--weights", str(weights), "--out", str(out), "--frames", str(frames), "--prompt", "a wave"])


def test_the_command_makes_the_same_clip_with_any_number_of_processes(tmp_path):
    """To one grey level, and one more where it is rounded."""
    model = micro()
    groups = {"model": model.denoiser.state_dict(), "tokenizer": model.tokenizer.state_dict()}
    weights = save_checkpoint(tmp_path / "weights", model.config, groups, {"step": 1})
    frames = write_video(tmp_path / "given.png", moving_waves(3, clips=1, frames=1)[0], 24)
    cli.main(["sample", "--weights", str(weights), "--out", str(tmp_path / "one.gif"), "--frames", str(frames),
              "--prompt", "a wave"])  # fmt: skip
    run_ranks(sample_by_command, 2, weights, tmp_path / "two.gif", frames)
    one, two = (read_clip(tmp_path / name).video for name in ("one.gif", "two.gif"))
    assert one.std() > 0.1
    torch.testing.assert_close(two, one, rtol=0, atol=2 * 2 / 255)
