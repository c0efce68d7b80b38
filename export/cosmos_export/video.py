"""Read the frames that a clip goes on from, and write the clip, with PyAV."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_export.bundle import BundleError

# FFmpeg would also render a text file as a "video" and follow a playlist to other hosts: allow videos only.
VIDEO_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg",
    "protocol_whitelist": "file",
}


def read_last_frames(path: str | Path, count: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The last `count` frames of a video file, `3 T H W` in [-1, 1], scaled to (height, width) where given.

    Raises:
        BundleError: if the file is missing, no video, or has fewer frames.
    """
    import av
    from av.error import FFmpegError

    kept: list[np.ndarray] = []
    try:
        with av.open(str(Path(path).absolute()), options=VIDEO_OPTIONS) as container:
            for frame in container.decode(video=0):
                if size is not None:
                    frame = frame.reformat(height=size[0], width=size[1], interpolation="AREA")
                kept = [*kept, frame.to_ndarray(format="rgb24")][-count:]
    except (FFmpegError, IndexError, OSError) as error:
        raise BundleError(f"{path} cannot be read as a video: {error}") from error
    if len(kept) < count:
        raise BundleError(f"{path} has {len(kept)} frame(s), {count} are needed: use a longer video")
    return np.stack(kept).transpose(3, 0, 1, 2).astype(np.float32) / 127.5 - 1


def write_mp4(path: str | Path, video: np.ndarray, fps: float) -> None:
    """Write a clip `3 T H W` in [-1, 1] as H.264; the file appears whole or not at all.

    Raises:
        ValueError: if the clip holds values that are not finite.
    """
    import av

    path = Path(path)
    if not np.isfinite(video).all():
        raise ValueError("the clip holds values that are not finite")
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
