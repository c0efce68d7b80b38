"""How far two engines are apart: call by call, along a whole sampling, layer by layer. PyTorch is not needed.

    python -m cosmos_export.verify BUNDLE --variants cpu int8

Exit code 0: the contracts hold; 1: one is broken, and the first layer that drifts is named; 2: it cannot be measured.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cosmos_export.compare import LIMITS, Call, Contract, Parity, call_inputs, compare, table
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.manifest import read_manifest
from cosmos_export.sampling import guided, schedule
from cosmos_export.sides import Inputs, Side, bundle_side, open_variant
from cosmos_export.solvers import integrate, noise_from_seed

Say = Callable[[str], None]
CALLS, SEED = 12, 0
"""How many calls of random sizes are compared, and what they are drawn from."""


@dataclass
class Verified:
    """What was measured of a variant."""

    rows: list[Parity]
    layers: list[Parity] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the contract holds."""
        return all(row.ok for row in self.rows)

    @property
    def first_drift(self) -> str | None:
        """The first layer that is beyond the limit."""
        return next((row.what for row in self.layers if not row.ok), None)


def random_cases(config: Any, ranges: Mapping[str, tuple[int, int, int]], count: int, seed: int) -> dict[str, Inputs]:
    """Inputs of the smallest sizes, of the largest, and of random ones; the noise levels go over the preset's range.

    Beyond the highest level that it is sampled at, a trained network magnifies rounding: there float32 alone is 1e-5.

    Args:
        config: the preset's numbers.
        ranges: of every size: least, most, and what it is a multiple of.
        count: how many, at least two.
        seed: what they are drawn from.
    """
    random = np.random.default_rng(seed)
    sizes = [{name: low for name, (low, _, _) in ranges.items()}, {name: high for name, (_, high, _) in ranges.items()}]
    for _ in range(count - 2):
        sizes.append({n: int(random.integers(low // m, high // m + 1)) * m for n, (low, high, m) in ranges.items()})
    sigmas = random.permutation(np.geomspace(config.diffusion.sigma_min, config.diffusion.sigma_max, count))
    return {
        f"call, {' '.join(f'{name} {n}' for name, n in size.items())}, sigma {sigma:.3g}": call_inputs(
            config, **size, sigma=float(sigma), seed=seed + i
        )
        for i, (size, sigma) in enumerate(zip(sizes, sigmas, strict=True))
    }


def verify_variant(
    reference: Call,
    candidate: Call,
    contract: Contract,
    config: Mapping[str, Any],
    *,
    cases: Mapping[str, Inputs],
    condition: Inputs,
    decode: Callable[[np.ndarray], np.ndarray],
    steps: int = 35,
    say: Say = lambda line: None,
) -> list[Parity]:
    """Compare two denoisers: single calls, calls along the reference's sampling, and where samplings end.

    Args:
        reference: what it should be.
        candidate: what it is.
        contract: what is accepted.
        config: the preset's numbers, as in the manifest.
        cases: inputs of single calls.
        condition: inputs of a call; clips, sizes, text and given frames of the sampling.
        decode: from clean latents at the diffusion's scale to a video.
        steps: of the sampling.
        say: is told what is being done.
    """
    rows = []
    for number, (what, inputs) in enumerate(cases.items(), 1):
        say(f"call {number}/{len(cases)}")
        rows.append(compare(what, reference(inputs), candidate(inputs), *contract.call))
    along: list[Parity] = []

    def both(**inputs: np.ndarray) -> np.ndarray:
        say(f"call {len(along) + 1} of a sampling of {steps} steps")
        D = reference(inputs)
        what = f"worst call of a sampling, sigma {inputs['sigma'][0]:.3g}"
        along.append(compare(what, D, candidate(inputs), *contract.call))
        return D

    expected = _sampled(both, config, condition, steps)
    rows.append(next((row for row in along if not row.ok), None) or min(along, key=lambda row: row.cosine))
    if any(row.fault for row in rows):
        return rows  # nothing can be sampled with it
    say("sampling with the candidate alone")
    latents = _sampled(lambda **inputs: candidate(inputs), config, condition, steps)
    what = f"sampling, {config['sample']['solver']}, {steps} steps"
    return [*rows, compare(what, expected, latents, *contract.sampling, videos=(decode(expected), decode(latents)))]


def _sampled(
    denoiser: Callable[..., np.ndarray], config: Mapping[str, Any], condition: Inputs, steps: int
) -> np.ndarray:
    """Clean latents from the condition's text and given frames, guided as the preset is."""
    told = {name: value for name, value in condition.items() if name not in ("x", "sigma")}
    noise = np.stack([noise_from_seed(SEED, i, condition["x"].shape[1:]) for i in range(len(condition["x"]))])
    null_text, guidance = np.zeros_like(told["text_embeddings"]), config["sample"]["guidance"]
    denoise = guided(denoiser, told, null_text, guidance, told.get("given_latents"))
    return integrate(denoise, noise, schedule(config, steps), config["sample"]["solver"])


def compare_layers(reference: Side, candidate: Side, contract: Contract, inputs: Inputs) -> list[Parity]:
    """What leaves each layer of both; the limit is the one on the output, as a relative L2."""
    value, measure = contract.call
    limit = value if measure == "relative" else math.sqrt(2 * (1 - value))  # the chord of the angle
    if reference.layers is None or candidate.layers is None:
        return []
    expected, found = reference.layers(inputs), candidate.layers(inputs)
    return [compare(name, expected[name], found[name], limit, "l2") for name in expected if name in found]


def ranges_of(manifest: Mapping[str, Any], usual: Inputs, profile: str | None) -> dict[str, tuple[int, int, int]]:
    """Least, most and unit of the denoiser's sizes: those of a profile, or up to twice those of the usual inputs."""
    _, _, frames, height, width = usual["x"].shape
    most = {"batch": 2, "frames": frames, "height": height, "width": width}
    most["text_length"] = usual["text_embeddings"].shape[1]
    found = {}
    for name, size in most.items():
        dim = manifest["dims"][name]
        low, high = dim["min"], 2 * size if dim["max"] is None else min(2 * size, dim["max"])
        if profile is not None:
            low, high = manifest["profiles"][profile]["min"][name], manifest["profiles"][profile]["max"][name]
        found[name] = (low, high, dim["multiple_of"])
    return found


def verify_bundle(
    folder: Path,
    variants: Sequence[str],
    reference: str | Side = "fp32",
    *,
    layers: bool = False,
    steps: int = 35,
    say: Say = lambda line: None,
    **place: Any,
) -> dict[str, Verified]:
    """Compare variants of a bundle with one of them, or with what is not in the bundle.

    Args:
        folder: of the bundle; all its files are checked first.
        variants: none is all but the reference.
        reference: a variant on ONNX Runtime's CPU provider, or another engine.
        layers: look into the network although the contract holds.
        steps: of the sampling.
        say: is told what is being done.
        place: where the variants run: backend, provider, profile, threads.

    Raises:
        BundleError: if something cannot be used.
    """
    if steps < 2:
        raise BundleError(f"--steps {steps} is too few: a sampler takes at least 2")
    folder, manifest = Path(folder), read_manifest(Path(folder))
    variants = list(variants) or [name for name in manifest["graphs"]["denoiser"]["variants"] if name != reference]
    for name in variants:
        if name not in manifest["graphs"]["denoiser"]["variants"] or name not in LIMITS:
            there = ", ".join(manifest["graphs"]["denoiser"]["variants"])
            raise BundleError(f"{folder} has no variant {name!r}; it has: {there}")
    if not variants:
        raise BundleError(f"{folder} holds {reference} alone: export other --variants, or name another --reference")
    profile, threads = place.get("profile"), place.get("threads", 0)
    if profile is not None and profile not in manifest["profiles"]:
        raise BundleError(f"{folder} has no profile {profile!r}; it has: {', '.join(manifest['profiles']) or 'none'}")
    if isinstance(reference, str):
        reference = bundle_side(folder, manifest, reference, threads=threads)
    config = manifest["config"]
    numbers = json.loads(json.dumps(config), object_hook=lambda entries: SimpleNamespace(**entries))
    try:
        with np.load(folder / "sample_inputs.npz", allow_pickle=False) as file:
            inputs = {name.split("/")[1]: file[name] for name in file if name.startswith("denoiser/")}
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no sample inputs ({error}): export it with verification") from error
    cases = random_cases(numbers, ranges_of(manifest, inputs, profile), CALLS, SEED)
    decoder = open_variant(
        folder / manifest["graphs"]["tokenizer_decoder"]["variants"]["fp32"]["file"], "fp32", threads
    )

    def decode(x0: np.ndarray) -> np.ndarray:
        return decoder({"latents": (x0 / config["diffusion"]["sigma_data"]).astype(np.float32)})

    result = {}
    for name in variants:
        start = time.perf_counter()
        candidate = bundle_side(folder, manifest, name, **place)
        done = Verified(
            verify_variant(
                reference.call,
                candidate.call,
                LIMITS[name],
                config,
                cases=cases,
                condition=inputs,
                decode=decode,
                steps=steps,
                say=lambda line, name=name: say(f"{name}: {line}"),
            )
        )
        if (place.get("backend", "onnxruntime"), place.get("provider", "cpu")) == ("onnxruntime", "cpu"):
            done.rows += tokenizer_rows(folder, manifest, name, threads)
        if layers or not done.ok:
            say(f"{name}: layer by layer")
            done.layers = compare_layers(reference, candidate, LIMITS[name], inputs)
        done.seconds = time.perf_counter() - start
        result[name] = done
    return result


def tokenizer_rows(folder: Path, manifest: Mapping[str, Any], variant: str, threads: int) -> list[Parity]:
    """Both halves of the tokenizer, where they have this variant, against what PyTorch made of the sample inputs."""
    rows = []
    with np.load(folder / "sample_inputs.npz") as given, np.load(folder / "expected.npz") as expected:
        for graph, port, answer in (
            ("tokenizer_encoder", "video", "latents"),
            ("tokenizer_decoder", "latents", "video"),
        ):
            form = manifest["graphs"][graph]["variants"].get(variant)
            if form is not None:
                found = open_variant(folder / form["file"], variant, threads)({port: given[f"{graph}/{port}"]})
                rows.append(compare(graph, expected[f"{graph}/{answer}"], found, *LIMITS[variant].call))
    return rows


def report(result: Mapping[str, Verified], reference: str, levels: tuple[float, float]) -> str:
    """All that was measured, as text."""
    parts = [f"Against {reference}; noise levels from {levels[0]:g} to {levels[1]:g}, the range of the preset."]
    for name, done in result.items():
        verdict = "the contract holds" if done.ok else "THE CONTRACT IS BROKEN"
        parts.append(f"{name}: {verdict} ({done.seconds:.1f} s)\n{table(done.rows)}")
        if done.layers:
            first = done.first_drift
            said = f"the first layer beyond the limit is {first}" if first else "no layer is beyond the limit"
            parts.append(f"{table(done.layers)}\n{said}")
        elif not done.ok:
            parts.append("this engine does not show its layers: verify the same variant on ONNX Runtime's CPU provider")
    return "\n\n".join(parts)


def write_json(path: Path, result: Mapping[str, Verified], reference: str) -> None:
    """The same for programs."""
    variants = {
        name: {"ok": done.ok, "seconds": done.seconds, "first_drift": done.first_drift}
        | {kind: [asdict(row) for row in getattr(done, kind)] for kind in ("rows", "layers")}
        for name, done in result.items()
    }
    path.write_text(json.dumps({"reference": reference, "variants": variants}, indent=1) + "\n")


def check_json(path: Path | None) -> None:
    """Refuse a file that could not be written when all is measured.

    Raises:
        BundleError: if so.
    """
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise BundleError(f"cannot write {path}: give a file in a folder that is there and writable")


def show(line: str) -> None:
    """Progress, on a line of its own that the next one replaces."""
    print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 1 if a contract is broken or running failed, 2 if it cannot be measured."""
    parser = argparse.ArgumentParser("python -m cosmos_export.verify", description="Compare variants of a bundle.")
    add = parser.add_argument
    add("bundle", type=Path, help="folder written by the exporter")
    add("--variants", nargs="*", default=(), help="what is compared; else all")
    add("--reference", default="fp32", help="the variant that they are compared with, on ONNX Runtime's CPU provider")
    add("--layers", action="store_true", help="look into the network, although the contract holds")
    add("--steps", type=int, default=35, help="of the sampling")
    add("--json", type=Path, help="file to write what was measured to")
    add("--backend", choices=("onnxruntime", "tensorrt"), default="onnxruntime", help="what runs the variants")
    add("--provider", default="cpu", help="of ONNX Runtime: cpu, cuda, tensorrt")
    add("--profile", help="sizes to stay in; TensorRT has an engine for each")
    add("--threads", type=int, default=0, help="0 is one per core")
    arguments = vars(parser.parse_args(argv))
    folder, out, reference = (arguments.pop(name) for name in ("bundle", "json", "reference"))
    try:
        check_json(out)
        result = verify_bundle(folder, reference=reference, say=show, **arguments)
        show("")
        print("\r" + report(result, reference, levels_of(folder)))
        if out is not None:
            write_json(out, result, reference)
    except BundleError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except (EngineFailure, RuntimeError, OSError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0 if all(done.ok for done in result.values()) else 1


def levels_of(folder: Path) -> tuple[float, float]:
    """The least and the most noise that a bundle is sampled with."""
    diffusion = read_manifest(folder, files=())["config"]["diffusion"]
    return diffusion["sigma_min"], diffusion["sigma_max"]


if __name__ == "__main__":
    sys.exit(main())
