"""What a bundle says of itself: profiles, engine builders' commands, manifest, model card. No date, no place."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cosmos_export.compare import Parity
from cosmos_export.manifest import BUNDLE_FORMAT
from cosmos_export.ports import Graph, Size
from cosmos_export.solvers import karras_sigmas
from cosmos_ref.config import BUCKETS, ClipConfig, Config, latent_shape
from cosmos_ref.equations.causal import clip_length
from cosmos_ref.errors import UserError

WIDE = 2**14
"""Tokens that the position tables may hold for the profile `preview` to reach all of them: an engine sets memory aside
for the largest clip of its profile."""
LATENT_STATISTICS = (
    "The encoder's graph gives latents of zero mean and unit variance per channel, and the decoder's takes them: their "
    "statistics are inside. The denoiser works on latents times sigma_data: multiply what is encoded by sigma_data "
    "before adding noise, and divide what was sampled by sigma_data before decoding."
)

Sizes = dict[str, int]
"""A number for every size that varies."""


@dataclass(frozen=True)
class Variant:
    """One form of a graph, written to the bundle's folder."""

    name: str
    file: str
    weights: str | None
    opset: int
    engines: tuple[str, ...]
    parity: tuple[Parity, ...] = ()
    verified: bool = False


def profiles(config: Config, graphs: Sequence[Graph]) -> dict[str, dict[str, Sizes]]:
    """Ranges of sizes that engines are built for: smallest, usual and largest; only what the position tables hold.

    In all but `preview` they are one size each, except the frames of a video: what is encoded is not the clip, but the
    frames that it goes on from.
    """
    sizes = sizes_of(graphs)
    fixed = {"native": config.clip}
    for name, (height, width) in (("480p", BUCKETS["480"][3]), ("720p", BUCKETS["720"][3])):  # 16:9
        fixed[name] = replace(config.clip, height=height, width=width)
    made = {}
    for name, clip in fixed.items():
        try:
            whole = sizes_of_clip(config, clip)
        except UserError:  # larger than the tables, or no whole number of patches
            continue
        given = clip_length(max(1, len(config.train.given_latents) - 1), config.tokenizer.temporal_factor)
        frames = {"min": 1, "opt": min(given, clip.frames), "max": clip.frames}
        made[name] = {which: whole | {"video_frames": count} for which, count in frames.items()}
    most = [rows * patch for rows, patch in zip(config.model.max_tokens, config.model.patch_size, strict=True)]
    rows_t, rows_h, rows_w = config.model.max_tokens
    usual = sizes_of_clip(config, config.clip)
    largest = sizes_of_latents(config, *most) if rows_t * rows_h * rows_w <= WIDE else usual
    preview = {
        "min": {name: size.min for name, size in sizes.items()},
        "opt": usual,
        "max": largest | {"batch": 2 * usual["batch"], "clips": 2 * usual["clips"]},
    }
    return {"preview": preview, **made}


def sizes_of(graphs: Sequence[Graph]) -> dict[str, Size]:
    """Every size that varies in any of the graphs."""
    return {name: size for graph in graphs for name, size in graph.sizes.items()}


def sizes_of_clip(config: Config, clip: ClipConfig) -> Sizes:
    """One clip with guidance, which takes a batch of two.

    Raises:
        UserError: if the model cannot take a clip of this length or size.
    """
    _, t, h, w = latent_shape(config, clip)
    return sizes_of_latents(config, t, h, w)


def sizes_of_latents(config: Config, t: int, h: int, w: int) -> Sizes:
    """One clip whose latents have this size, with guidance."""
    factor, side = config.tokenizer.temporal_factor, config.tokenizer.spatial_factor
    pixels = {"video_frames": 1 + (t - 1) * factor, "video_height": h * side, "video_width": w * side}
    return {"batch": 2, "clips": 1, "frames": t, "height": h, "width": w, "text_length": config.text.length} | pixels


