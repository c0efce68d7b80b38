"""All stages of a recipe, one after the other: each is run or resumed, measured on held-out clips, and shown."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from cosmos_ref.checkpoint import list_checkpoints, load_strict, read_checkpoint
from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import Config, latent_shape
from cosmos_ref.demo.machine import describe_machine, versions
from cosmos_ref.demo.run import SLOW_FPS, side_by_side
from cosmos_ref.errors import UserError
from cosmos_ref.evaluation.denoising import NoiseLevelLoss, loss_over_sigma
from cosmos_ref.model.initialization import new_model
from cosmos_ref.page.html import Film, write_page
from cosmos_ref.pipelines.text2world import text2world
from cosmos_ref.pipelines.video2world import video2world
from cosmos_ref.pipelines.world_model import load_world_model
from cosmos_ref.recipe.report import Result, page, summary
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.training.data import ImageStatistics, draw_batch, noise_levels
from cosmos_ref.training.initial import load_initial
from cosmos_ref.training.layout import Layout, OneProcess
from cosmos_ref.training.loop import together, train
from cosmos_ref.training.run import Tokenizer, check_same
from cosmos_ref.training.sources import Domain, Source, WorldSource
from cosmos_ref.training.stages import Stage
from cosmos_ref.video_io import write_video

HELD_OUT = 2**39 + 2**20
"""Numbers of held-out clips from here on; no training sample comes so far, nor what tokenizers are fitted on. In the
simulated world each number is a scene of its own; of files it is another draw from the same, and the page says so."""
QUANTILES = (-1.28, -0.52, 0.0, 0.52, 1.28)
"""Noise levels to measure at, in deviations of their logarithm: the middles of five equally likely parts."""
SHOWN = 3
"""Clips shown of each stage."""
MEASURES, REPORT = "held_out.json", "report.html"


def run_recipe(
    stages: Sequence[Stage],
    out: str | Path,
    source_of: Callable[[Stage], Source],
    *,
    layout: Layout | None = None,
    initial: Path | None = None,
    tokenizer: Tokenizer | None = None,
    held_out: int = 48,
    prompts: Sequence[str] = (),
    progress: bool = True,
    t5_folder: Path | None = None,
    peak_tflops: float | None = None,
) -> Path:
    """Run or resume all stages and return the page about them.

    Every stage is a training in a folder of its own, `1-low-res` and so on, which starts from the weights of the one
    before. What is finished stays as it is.

    Args:
        stages: what to train, in order.
        out: folder of all of it.
        source_of: the clips of a stage.
        layout: the processes; None is this one alone.
        initial: checkpoint whose weights the first stage starts from; None is fresh ones.
        tokenizer: the tokenizer, where the first stage neither fits one nor has one from `initial`.
        held_out: clips of each domain that each stage is measured on; 0 measures nothing and shows no clips.
        prompts: what to generate after each stage; without any, captions of held-out clips.
        progress: show progress.
        t5_folder: the text encoder, if the stages use T5.
        peak_tflops: what a process's device can do at most, for MFU; None looks the GPU up.

    Raises:
        UserError: a stage cannot be trained, or the folder holds another recipe.
    """
    out, layout = Path(out), layout or OneProcess()
    sources = together(layout, lambda: [source_of(stage) for stage in stages])
    console, folder, results = Console(quiet=not progress or layout.rank > 0), initial, []
    for number, (stage, source) in enumerate(zip(stages, sources, strict=True), 1):
        before, folder = folder, out / f"{number}-{stage.name}"
        console.rule(f"[bold]{number}  {stage.name}", align="left")
        for file in getattr(source, "left_out", []):  # of a folder: too short for this stage, or broken
            console.print(f"   left out: {file.path.name} ({file.reason})", highlight=False, markup=False)
        if not is_finished(folder, stage.config, source):
            train(
                stage.config,
                folder,
                source,
                layout=layout,
                initial=before,
                tokenizer=tokenizer if before is initial else None,
                resume=bool(list_checkpoints(folder)),
                progress=progress,
                t5_folder=t5_folder,
                peak_tflops=peak_tflops,
            )
        if held_out and layout.rank == 0:
            if not (folder / MEASURES).is_file():
                measures = measure(stage.config, folder, before, source, held_out, t5_folder)
                measures["are_new"] = isinstance(source, WorldSource)
                measures["films"] = show(stage.config, folder, source, prompts, progress, t5_folder)
                _write_json(folder / MEASURES, measures)
            results.append(_result(stage, folder))
            console.print(f"   {summary(results[-1])}", highlight=False)
        layout.agree(None)
    if results:
        description = {"machine": describe_machine(), "versions": versions()}
        write_page(out / REPORT, page(results, description))
    return out / REPORT


def is_finished(folder: Path, config: Config, source: Source) -> bool:
    """Whether the training of a stage has done all its updates.

    Raises:
        UserError: it was the training of another stage, or on other clips.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return False
    checkpoint = read_checkpoint(checkpoints[-1], names=())
    if checkpoint.state["step"] < config.train.num_steps:
        return False
    try:
        check_same(checkpoint, config, source)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return True


