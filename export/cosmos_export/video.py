"""Read the frames that a clip goes on from, and write the clip, with PyAV."""

import os
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_export.errors import BundleError, EngineFailure

# FFmpeg would also render a text file as a "video" and follow a playlist to other hosts: allow videos only.
VIDEO_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg",
    "protocol_whitelist": "file",
}


def read_last_frames(path: str | Path, count: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The last `count` frames of a video file, `3 T H W` in [-1, 1], upright, fitted to (height, width) where given.

    Raises:
        BundleError: if the file is missing, no video, or has fewer frames.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(Path(path).absolute()), options=VIDEO_OPTIONS) as container:
            kept = deque(container.decode(video=0), maxlen=count)
    except (FFmpegError, IndexError, OSError) as error:
        raise BundleError(f"{path} cannot be read as a video: {error}") from error
    if len(kept) < count:
        raise BundleError(f"{path} has {len(kept)} frame(s), {count} are needed: use a longer video")
    pictures = [np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)) for frame in kept]
    if size is not None:
        pictures = [fit(picture, *size) for picture in pictures]
    return np.stack(pictures).transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1


def count_frames(path: str | Path) -> int:
    """Frames of a video file, without decoding them.

    Raises:
        BundleError: if the file is missing or no video.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(Path(path).absolute()), options=VIDEO_OPTIONS) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (FFmpegError, IndexError, OSError) as error:
        raise BundleError(f"{path} cannot be read as a video: {error}") from error


def frame_rate(path: str | Path) -> float:
    """Frames a second of a video file that `read_last_frames` could read."""
    import av

    with av.open(str(Path(path).absolute()), options=VIDEO_OPTIONS) as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or stream.guessed_rate or 24)


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a picture `H W 3` of bytes until it just covers the size, bicubic and antialiased, and crop it centrally.

    The same bytes as `cosmos_ref.video_io` has from Pillow: columns first, rounded to bytes, then rows. The crop is the
    central part of the wanted shape; its edges may lie between pixels.
    """
    found_height, found_width = picture.shape[:2]
    columns = _bicubic(found_width, min(found_width, found_height * width / height), width)
    rows = _bicubic(found_height, min(found_height, found_width * height / width), height)
    for weights, axis in ((columns, 1), (rows, 0)):
        sums = np.tensordot(picture, weights, (axis, 1))  # whole numbers below 2**53: exact in any order
        picture = np.moveaxis(np.floor((sums + 2**21) / 2**22).clip(0, 255).astype(np.uint8), -1, axis)
    return picture


def _bicubic(found: int, kept: float, wanted: int) -> np.ndarray:
    """Weights `wanted found`, in units of 2**-22, that take the central `kept` of `found` pixels to `wanted`.

    The cubic kernel with a = -1/2, stretched where it shrinks. Pillow has the crop's edges in single precision.
    """
    begin, end = np.float32((found - kept) / 2), np.float32((found + kept) / 2)
    scale = float(end - begin) / wanted
    centres = float(begin) + (np.arange(wanted) + 0.5) * scale
    x = np.abs((np.arange(found) - centres[:, None] + 0.5) * (1 / max(scale, 1.0)))
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights *= 1 / weights.cumsum(axis=1)[:, -1:]
    return np.trunc(weights * 2**22 + np.copysign(0.5, weights))


def write_mp4(path: str | Path, video: np.ndarray, fps: float) -> None:
    """Write a clip `3 T H W` in [-1, 1] as H.264; the file appears whole or not at all.

    Raises:
        EngineFailure: if the clip holds values that are not finite.
    """
    import av

    path = Path(path)
    if not np.isfinite(video).all():
        raise EngineFailure("the clip holds values that are not finite: nothing was written")
    pixels = ((video.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 3, 0)
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    beside = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        with av.open(str(beside.absolute()), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "12"}
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1  # 16..235
            for picture in pixels:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                yuv = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                container.mux(stream.encode(yuv))
            container.mux(stream.encode())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