def commands(graph: Graph, variant: Variant, ranges: Mapping[str, Mapping[str, Sizes]]) -> dict[str, dict[str, str]]:
    """Lines that build an engine of a graph, for every profile, run in the bundle's folder."""
    made = {}
    for profile, limits in ranges.items():
        shapes = {which: [(port.name, _numbers(port.dims, limits[which])) for port in graph.inputs] for which in limits}
        trtexec = " ".join(
            f"--{which}Shapes=" + ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes[which])
            for which in ("min", "opt", "max")
        )
        polygraphy = " ".join(
            f"--trt-{which}-shapes "
            + " ".join(f"{name}:[{','.join(map(str, shape))}]" for name, shape in shapes[which])
            for which in ("min", "opt", "max")
        )
        engine = f"{variant.file.removesuffix('.onnx')}.{profile}.plan"
        made[profile] = {
            "trtexec": f"trtexec --onnx={variant.file} --saveEngine={engine} --stronglyTyped --skipInference "
            f"--timingCacheFile=timing.cache {trtexec}",
            "polygraphy": f"polygraphy convert {variant.file} --convert-to trt -o {engine} --strongly-typed "
            + polygraphy,
        }
    return made


def _numbers(dims: Sequence[str | int], sizes: Sizes) -> list[int]:
    return [sizes[dim] if isinstance(dim, str) else dim for dim in dims]


