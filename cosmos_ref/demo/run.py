"""The demo: every floor of the house in one run, from a simulated world to a report."""

import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from rich.console import Console
from rich.progress import track as progress_bar
from torch import Tensor

from cosmos_ref import evaluation, worlds
from cosmos_ref.checkpoint import load_strict, read_checkpoint
from cosmos_ref.config import ClipConfig, Config, preset
from cosmos_ref.demo import figures
from cosmos_ref.demo.machine import describe_machine, peak_memory_gib, versions
from cosmos_ref.demo.report import Report, page
from cosmos_ref.errors import UserError
from cosmos_ref.evaluation.denoising import NoiseLevelLoss, loss_over_sigma
from cosmos_ref.model.initialization import build_uncertainty
from cosmos_ref.page.html import Film, write_page
from cosmos_ref.pipelines.text2world import text2world
from cosmos_ref.pipelines.tokenize import reconstruct
from cosmos_ref.pipelines.video2world import video2world
from cosmos_ref.pipelines.world_model import WorldModel, load_world_model
from cosmos_ref.shapes import Video
from cosmos_ref.training.checks import check_config
from cosmos_ref.training.data import draw_batch
from cosmos_ref.training.loop import train
from cosmos_ref.training.run import Run, start_run
from cosmos_ref.training.sources import Bucket, Clips, Domain, WorldSource
from cosmos_ref.video_io import probe, read_clip, write_video

KIND = "cosmos_ref demo"
"""Marks metrics.json, so that a demo replaces nothing but an earlier demo."""
SLOW_FPS = 6
"""Nine frames at their true rate are over before one has looked."""
SHOWN, EXPORTED = 6, 2
ENLARGED = 4
"""The tokenizer's clip is so many times larger than the clips of training: it works at any size."""
PROMPTS = [f"one {colour} marble {verb}" for verb in ("falls", "floats") for colour in worlds.PALETTE]
KINDS_PT = {
    "single": "uma só",
    "mixed": "misturada",
    "collision": "colisão",
    "permanence": "permanência",
    "free_fall": "queda livre",
    "push": "empurrão",
}
SIGMAS = torch.logspace(math.log10(0.01), math.log10(40), 12).tolist()
HELD_OUT_SEED = 2**40
"""Scenes from here on are shown and measured, never trained on (those of training begin at 2**63)."""
BLUE, ORANGE, GREY = (0.20, 0.38, 0.90), (0.93, 0.55, 0.12), (0.72, 0.74, 0.78)


@dataclass
class HeldOut:
    """Scenes that training never sees, as a source of batches."""

    clip: ClipConfig
    kind: str
    identity: str = "held out"
    captions: list[str | None] = field(default_factory=list)

    def clips(self, indices: Sequence[int], domain: Domain = "video", bucket: Bucket | None = None) -> Clips:
        """The clips of these numbers."""
        batch = held_out(self.clip, self.kind, indices)
        return Clips(batch.video, list(batch.captions), torch.full((len(indices),), float(batch.fps)))

    def bucket(self, micro_batch: int, domain: Domain = "video") -> Bucket:
        """The clip's own size."""
        return self.clip.height, self.clip.width


