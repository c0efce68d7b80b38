"""Read and write clips: video through PyAV, still images and GIF through Pillow.

A clip is a float32 tensor `3 T H W` in [-1, 1], `x / 127.5 - 1` of the 8-bit value `x`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from cosmos_ref.equations.buckets import fit_size
from cosmos_ref.equations.pixels import from_bytes, to_bytes
from cosmos_ref.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
OUTPUT_SUFFIXES = (".mp4", ".gif", ".png")
BICUBIC = Image.Resampling.BICUBIC  # antialiased where it shrinks
IMAGE_FPS = 24.0  # the rate that leaves the model's temporal frequencies as they are

# FFmpeg would also render a text file as a "video" and follow a playlist to other hosts: allow videos only.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg",
    "protocol_whitelist": "file",
}


@dataclass(frozen=True)
class Clip:
    """Frames `3 T H W` in [-1, 1], their rate in frames per second, and the file they came from."""

    video: Float[Tensor, "3 T H W"]
    fps: float
    path: Path


@dataclass(frozen=True)
class Probe:
    """What a file holds: number of frames, size in pixels as displayed, frames per second."""

    frames: int
    height: int
    width: int
    fps: float


def probe(path: str | Path) -> Probe:
    """Say what a video or image file holds; every packet is read, but only the first frame is decoded.

    Raises:
        UserError: the file is missing, unreadable, empty, truncated or holds no video.
    """
    path = _existing_file(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width, _ = _read_image(path).shape
        return Probe(1, height, width, IMAGE_FPS)
    times, fps = _frame_times(path)
    height, width, _ = _decode(path, times, 0, 1, lambda rgb: rgb)[0].shape
    return Probe(len(times), height, width, fps)


def read_clip(
    path: str | Path,
    *,
    frames: int | None = None,
    from_end: bool = False,
    start: int = 0,
    height: int | None = None,
    width: int | None = None,
    resize: bool = False,
    inside: tuple[int, int] | None = None,
) -> Clip:
    """Read consecutive frames of a video, or an image as one frame at 24 frames per second.

    Only the frames asked for and those they depend on are decoded. With `resize` a frame is scaled (bicubic,
    antialiased, its shape kept) until it just covers `height` x `width`, then cropped about its centre.

    Args:
        path: the file.
        frames: how many frames; None means all from `start` on.
        from_end: take the last `frames` frames (`start` is not used).
        start: number of the first frame, from 0.
        height: wanted height in pixels; None takes the file's own size.
        width: wanted width in pixels; None takes the file's own size.
        resize: bring frames of another size to `height` x `width`; needs both.
        inside: height and width of a box; frames are scaled, nothing cropped, until they just fit into it.

    Returns:
        The clip, `3 T H W` in [-1, 1].

    Raises:
        UserError: the file is missing, unreadable, empty, truncated, no video, too short or of another size.
    """
    if start < 0 or (frames is not None and frames < 1):
        raise UserError(f"cannot read {frames} frames from frame {start} on: give frames >= 1 and start >= 0")
    path = _existing_file(path)

    def fit(rgb: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        found_height, found_width, _ = rgb.shape
        if inside is not None:
            wanted = fit_size(found_height, found_width, *inside)
            return rgb if wanted == (found_height, found_width) else _scale(rgb, *wanted)
        if (height or found_height, width or found_width) == (found_height, found_width):
            return rgb
        if not resize or height is None or width is None:
            raise UserError(
                f"{path} has frames of {found_width}x{found_height} pixels (width x height); accepted here:"
                f" {width or 'any'}x{height or 'any'}. Use --resize to scale and centre-crop it"
            )
        return _cover(rgb, height, width)

    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    times, fps = ([0], IMAGE_FPS) if is_image else _frame_times(path)
    count = max(len(times) - start, 1) if frames is None else frames
    first = len(times) - count if from_end else start
    if first < 0 or first + count > len(times):
        needed = f"{count} are needed" + (f" from frame {first} on" if first > 0 else "")
        raise UserError(f"{path} holds {len(times)} frame(s), but {needed}: use a longer video")
    pixels = [fit(_read_image(path))] if is_image else _decode(path, times, first, count, fit)
    video = rearrange(torch.from_numpy(np.stack(pixels)), "T H W C -> C T H W")
    return Clip(from_bytes(video.to(torch.float32, memory_format=torch.contiguous_format)), fps, path)


def check_output(path: str | Path) -> Path:
    """Return `path` if `write_video` can write there; call it before the work that makes the video.

    Raises:
        UserError: another suffix than .mp4, .gif or .png, a folder, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        accepted = ", ".join(OUTPUT_SUFFIXES)
        raise UserError(f"cannot write {path}: unknown suffix {path.suffix!r}; accepted: {accepted}")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give a file name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {folder} is not a writable folder; choose another place")
    if path.suffix.lower() == ".mp4" and "libx264" not in av.codecs_available:
        raise UserError(f"cannot write {path}: this PyAV has no libx264; choose .gif or .png")
    return path


