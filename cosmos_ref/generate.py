"""What `cosmos-ref sample` and `tokenize` do: find the parts of a model, plan the memory, work, write."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from cosmos_ref.adapter import load_adapter
from cosmos_ref.blocks.lora import merge_lora
from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint
from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.conditioning.text_table import TextTable
from cosmos_ref.config import Config, ParallelConfig, latent_shape, preset
from cosmos_ref.distributed import layout as layouts
from cosmos_ref.doctor import memory
from cosmos_ref.equations.causal import clip_length
from cosmos_ref.errors import UserError
from cosmos_ref.interop.released import open_release, open_tokenizer, t5_parameters
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, find_device
from cosmos_ref.pipelines.conventions import like
from cosmos_ref.pipelines.memory import GIB, NAMES, MemoryPlan, check_memory, plan_memory, unit_of
from cosmos_ref.pipelines.text2world import text2world
from cosmos_ref.pipelines.tokenize import longest_clip, tokenize_file
from cosmos_ref.pipelines.video2world import extend, given_latents, video2world
from cosmos_ref.pipelines.world_model import DTYPES, Part, WorldModel, checkpoint_parts, require_parts
from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.plan import Plan
from cosmos_ref.video_io import Clip, check_output, probe, read_clip, write_video

if TYPE_CHECKING:
    from cosmos_ref.cli import Request

Progress = Callable[[Iterable], Iterable]


def generate(request: "Request", console: Console, progress: Progress) -> None:
    """Make a clip and write it; the processes that torchrun started share its tokens, and the first one writes.

    Raises:
        UserError: something that was asked for cannot be had.
    """
    if "RANK" not in os.environ:
        return generate_on(find_device(request.device), request, console, progress)
    with layouts.joined(request.device) as device:
        if dist.get_rank() == 0:
            generate_on(device, request, console, progress)
        else:
            generate_on(device, request, Console(quiet=True), iter, writes=False)


def generate_on(
    device: torch.device, request: "Request", console: Console, progress: Progress, writes: bool = True
) -> None:
    """Make a clip on a device, together with the other processes that have joined, if there are any.

    Raises:
        UserError: something that was asked for cannot be had.
    """
    check_output(request.out)
    if request.prompt is None and request.frames is None:
        raise UserError("there is nothing to generate from: give --prompt, --frames or both")
    for option, prompt in (("--prompt", request.prompt), ("--negative-prompt", request.negative_prompt)):
        if prompt is not None and not prompt.strip():
            raise UserError(f"{option} {prompt!r} is empty: write what should be seen, or leave it out")
    if request.given is not None and request.frames is None and request.clips == 1:
        raise UserError("--given counts the frames to use of --frames, and there are none")
    if request.clips < 1:
        raise UserError(f"{request.clips} clips cannot be made: give 1, or more to go on")
    budget = memory_budget(request.max_memory, device)
    offload = "none" if request.offload == device.type else request.offload  # what works there cannot wait there
    config, load, weights = parts_of(request, device)
    given = None if request.frames is None else read_given(request, config)
    if given is not None and request.fps is None:
        config = replace(config, clip=replace(config.clip, fps=given.fps))
    latent_shape(config, config.clip)
    if given is not None:
        given_latents(config, given.video.shape[1], config.clip)
    if request.clips > 1:
        given_latents(config, frames_to_repeat(request, config), config.clip)
    plan = plan_memory(config, weights, offload, budget)
    console.print(memory_table(plan, budget))
    if plan.tokenizer is not None:
        console.print(f"{pieces_line(plan.tokenizer, config)}.", soft_wrap=True)
    check_memory(plan, budget)
    if dist.is_initialized():
        load["denoiser"] = sharing_tokens(load["denoiser"], config, device)
    model = WorldModel(config, load, device, offload, plan.tokenizer)
    model.load_all()
    video = make(model, request, given, progress)
    if not torch.isfinite(video).all():
        raise UserError(f"what {config.name} made is not finite: try --precision fp32, or guidance nearer 0")
    if writes:
        write_video(request.out, video[0], config.clip.fps)
    _, frames, height, width = video[0].shape
    console.print(f"{request.out}: {frames} frames of {height}x{width} at {config.clip.fps:g} fps", soft_wrap=True)


def sharing_tokens(load: Callable[[], Denoiser], config: Config, device: torch.device) -> Callable[[], Denoiser]:
    """What loads a denoiser, all of it in every process, and lets each compute its part of a clip's tokens.

    Raises:
        UserError: there is another number of processes than can share them.
    """
    everyone = ParallelConfig(cp=dist.get_world_size())
    layout = layouts.ManyProcesses(everyone, config.model.num_heads, device, spread_weights=False)

    def load_and_place() -> Denoiser:
        denoiser = load()
        layout.place(denoiser)
        return denoiser

    return load_and_place


def parts_of(
    request: "Request", device: torch.device
) -> tuple[Config, dict[Part, Callable[[], Any]], Mapping[Part, int]]:
    """The configuration, what loads each part, and the bytes of each part's weights; no weights are read yet."""
    if request.preset is None:
        for option in ("tokenizer", "allow_torchscript"):
            if getattr(request, option):
                raise UserError(f"--{option.replace('_', '-')} is for a release: name what it is by --preset")
        folder = find_checkpoint(request.weights)
        config = settle(read_checkpoint(folder, names=()).config, request)
        load, weights = checkpoint_parts(folder, config, device, request.t5)
        require_parts(load, folder)
        if request.t5 is not None and config.text.encoder == "t5":
            weights["text_encoder"] = t5_parameters(request.t5) * DTYPES[config.sample.precision].itemsize
    else:
        config = settle(preset(request.preset), request)
        release = open_release(
            request.weights,
            config,
            tokenizer=request.tokenizer,
            t5=request.t5,
            precision=DTYPES[config.sample.precision],
            device=device,
            allow_torchscript=request.allow_torchscript,
        )
        weights = {"text_encoder": 0, **release.bytes}
        load = {
            "text_encoder": lambda: build_text_encoder(config.text, release.t5_folder, release.precision),
            "denoiser": release.load_denoiser,
            "tokenizer": release.load_tokenizer,
        }
    if request.lora is not None:
        load["denoiser"] = with_adapter(load["denoiser"], request.lora, config)
    if config.text.encoder == "t5" and request.text_embeddings is None and not weights["text_encoder"]:
        raise UserError(
            f"{config.name} reads prompts with T5, and none was found: give its folder by --t5, or embeddings of the "
            "prompts by --text-embeddings"
        )
    if request.text_embeddings is not None:
        table = TextTable(request.text_embeddings, config.text)
        table.encode([request.prompt, request.negative_prompt])  # a prompt it lacks is found now
        load["text_encoder"], weights = lambda: table, {**weights, "text_encoder": 0}
    return config, load, weights