def run_demo(
    out: Path = Path("runs/demo"),
    video: Path | None = None,
    num_steps: int | None = None,
    *,
    preset_name: str = "tiny",
    scenes: int = 64,
) -> Path:
    """Simulate, train, generate, export and report; return the path of report.html.

    Args:
        out: folder of everything the demo makes; a finished demo there is replaced when this one is finished.
        video: a video to tokenize instead of the demo's own.
        num_steps: training steps, instead of the preset's.
        preset_name: what to train.
        scenes: held-out scenes to measure on.

    Raises:
        UserError: `out` holds something else, or the video or the preset cannot be used.
    """
    out = Path(out)
    check_place(out)
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("cosmos_export") is None:
        raise UserError("the demo needs onnx and cosmos_export: pip install -e '.[export]' -e export")
    config = preset(preset_name)
    if num_steps is not None:
        config = replace(config, train=replace(config.train, num_steps=num_steps))
    check_config(config)
    if video is not None:
        read_part(video, config)  # raises now what it would raise later
    work = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        Demo(config, work, scenes).run(video)
        put_in_place(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report = out / "report.html"
    Console().print(f"\n[bold]Done.[/] Open [cyan]{report}[/] in a browser; all numbers are in {out / 'metrics.json'}.")
    return report


class Demo:
    """One run of the demo, stage by stage, into a folder.

    Args:
        config: preset to train.
        folder: where everything goes.
        scenes: held-out scenes to measure on.
    """

    def __init__(self, config: Config, folder: Path, scenes: int):
        self.config, self.folder, self.scenes = config, folder, scenes
        self.console = Console()
        self.seconds: dict[str, float] = {}
        self.given_frames = 1 + config.tokenizer.temporal_factor

    def run(self, video: Path | None) -> None:
        """All stages, then the report."""
        config, metrics = self.config, {}
        with self.stage("simulate a world"):
            world = self.simulate()
        source = WorldSource(config.clip, config.data.world, config.train.seed)
        with self.stage("tokenize and reconstruct"):
            untrained = start_run(config, source)
            reconstruction, metrics["reconstruction"] = self.reconstruct(untrained, video)
        with self.stage("measure the untrained model"):
            before = self.denoising(untrained.denoiser, untrained.uncertainty, untrained)
        with self.stage("train"):
            cpu = time.process_time()
            checkpoint = train(config, self.folder / "train", source)
            cpu = time.process_time() - cpu
        model = load_world_model(checkpoint)
        with self.stage("measure the trained model"):
            uncertainty = build_uncertainty(config)
            load_strict(
                uncertainty, read_checkpoint(checkpoint, names=("uncertainty",)).tensors["uncertainty"], "u(sigma)"
            )
            after = self.denoising(model.denoiser, uncertainty, untrained)
        log = [json.loads(line) for line in (self.folder / "train" / "train.jsonl").read_text().splitlines()]
        metrics["training"] = self.training_metrics(log, untrained, cpu)
        metrics["denoising"] = self.denoising_metrics(before, after)
        with self.stage("generate from given frames"):
            continued, metrics["video2world"] = self.video2world(model)
        with self.stage("generate from text"):
            imagined, metrics["text2world"] = self.text2world(model)
        with self.stage("export to ONNX and generate again"):
            exported, metrics["export"] = self.export(model)
        metrics = self.frame() | metrics
        self.write(metrics, log, world, reconstruction, continued, imagined, exported)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A heading before, the time after."""
        self.console.rule(f"[bold]{len(self.seconds) + 1}  {name}", align="left")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.console.print(f"   {self.seconds[name]:.1f} s", style="dim")

    def say(self, text: str) -> None:
        """A line of result."""
        self.console.print(f"   {text}", highlight=False)

    def bar(self, name: str) -> Callable[[Iterable], Iterable]:
        """A progress bar around a solver's steps."""
        return lambda steps: progress_bar(steps, description=f"   {name}", console=self.console)

    def film(self, name: str, video: Float[Tensor, "3 T H W"], fps: float = SLOW_FPS, scale: int | None = None) -> Path:
        """Save a clip, small ones enlarged."""
        scale = scale or max(1, round(256 / video.shape[-2]))
        return write_video(self.folder / name, video, fps, scale=scale)

    def simulate(self) -> Film:
        """A mosaic of scenes, one column for every kind."""
        clips = [held_out(replace(self.config.clip, frames=33, height=96, width=96), k, range(4)) for k in worlds.KINDS]
        tiles = rearrange([clip.video for clip in clips], "k r C T H W -> (r k) C T H W")
        path = self.film("world.mp4", mosaic(tiles, len(worlds.KINDS)), fps=12, scale=2)
        self.say(f"{len(tiles)} scenes, {path.name}")
        return Film(path, heads=tuple((kind.replace("_", " "), KINDS_PT.get(kind, kind)) for kind in worlds.KINDS))

    def reconstruct(self, run: Run, video: Path | None) -> tuple[Film, dict[str, Any]]:
        """Read a video file, encode it, decode it, compare."""
        config, path = self.config, video
        if path is None:
            clip = replace(config.clip, height=config.clip.height * ENLARGED, width=config.clip.width * ENLARGED)
            own = held_out(clip, "mixed", [self.scenes])
            path = write_video(self.folder / "clip.mp4", own.video[0], own.fps)
        original = read_part(path, config)[None]
        latents, decoded, quality = reconstruct(run.tokenizer, original)
        small = held_out(config.clip, config.data.world, range(self.scenes)).video
        metrics = {
            "file": path.name,
            "frames": original.shape[2],
            "psnr": quality,
            "held_out_psnr": reconstruct(run.tokenizer, small)[2],
            "compression": original.numel() / latents.numel(),
        }
        self.say(f"{path.name}: {original.shape[2]} frames, PSNR {metrics['psnr']:.1f} dB")
        difference = (4 * (decoded - original)).clamp(-1, 1)
        film = self.film("reconstruction.mp4", side_by_side([original[0], decoded[0], difference[0]]))
        heads = ("original", "original"), ("reconstruction", "reconstrução"), ("difference × 4", "diferença × 4")
        return Film(film, "", heads), metrics

    def denoising(self, denoiser, uncertainty, run: Run) -> list[NoiseLevelLoss]:
        """Weighted error over the noise levels, on held-out clips in training's mixture of given frames."""
        from cosmos_ref.conditioning.text import build_text_encoder

        config = self.config
        source, text_encoder = HeldOut(config.clip, config.data.world), build_text_encoder(config.text)
        batch = draw_batch(source, config, run.tokenizer, text_encoder, range(self.scenes))
        sigma_data = config.diffusion.sigma_data
        table = loss_over_sigma(denoiser, uncertainty, batch.x0, batch.condition, SIGMAS, 0, sigma_data)
        self.say(f"λL {self.mean_error(table):.3f}, averaged over the noise levels of training")
        return table

    def mean_error(self, table: Sequence[NoiseLevelLoss]) -> float:
        """Mean of the weighted error under training's distribution of noise levels."""
        d = self.config.diffusion
        weights = [math.exp(-(((math.log(row.sigma) - d.p_mean) / d.p_std) ** 2) / 2) for row in table]
        return sum(w * row.weighted_error for w, row in zip(weights, table, strict=True)) / sum(weights)

    def training_metrics(self, log: list[dict[str, float]], run: Run, cpu_seconds: float) -> dict[str, Any]:
        """What training did and cost."""
        clips = len(log) * self.config.train.batch_size
        return {
            "steps": len(log),
            "clips": clips,
            "seconds": self.seconds["train"],
            "cpu_seconds": cpu_seconds,
            "clips_per_cpu_second": clips / cpu_seconds,
            "parameters": sum(p.numel() for p in run.denoiser.parameters()),
            "weighted_error": [record["weighted_error"] for record in log],
        }

    def denoising_metrics(self, before: list[NoiseLevelLoss], after: list[NoiseLevelLoss]) -> dict[str, Any]:
        """Held-out error before and after."""
        return {
            "sigma": SIGMAS,
            "before": [row.weighted_error for row in before],
            "after": [row.weighted_error for row in after],
            "uncertainty": [row.uncertainty for row in after],
            "mean_before": self.mean_error(before),
            "mean_after": self.mean_error(after),
            "improvement": self.mean_error(before) / self.mean_error(after),
        }

    def video2world(self, model: WorldModel) -> tuple[list[Film], dict[str, Any]]:
        """Continue held-out scenes of one marble; compare with the truth and with predictions without a model."""
        given = self.given_frames
        truth = held_out(self.config.clip, "single", range(self.scenes))
        clips = video2world(
            model,
            truth.video[:, :, :given],
            truth.captions,
            self.config.clip,
            self.config.sample,
            progress=self.bar("video2world"),
        ).video
        true_tracks = evaluation.track(truth.video)
        reports = {
            "model": evaluation.compare(evaluation.track(clips), truth, given),
            "copy": evaluation.compare(evaluation.track(evaluation.copy_last_frame(truth.video, given)), truth, given),
            "linear": evaluation.compare(evaluation.extrapolate(true_tracks, given), truth, given),
        }
        metrics = {
            "scenes": self.scenes,
            "given_frames": given,
            "frames": reports["model"].frames,
            "visible_share": 1 - reports["model"].mean_missing_rate,
            "centre_error": {name: report.mean_centre_error for name, report in reports.items()},
            "centre_error_per_frame": {name: report.centre_error for name, report in reports.items()},
        }
        errors = ", ".join(f"{name} {error:.2f}" for name, error in metrics["centre_error"].items())
        self.say(f"marble visible {metrics['visible_share']:.0%}; centre error in pixels: {errors}")
        heads = ("ground truth", "verdade"), ("generated", "gerado")
        films = []
        for i in range(min(SHOWN, self.scenes)):
            pair = [framed(truth.video[i], [GREY]), framed(clips[i], [BLUE] * given + [ORANGE])]
            films.append(Film(self.film(f"video2world/{i}.mp4", side_by_side(pair)), truth.captions[i], heads))
        return films, metrics

    def text2world(self, model: WorldModel) -> tuple[list[Film], dict[str, Any]]:
        """Clips from prompts alone."""
        rounds = max(1, self.scenes // len(PROMPTS))
        settings, clip = self.config.sample, self.config.clip
        clips = text2world(model, PROMPTS * rounds, clip, settings, progress=self.bar("text2world")).video
        accuracy = evaluation.colour_accuracy(clips, PROMPTS * rounds)
        self.say(f"{accuracy:.0%} of {len(clips)} clips show exactly the colour asked for")
        films = [
            Film(self.film(f"text2world/{prompt.replace(' ', '_')}.mp4", clips[i]), prompt)
            for i, prompt in enumerate(PROMPTS)
        ]
        return films, {"clips": len(clips), "prompts": PROMPTS, "colour_accuracy": accuracy}

    def export(self, model: WorldModel) -> tuple[list[Film], dict[str, Any]]:
        """Leave PyTorch: the same clips from the same noise in ONNX Runtime, and how far apart the two are."""
        from cosmos_export.card import parity_rows
        from cosmos_export.compare import SAMPLING_LIMIT, compare
        from cosmos_export.runtime import Bundle, sample
        from cosmos_export.to_onnx import export_bundle

        bundle = Bundle.load(export_bundle(self.config, model.denoiser, model.tokenizer, self.folder / "onnx"))
        truth = held_out(self.config.clip, "single", range(EXPORTED))
        given = truth.video[:, :, : self.given_frames]
        settings, clip = self.config.sample, self.config.clip
        started = time.perf_counter()
        ours = video2world(model, given, truth.captions, clip, settings, progress=self.bar("pytorch"))
        between = time.perf_counter()
        theirs = sample(bundle, truth.captions, given_video=given.numpy(), progress=self.bar("onnxruntime"))
        finished = time.perf_counter()
        whole = compare("all sampling steps, final latents", ours.x0.numpy(), theirs.x0, SAMPLING_LIMIT)
        calls = parity_rows(bundle.manifest)
        for row in (*calls, asdict(whole)):
            self.say(f"{row['relative']:.1e} relative (limit {row['limit']:.0e}): {row['what']}")
        heads = ("PyTorch", "PyTorch"), ("ONNX Runtime", "ONNX Runtime")
        films = []
        for i in range(EXPORTED):
            clips = ours.video[i], torch.from_numpy(theirs.video[i])
            pair = [framed(video, [BLUE] * self.given_frames + [ORANGE]) for video in clips]
            films.append(Film(self.film(f"onnx_clips/{i}.mp4", side_by_side(pair)), truth.captions[i], heads))
        return films, {
            "single_calls": calls,
            "sampling": asdict(whole),
            "final_relative_error": whole.relative,
            "megabytes": sum(path.stat().st_size for path in (self.folder / "onnx").glob("denoiser.*")) / 1e6,
            "seconds_pytorch": between - started,
            "seconds_onnxruntime": finished - between,
        }

    def frame(self) -> dict[str, Any]:
        """What every metrics.json begins with."""
        return {
            "kind": KIND,
            "config": asdict(self.config),
            "machine": describe_machine(),
            "versions": versions(),
            "seconds": dict(self.seconds),
            "total_seconds": sum(self.seconds.values()),
            "peak_memory_gib": peak_memory_gib(),
        }

    def write(
        self,
        metrics: dict[str, Any],
        log: list[dict[str, float]],
        world: Film,
        reconstruction: Film,
        continued: list[Film],
        imagined: list[Film],
        exported: list[Film],
    ) -> None:
        """metrics.json and report.html."""
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        d, v = metrics["denoising"], metrics["video2world"]
        report = Report(
            world=world,
            reconstruction=reconstruction,
            video2world=continued,
            text2world=imagined,
            exported=exported,
            loss_curve=figures.loss_curve([int(r["step"]) for r in log], [r["weighted_error"] for r in log]),
            error_over_sigma=figures.error_over_sigma(d["sigma"], d["before"], d["after"], d["uncertainty"]),
            error_over_frames=figures.error_over_frames(v["frames"], v["centre_error_per_frame"]),
            metrics=metrics,
        )
        write_page(self.folder / "report.html", page(report))


def check_place(out: Path) -> None:
    """Check that the demo may write to `out` and replace what is there.

    Raises:
        UserError: it holds something that is no demo, or its parent cannot be written.
    """
    if out.exists() and not is_demo(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is no finished demo: give another --out, or delete it")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {out}: {parent} is not a writable folder; give another --out")


def is_demo(folder: Path) -> bool:
    """Whether a finished demo lies there."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metrics, dict) and metrics.get("kind") == KIND


def put_in_place(work: Path, out: Path) -> None:
    """Move the finished folder to `out`; an earlier demo there goes."""
    old = work.with_name(work.name + ".old")
    if out.exists():
        os.replace(out, old)
    os.replace(work, out)
    shutil.rmtree(old, ignore_errors=True)


def held_out(clip: ClipConfig, kind: str, numbers: Iterable[int]) -> worlds.WorldBatch:
    """Held-out scenes by number."""
    seeds = [HELD_OUT_SEED + number for number in numbers]
    return worlds.simulate(seeds, frames=clip.frames, height=clip.height, width=clip.width, kind=kind)


def read_part(path: Path, config: Config) -> Float[Tensor, "3 T H W"]:
    """The first frames of a video file, as many as fit, at the size at which the tokenizer is shown."""
    clip, factor = config.clip, config.tokenizer.temporal_factor
    fitting = 1 + (probe(path).frames - 1) // factor * factor
    frames = min(max(fitting, clip.frames), 1 + 16 * factor)
    return read_clip(path, frames=frames, height=clip.height * ENLARGED, width=clip.width * ENLARGED, resize=True).video


def mosaic(videos: Video, columns: int) -> Float[Tensor, "3 T H W"]:
    """Many clips in one picture, row by row."""
    return rearrange(F.pad(videos, (1, 1, 1, 1), value=1.0), "(r c) C T H W -> C T (r H) (c W)", c=columns)


def side_by_side(videos: Sequence[Float[Tensor, "3 T H W"]]) -> Float[Tensor, "3 T H W"]:
    """Clips next to each other in one picture, so that they never run apart."""
    return torch.cat([F.pad(video, (1, 1, 0, 0), value=1.0) for video in videos], dim=-1)


def framed(video: Float[Tensor, "3 T H W"], colours: Sequence[tuple[float, float, float]]) -> Float[Tensor, "3 T H W"]:
    """A clip with an edge of one pixel; frame t has colour t, those behind the last colour keep it."""
    bigger = F.pad(video, (1, 1, 1, 1))
    edge = F.pad(torch.zeros_like(video[0, 0]), (1, 1, 1, 1), value=1.0).bool()
    for t in range(video.shape[1]):
        colour = torch.tensor(colours[min(t, len(colours) - 1)]) * 2 - 1
        bigger[:, t] = torch.where(edge, colour[:, None, None], bigger[:, t])
    return bigger