def write_manifest(
    config: Config,
    graphs: Sequence[Graph],
    variants: Mapping[str, Sequence[Variant]],
    folder: Path,
    *,
    parameters: int,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Write manifest and model card of a folder that holds everything else.

    Args:
        config: the preset's numbers.
        graphs: what the graphs take and give.
        variants: of every graph, by its name.
        folder: of the bundle.
        parameters: of the denoiser.
        versions: of the packages that made it.
    """
    ranges, sample, diffusion = profiles(config, graphs), config.sample, config.diffusion
    sigmas = karras_sigmas(sample.num_steps, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho)
    if sample.last_sigma == "sigma_min":
        sigmas[-1] = sigmas[-2]
    manifest = {
        "format": BUNDLE_FORMAT,
        "preset": config.name,
        "config": asdict(config),
        "temporal_factor": config.tokenizer.temporal_factor,
        "spatial_factor": config.tokenizer.spatial_factor,
        "parameters": parameters,
        "schedule": {
            "sigma_min": diffusion.sigma_min,
            "sigma_max": diffusion.sigma_max,
            "rho": diffusion.rho,
            "num_steps": sample.num_steps,
            "sigmas": sigmas.tolist(),
        },
        "sigma_data": diffusion.sigma_data,
        "solver": sample.solver,
        "guidance": sample.guidance,
        "latent_statistics": LATENT_STATISTICS,
        "dims": {name: asdict(size) for name, size in sizes_of(graphs).items()},
        "profiles": ranges,
        "graphs": {graph.name: _graph_entry(graph, variants[graph.name]) for graph in graphs},
        "default": {graph.name: _default([variant.name for variant in variants[graph.name]]) for graph in graphs},
        "commands": {
            graph.name: {v.name: commands(graph, v, ranges) for v in variants[graph.name] if "tensorrt" in v.engines}
            for graph in graphs
        },
        "versions": dict(versions),
    }
    (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    manifest["files"] = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def parity_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All comparisons that a manifest holds."""
    return [
        row
        for graph in manifest["graphs"].values()
        for variant in graph["variants"].values()
        for row in variant["parity"]
    ]


def model_card(manifest: Mapping[str, Any]) -> str:
    """The manifest for people to read."""
    video2world, schedule = manifest["config"]["model"]["video2world"], manifest["schedule"]
    lines = [
        f"# {manifest['preset']}: a Cosmos world model without PyTorch",
        "",
        f"A diffusion transformer of {manifest['parameters']:,} parameters and its tokenizer, exported by cosmos_ref: "
        + ("from a prompt, or from the last frames of a video," if video2world else "from a prompt")
        + f" to a clip. Text embeddings come from the encoder `{manifest['config']['text']['encoder']}`.",
        "",
        "The denoiser's graph is D_theta: preconditioning, rotary angles and given frames are inside; guidance, "
        f"schedule and solver are the caller's. Defaults: {manifest['solver']}, {schedule['num_steps']} steps from "
        f"sigma {schedule['sigma_max']:g} to {schedule['sigma_min']:g} (rho {schedule['rho']:g}), then 0; guidance "
        f"{manifest['guidance']:g} in D_c + g (D_c - D_u); sigma_data {manifest['sigma_data']:g}.",
        "",
        manifest["latent_statistics"],
        "",
        "## How to run it",
        "",
        "```sh",
        'python -m cosmos_export.runtime . --prompt "..." --out clip.mp4',
        *(["python -m cosmos_export.runtime . --frames given.mp4 --resize --out clip.mp4"] if video2world else []),
        "```",
        "",
        "Engines: `cosmos-ref build-engine . --profile native`, or the lines under `commands` in manifest.json.",
        "",
        "## Inputs and outputs",
        "",
        "| graph | | name | type and sizes | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, graph in manifest["graphs"].items():
        for kind, ports in (("in", graph["inputs"]), ("out", graph["outputs"])):
            lines += [
                f"| {name} | {kind} | {p['name']} | {p['dtype']} [{', '.join(map(str, p['dims']))}] | {p['meaning']} |"
                for p in ports
            ]
    lines += ["", "| size | from | to | multiples of | meaning |", "|---|---|---|---|---|"]
    for name, size in manifest["dims"].items():
        unit = f"{size['multiple_of']}" + (f", plus {size['plus']}" if size["plus"] else "")
        most = "any" if size["max"] is None else size["max"]
        lines.append(f"| {name} | {size['min']} | {most} | {unit} | {size['meaning']} |")
    lines += ["", "## Profiles", "", "| profile | size | smallest | usual | largest |", "|---|---|---|---|---|"]
    for name, limits in manifest["profiles"].items():
        lines += [
            f"| {name} | {size} | {limits['min'][size]} | {limits['opt'][size]} | {limits['max'][size]} |"
            for size in limits["opt"]
        ]
    lines += ["", "## Parity with PyTorch in float32, measured when this was written", ""]
    lines += ["| graph | variant | file | runs on | comparison | measured | limit |", "|---|---|---|---|---|---|---|"]
    for name, graph in manifest["graphs"].items():
        for variant, entry in graph["variants"].items():
            head = f"| {name} | {variant} | {entry['file']} | {', '.join(entry['engines'])} |"
            rows = [
                f"{row['what']} | {row['measure']} {row[row['measure']]:.5g} | {row['limit']:g}"
                for row in entry["parity"]
            ]
            lines += [f"{head} {row} |" for row in rows or ["**not verified** | |"]]
    lines += [
        "",
        "## Licence",
        "",
        "The graphs are made by cosmos_ref (Apache-2.0). The weights keep the licence that they came with; NVIDIA's "
        "releases have the NVIDIA Open Model License.",
        "",
        f"Made with {', '.join(f'{name} {version}' for name, version in manifest['versions'].items())}.",
    ]
    return "\n".join(lines) + "\n"


def _default(names: Sequence[str]) -> str:
    """What is run unless told otherwise; a runtime on something else than a CPU looks for itself."""
    return "cpu" if "cpu" in names else names[0]


def _graph_entry(graph: Graph, variants: Sequence[Variant]) -> dict[str, Any]:
    return {
        "inputs": [asdict(port) for port in graph.inputs],
        "outputs": [asdict(graph.output)],
        "variants": {
            variant.name: {
                "file": variant.file,
                "weights": variant.weights,
                "opset": variant.opset,
                "engines": list(variant.engines),
                "parity": [asdict(row) for row in variant.parity],
                "verified": variant.verified,
            }
            for variant in variants
        },
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
