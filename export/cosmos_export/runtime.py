"""The command line: from a bundle and a prompt, or a video, to a clip. numpy, one engine library and PyAV; no PyTorch.

python -m cosmos_export.runtime BUNDLE --prompt "a red marble falls" --out clip.mp4
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cosmos_export.bundle import Bundle
from cosmos_export.engines import providers_of
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.sampling import Seconds, check_settings, sample
from cosmos_export.text import look_up, read_embedding, read_table
from cosmos_export.video import count_frames, frame_rate, read_last_frames, write_mp4

SETTINGS = ("seed", "num_steps", "guidance", "augment_sigma", "fps")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, 2 if the request cannot be used, 1 if running it failed, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except BundleError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except EngineFailure as error:
        return _fail(str(error), 1)
    except MemoryError as error:
        return _fail(f"out of memory ({error}): lower --num-frames, --height or --width", 1)
    except Exception as error:  # of the engine, FFmpeg or the file system
        return _fail(f"{type(error).__name__}: {error}", 1)
    return 0


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cosmos-export", description="Generate a clip from a bundle, without PyTorch.")
    add = parser.add_argument
    add("bundle", type=Path, help="folder written by the exporter")
    add("--out", type=Path, required=True, help="the clip, .mp4")
    add("--prompt", help="what to show; left out, the model chooses")
    add("--negative-prompt", help="what to lead away from")
    add(
        "--text-embeddings",
        type=Path,
        help="of `cosmos-ref encode-text` (.safetensors: prompts are looked up in it), or of one prompt (.npy)",
    )
    add("--frames", type=Path, help="video to continue")
    add("--given", type=int, help="how many of its last frames to use, 1 + k * temporal factor; else as in training")
    add("--resize", action="store_true", help="scale the given frames to --height and --width")
    add("--num-frames", type=int, help="length of the clip, 1 + k * temporal factor")
    add("--height", type=int, help="in pixels")
    add("--width", type=int, help="in pixels")
    add("--fps", type=float, help="frames a second; with given frames, theirs")
    add("--num-steps", type=int, help="steps of the solver")
    add("--solver", choices=("euler", "heun", "res_2ab"))
    add("--guidance", type=float, help="0 is none")
    add("--augment-sigma", type=float, help="noise on the given frames")
    add("--seed", type=int, help="of the noise, from 0 to 2**64 - 1")
    add("--variant", help="form of the graphs, for example fp32, fp16, int8; else the bundle's default")
    add("--engine", default="onnxruntime", choices=("onnxruntime", "tensorrt"), help="what runs the graphs")
    add("--provider", default="cpu", help="of ONNX Runtime: cpu, cuda, tensorrt, or a name of its own")
    add("--profile", help="sizes to be bound to, as in the manifest")
    add("--fallback", action="store_true", help="let the CPU take over where the provider cannot be had")
    add("--warm-up", action="store_true", help="run every graph once before the clock starts")
    add("--threads", type=int, default=0, help="of the CPU, 0 is one per core")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    _check_arguments(arguments)
    started = time.perf_counter()
    bundle = Bundle.load(
        arguments.bundle,
        variant=arguments.variant,
        backend=arguments.engine,
        providers=providers_of(arguments.provider),
        threads=arguments.threads,
        profile=arguments.profile,
        fallback=arguments.fallback,
        say=_say,
    )
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    clip = bundle.config["clip"]
    text, null_text = _embeddings(arguments, bundle)
    given = None
    if arguments.frames is not None:
        given = _given(arguments, bundle)
        settings["fps"] = arguments.fps or frame_rate(arguments.frames)
    size = {
        "frames": arguments.num_frames or clip["frames"],
        "height": (arguments.height or clip["height"]) if given is None else given.shape[3],
        "width": (arguments.width or clip["width"]) if given is None else given.shape[4],
    }
    if arguments.warm_up:
        _warm_up(bundle, size, arguments.guidance, given)
    loaded = time.perf_counter() - started
    result = sample(
        bundle,
        (arguments.prompt,),
        text_embeddings=text,
        null_embeddings=null_text,
        negative_prompt=arguments.negative_prompt if null_text is None else None,
        given_video=given,
        solver=arguments.solver,
        progress=_show,
        **size,
        **settings,
    )
    begun = time.perf_counter()
    fps = settings["fps"] or clip["fps"]
    write_mp4(arguments.out, result.video[0], fps)
    written = time.perf_counter() - begun
    _, count, height, width = result.video[0].shape
    forms = f"{bundle.variants['denoiser']} denoiser, {bundle.variants['tokenizer_decoder']} tokenizer"
    print(f"{arguments.out}: {count} frames of {height}x{width} at {fps:g} fps; {forms}, {bundle.denoiser.name}")
    print(timings(loaded, result.seconds, written))


def timings(load: float, seconds: Seconds, write: float) -> str:
    """How long every stage took, in one line."""
    steps = seconds.steps
    later = f", {np.mean(steps[1:]):.3f} s each after the first" if len(steps) > 1 else ""
    return (
        f"load {load:.2f} s, text {seconds.text:.2f} s, encode {seconds.encode:.2f} s, {len(steps)} steps "
        f"{sum(steps):.2f} s (first {steps[0]:.3f} s{later}), decode {seconds.decode:.2f} s, write {write:.2f} s"
    )


def _check_arguments(arguments: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    out = arguments.out
    if out.suffix.lower() != ".mp4":
        raise BundleError(f"cannot write {out}: the suffix must be .mp4")
    if out.is_dir():
        raise BundleError(f"cannot write {out}: it is a folder; give a file name")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise BundleError(f"cannot write {out}: {out.absolute().parent} is not a writable folder")
    if arguments.threads < 0:
        raise BundleError(f"--threads {arguments.threads} is not accepted: give a number, 0 is one per core")
    for name in ("num_frames", "height", "width", "given"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise BundleError(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    if arguments.given is not None and arguments.frames is None:
        raise BundleError("--given counts the frames to use of --frames, and there are none")
    check_settings(**{name: getattr(arguments, name) for name in SETTINGS})


def _embeddings(arguments: argparse.Namespace, bundle: Bundle) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Text embeddings from a file, and those to lead away from; None where the prompts are read as words."""
    path, text = arguments.text_embeddings, bundle.config["text"]
    if path is None:
        return None, None
    size = text["length"], text["width"]
    if path.suffix == ".safetensors":
        rows = look_up(path, read_table(path), [arguments.prompt, arguments.negative_prompt], *size)
        return rows[:1], rows[1:]
    if path.suffix != ".npy":
        raise BundleError(f"--text-embeddings {path} is neither a .npy nor a .safetensors file")
    if arguments.prompt is not None:
        raise BundleError(
            "--prompt and --text-embeddings exclude each other where the file is a .npy: it has no prompts"
        )
    return read_embedding(path, *size), None