def with_adapter(load: Callable[[], Denoiser], folder: Path, config: Config) -> Callable[[], Denoiser]:
    """What loads a denoiser and merges an adapter into it.

    Raises:
        UserError: the adapter does not fit; nothing was loaded yet.
    """
    load_adapter(build_denoiser(config).network, folder)

    def load_both() -> Denoiser:
        denoiser = load()
        load_adapter(denoiser.network, folder)
        merge_lora(denoiser.network)
        return denoiser.eval().requires_grad_(False)

    return load_both


def settle(config: Config, request: "Request") -> Config:
    """The configuration with everything in it that the request says otherwise."""
    if request.like is not None:
        config = like(config, request.like)
    clip = {"frames": request.num_frames, "height": request.height, "width": request.width, "fps": request.fps}
    names = ("solver", "num_steps", "guidance", "augment_sigma", "seed", "precision")
    sample = {name: getattr(request, name) for name in names}
    return replace(
        config,
        clip=replace(config.clip, **{name: value for name, value in clip.items() if value is not None}),
        sample=replace(config.sample, **{name: value for name, value in sample.items() if value is not None}),
    )


def read_given(request: "Request", config: Config) -> Clip:
    """The last frames of the video to go on from: as many as asked for, else as many as the model was trained for."""
    assert request.frames is not None
    count = request.given
    if count is None:
        most = most_given_frames(config)
        count = most if probe(request.frames).frames >= most else 1
    clip = config.clip
    size = {"height": clip.height, "width": clip.width, "resize": request.resize}
    return read_clip(request.frames, frames=count, from_end=True, **size)


def most_given_frames(config: Config) -> int:
    """The most frames that the model was trained to go on from."""
    return clip_length(len(config.train.given_latents) - 1, config.tokenizer.temporal_factor)