def write_video(path: str | Path, video: Float[Tensor, "3 T H W"], fps: float, *, scale: int = 1) -> Path:
    """Write a clip as H.264 (.mp4), animation (.gif) or a strip of frames side by side (.png).

    Values are clamped to [-1, 1] and rounded to 8 bits. Missing folders are made; the file appears whole or
    not at all. MP4 is 4:2:0 with even sides: an odd side grows by repeating its last row or column. GIF
    counts time in hundredths of a second, at least two, so its rate is rounded, and a frame equal to the one
    before only prolongs that one. PNG holds no rate.

    Args:
        path: where to write; its suffix chooses the format.
        video: `3 T H W` in [-1, 1].
        fps: frames per second.
        scale: enlarge every pixel to a square of `scale` x `scale`, for tiny frames.

    Raises:
        UserError: the place cannot be written (see `check_output`).
        ValueError: the video holds a value that is not finite.
    """
    path = check_output(path)
    if not torch.isfinite(video).all():
        raise ValueError(f"the video for {path} holds values that are not finite")
    pixels = repeat(to_bytes(video.detach().cpu()), "C T H W -> T (H a) (W b) C", a=scale, b=scale).numpy()
    write = {".mp4": _write_mp4, ".gif": _write_gif, ".png": _write_png}[path.suffix.lower()]
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside, pixels, fps)
        os.replace(beside, path)
    except (FFmpegError, OSError) as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def find_videos(folder: str | Path, *, required: bool = True) -> list[Path]:
    """List the video files of a folder by name; hidden files and subfolders are left out.

    Raises:
        UserError: the folder is missing, or holds no video although one is `required`.
    """
    found = _find(folder, VIDEO_SUFFIXES)
    if required and not found:
        raise UserError(f"{folder} holds no video: put files ending in {', '.join(VIDEO_SUFFIXES)} there")
    return found


def find_images(folder: str | Path) -> list[Path]:
    """List the images of a folder by name; hidden files and subfolders are left out.

    Raises:
        UserError: the folder is missing.
    """
    return _find(folder, IMAGE_SUFFIXES)


def _find(folder: str | Path, suffixes: Sequence[str]) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds videos ({', '.join(VIDEO_SUFFIXES)})")
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")
    )


def caption_of(path: str | Path) -> str | None:
    """Return the caption of `name.mp4`: the UTF-8 text of `name.txt` beside it, or None if missing or blank.

    Raises:
        UserError: the caption's file cannot be read as UTF-8 text.
    """
    beside = Path(path).with_suffix(".txt")
    try:
        return beside.read_text(encoding="utf-8-sig").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read the caption {beside} as UTF-8 text: {error}") from error


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a video or image file")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a video or image file")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: give a video or image file")
    return path


def _truncated(path: Path, what: str) -> UserError:
    return UserError(f"{path} is truncated or damaged ({what}): copy or export it again")