def _given(arguments: argparse.Namespace, bundle: Bundle) -> np.ndarray:
    """The last frames of the video to go on from: as many as asked for, else as many as the model was trained for."""
    if not bundle.video2world:
        raise BundleError("this is a Text2World model: it takes no --frames, only a prompt")
    clip, count = bundle.config["clip"], arguments.given
    if count is None:
        most = 1 + (len(bundle.config["train"]["given_latents"]) - 2) * bundle.manifest["temporal_factor"]
        count = most if count_frames(arguments.frames) >= most else 1
    bundle.latent_length(count)
    size = (arguments.height or clip["height"], arguments.width or clip["width"])
    given = read_last_frames(arguments.frames, count, size if arguments.resize else None)[None]
    wanted = (arguments.height or given.shape[3], arguments.width or given.shape[4])
    if given.shape[3:] != wanted:
        found = f"{given.shape[3]} x {given.shape[4]}"
        raise BundleError(f"the given frames are {found}, not {wanted[0]} x {wanted[1]}: add --resize")
    return given


def _warm_up(bundle: Bundle, size: dict[str, int], guidance: float | None, given: np.ndarray | None) -> None:
    _, t, h, w = bundle.latent_shape(**size)
    guidance = bundle.config["sample"]["guidance"] if guidance is None else guidance
    sizes = {"batch": 2 if guidance else 1, "clips": 1, "frames": t, "height": h, "width": w}
    sizes["text_length"] = bundle.config["text"]["length"]
    if given is not None:
        sizes |= {"video_frames": given.shape[2], "video_height": given.shape[3], "video_width": given.shape[4]}
    bundle.warm_up(sizes)


def _say(line: str) -> None:
    print(f"\r{line}", end="\n" if line.endswith("100%") else "", file=sys.stderr, flush=True)


def _show(steps: Iterable) -> Iterable:
    steps, started = list(steps), time.perf_counter()
    for n, step in enumerate(steps, 1):
        yield step
        left = (time.perf_counter() - started) / n * (len(steps) - n)
        _say(f"step {n}/{len(steps)}, {left:.0f} s left" + ("\n" if n == len(steps) else "  "))


if __name__ == "__main__":
    sys.exit(main())