def frames_to_repeat(request: "Request", config: Config) -> int:
    """The frames of a clip that the next one goes on from."""
    return most_given_frames(config) if request.given is None else request.given


def make(model: WorldModel, request: "Request", given: Clip | None, progress: Progress) -> Video:
    """The first clip, and those that go on from it."""
    prompts, clip, settings = [request.prompt], model.config.clip, model.config.sample
    rest = {"negative_prompt": request.negative_prompt, "progress": progress}
    if given is None:
        video = text2world(model, prompts, clip, settings, **rest).video
    else:
        video = video2world(model, given.video[None], prompts, clip, settings, **rest).video
    count = frames_to_repeat(request, model.config)
    for number in range(1, request.clips):
        again = replace(settings, seed=(settings.seed + number) % 2**64)  # the same noise would bring the same events
        video = extend(model, video, count, prompts, clip, again, **rest)
    return video


def memory_budget(max_memory: float | None, device: torch.device) -> float:
    """Bytes that may be used: so many GiB, else what is free on the device, endless where the system does not say.

    Raises:
        UserError: if nothing may be used.
    """
    if max_memory is not None:
        if not max_memory > 0:  # also what is not a number
            raise UserError(f"{max_memory:g} GiB of memory are not enough for anything: give --max-memory above 0")
        return max_memory * GIB
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory()[1] * GIB or math.inf


def memory_table(plan: MemoryPlan, budget: float) -> Table:
    """The plan, for people to read."""
    unit, name = unit_of(max(stage.peak for stage in plan.stages))
    title = f"memory in {name}, of {budget / unit:,.1f} that may be used"
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("stage", "its weights", "at work", "others' weights", "together"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in plan.stages:
        numbers = stage.weights, stage.working, stage.others, stage.peak
        table.add_row(NAMES[stage.part], *(f"{number / unit:,.1f}" for number in numbers))
    return table


def pieces_line(plan: Plan, config: Config) -> str:
    """How the tokenizer will go through the clip."""
    _, frames, _, _ = latent_shape(config, config.clip)
    line = f"The tokenizer takes {min(plan.latent_frames, frames)} of {frames} latent frames at once"
    tiled = (plan.tile_height, plan.tile_width) != (config.clip.height, config.clip.width)
    return (
        f"{line}, in tiles of {plan.tile_height}x{plan.tile_width}: at their seams the video changes" if tiled else line
    )


def tokenize_video(
    file: Path,
    out: Path,
    weights: Path | None,
    release: Path | None,
    allow_torchscript: bool,
    resize: bool,
    clip: dict[str, int],
    max_memory: float | None,
    console: Console,
) -> None:
    """Take a video through a tokenizer and back, and say what became of it.

    Raises:
        UserError: something that was asked for cannot be had.
    """
    if weights is not None and release is not None:
        raise UserError("--weights and --tokenizer both name a tokenizer: give one")
    device = torch.device("cpu")
    budget = memory_budget(max_memory, device)
    if release is not None:
        config, load = open_tokenizer(release, device, torch.float32, allow_torchscript)
        size = longest_clip(probe(file), config, most=clip_length(config.latent_frames, config.temporal_factor))
    elif weights is not None:
        folder = find_checkpoint(weights)
        whole = read_checkpoint(folder, names=()).config
        config, size = whole.tokenizer, whole.clip
        whole = replace(whole, sample=replace(whole.sample, precision="fp32"))
        parts, _ = checkpoint_parts(folder, whole, device, None)
        if "tokenizer" not in parts:
            raise UserError(f"{folder} holds no tokenizer: give one by --tokenizer")
        load = parts["tokenizer"]
    else:
        config, size, load = preset("tiny").tokenizer, preset("tiny").clip, lambda: None
    made = tokenize_file(file, out, config, load, replace(size, **clip), resize, budget)
    numbers = "codes" if made.discrete else "numbers"
    console.print(
        f"{file}: video {'x'.join(map(str, made.video_shape))} -> latents {'x'.join(map(str, made.latent_shape))}, "
        f"{made.compression:.1f}x fewer {numbers}, PSNR {made.psnr:.2f} dB",
        soft_wrap=True,
    )
    console.print(
        f"{out}/latents.safetensors, {out}/reconstruction.mp4 (original left, reconstruction right)", soft_wrap=True
    )