def measure(
    config: Config, folder: Path, before: Path | None, source: Source, count: int, t5_folder: Path | None
) -> dict[str, Any]:
    """Weighted error on held-out clips at the start of a stage and after it, by domain and noise level."""
    text_encoder = build_text_encoder(config.text, t5_folder)
    after = load_initial(config, folder)
    assert after.tokenizer is not None and after.uncertainty is not None, "training keeps all of them"
    tokenizer = build_tokenizer(config.tokenizer)
    assert isinstance(tokenizer, Tokenizer)
    load_strict(tokenizer, after.tokenizer, "the tokenizer")
    images = ImageStatistics(**after.images) if after.images else None
    denoiser, uncertainty = new_model(config, torch.Generator().manual_seed(config.train.seed))
    if before is not None:
        load_strict(denoiser, load_initial(config, before).denoiser, "the denoiser of the stage before")

    domains: list[Domain] = ["video", "image"] if config.data.image_share else ["video"]
    numbers, sigma_data = range(HELD_OUT, HELD_OUT + count), config.diffusion.sigma_data
    together = config.train.micro_batch or config.train.batch_size

    def rows(domain: Domain) -> list[tuple[NoiseLevelLoss, ...]]:
        """At each noise level, one row for each micro-batch."""
        tables = []
        for start in range(0, count, together):
            samples = numbers[start : start + together]
            batch = draw_batch(source, config, tokenizer, text_encoder, samples, domain=domain, images=images)
            arguments = (batch.x0, batch.condition, levels(config, domain), start, sigma_data)
            tables.append(loss_over_sigma(denoiser, uncertainty, *arguments))
        return list(zip(*tables, strict=True))

    first = {domain: rows(domain) for domain in domains}
    load_strict(denoiser, after.denoiser, "the trained denoiser")
    load_strict(uncertainty, after.uncertainty, "u(sigma)")
    last = {domain: rows(domain) for domain in domains}
    weights = [len(numbers[start : start + together]) / count for start in range(0, count, together)]

    def errors(of: list[tuple[NoiseLevelLoss, ...]]) -> list[float]:
        return [sum(w * row.weighted_error for w, row in zip(weights, level, strict=True)) for level in of]

    return {
        domain: {
            "sigma": [level[0].sigma for level in last[domain]],
            "before": errors(first[domain]),
            "after": errors(last[domain]),
            "uncertainty": [level[0].uncertainty for level in last[domain]],
        }
        for domain in domains
    }


def levels(config: Config, domain: Domain) -> list[float]:
    """Noise levels to measure at: equally likely ones under the training's own distribution."""
    deviations = torch.tensor(QUANTILES, dtype=torch.float64)
    return noise_levels(deviations, config, domain, latent_shape(config, config.clip)[1]).tolist()


def show(
    config: Config, folder: Path, source: Source, prompts: Sequence[str], progress: bool, t5_folder: Path | None
) -> list[dict[str, str]]:
    """Generate clips after a stage and write them beside its checkpoints: from text, or from given frames."""
    model = load_world_model(folder, t5_folder)
    truth = source.clips(range(HELD_OUT, HELD_OUT + SHOWN))
    captions = [prompt or caption for prompt, caption in zip_longest(prompts[:SHOWN], truth.captions[:SHOWN])]
    clip, fps = config.clip, truth.fps[0].item()
    given = 1 + config.tokenizer.temporal_factor

    def bar(steps: Iterable) -> Iterable:
        return track(
            steps, description="generating", console=Console(stderr=True), disable=not progress, transient=True
        )

    if config.model.video2world and truth.video is not None:
        clip = replace(clip, fps=fps)
        made = video2world(model, truth.video[:, :, :given], truth.captions, clip, config.sample, progress=bar).video
        pairs = [side_by_side([truth.video[i], made[i]]) for i in range(SHOWN)]
        captions = truth.captions
    else:
        pairs = list(text2world(model, captions, replace(clip, fps=fps), config.sample, progress=bar).video)
    scale = max(1, round(256 / clip.height))
    films = []
    for i, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        path = write_video(folder / "clips" / f"{i}.mp4", pair, min(fps, SLOW_FPS), scale=scale)
        films.append({"file": f"clips/{path.name}", "caption": caption or ""})
    return films


def _result(stage: Stage, folder: Path) -> Result:
    """What the page says of a finished stage."""
    measures = json.loads((folder / MEASURES).read_text(encoding="utf-8"))
    films = [Film(folder / film["file"], film["caption"]) for film in measures.pop("films")]
    are_new = measures.pop("are_new")
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return Result(stage, records, measures, films, are_new)


def _write_json(path: Path, value: Any) -> None:
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