def _read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image, it may be truncated: {error}") from error


def _cover(rgb: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    found_height, found_width, _ = rgb.shape
    x = (found_width - min(found_width, found_height * width / height)) / 2  # cropped from the left, and the right
    y = (found_height - min(found_height, found_width * height / width)) / 2
    return _scale(rgb, height, width, x, y)


def _scale(
    rgb: UInt8[np.ndarray, "H W 3"], height: int, width: int, x: float = 0, y: float = 0
) -> UInt8[np.ndarray, "h w 3"]:
    """Scale a frame, less x columns and y rows at each side."""
    found_height, found_width, _ = rgb.shape
    # Columns first, as in the runtime without PyTorch: left to itself, Pillow's order depends on its version.
    narrow = Image.fromarray(rgb).resize((width, found_height), BICUBIC, (x, 0, found_width - x, found_height))
    return np.asarray(narrow.resize((width, height), BICUBIC, (0, y, width, found_height - y)))


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    try:
        with av.open(str(path.absolute()), options=_OPTIONS) as container:
            if not container.streams.video:
                raise UserError(f"{path} holds no video stream: give a video file")
            container.streams.video[0].thread_type = "AUTO"
            yield container, container.streams.video[0]
    except (FFmpegError, OSError) as error:
        raise UserError(f"{path} cannot be read as a video, it may be truncated: {error.strerror}") from error


def _frame_times(path: Path) -> tuple[Sequence[int | None], float]:
    """Return the presentation time of every frame, in order and in ticks, and the rate; decode nothing."""
    times, end, damaged = [], 0.0, False
    with _open(path) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or IMAGE_FPS)
        promised = (container.duration or 0) / av.time_base
        for packet in container.demux():  # sound too: it may be what the container's duration measures
            if packet.size and packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.size and packet.stream is stream:
                damaged |= packet.is_corrupt
                if not packet.is_discard:  # cut away by the container's edit list
                    times.append(packet.pts)
        timed = container.format.name != "avi" and None not in times  # AVI knows the coding order only
        if container.format.name == "gif":  # it promises no length, but a whole one ends in a semicolon
            with path.open("rb") as file:
                file.seek(-min(16, path.stat().st_size), os.SEEK_END)
                damaged |= not file.read().rstrip(b"\0").endswith(b";")
    if damaged or not times or promised - end > 2 / fps:
        raise _truncated(path, f"{len(times)} frames found, {end:.2f} of {promised:.2f} seconds")
    return (sorted(times) if timed else [None] * len(times)), fps  # packets come in coding order


def _decode(
    path: Path, times: Sequence[int | None], first: int, count: int, fit: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """Decode `count` frames from `first` on, each passed through `fit` at once: no large one is kept."""
    for jump in (True, False):
        kept = []
        with _open(path) as (container, stream):
            target = times[first] if jump and first > 0 else None
            if target is not None:
                container.seek(target, stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                if number < first if target is None else (frame.pts or 0) < target:
                    continue
                if target is not None and not kept and frame.pts != target:
                    break  # the seek landed behind it (open groups of pictures): decode from the beginning
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                kept.append(np.ascontiguousarray(fit(upright)))
                if len(kept) == count:
                    return kept
    raise _truncated(path, f"{len(kept)} of the {count} frames from {first} on could be decoded")


def _write_mp4(path: Path, pixels: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    _, height, width, _ = pixels.shape
    pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # The index goes first, so that a browser can start playing.
    with av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # 16..235
        for frame in pixels:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            yuv = rgb.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(yuv))
        container.mux(stream.encode())


def _write_gif(path: Path, pixels: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    images = [Image.fromarray(frame) for frame in pixels]
    milliseconds = 10 * max(2, round(100 / fps))  # players slow down anything below two hundredths
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def _write_png(path: Path, pixels: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    del fps  # a still image has none
    Image.fromarray(np.ascontiguousarray(rearrange(pixels, "T H W C -> H (T W) C"))).save(path)
