"""Make the README's picture from a finished demo: `python docs/preview.py runs/demo` writes docs/assets/demo.gif."""

import sys
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from cosmos_ref.video_io import read_clip, write_video

SIDE, GAP, COLUMNS = 108, 6, 6


def row(folder: Path) -> torch.Tensor:
    """The first clips of a folder side by side, `3 T H W`, each as high as `SIDE`."""
    tiles = []
    for path in sorted(folder.glob("*.mp4"))[:COLUMNS]:
        video = read_clip(path).video
        width = round(video.shape[-1] * SIDE / video.shape[-2])
        tile = interpolate(video.transpose(0, 1), (SIDE, width), mode="area").transpose(0, 1)
        tiles.append(torch.nn.functional.pad(tile, (GAP, GAP, GAP, GAP), value=1.0))
    return torch.cat(tiles, dim=-1)


def main(demo: Path) -> None:
    """Text2World above, two rows of Video2World (truth left, generated right) below."""
    text, video = row(demo / "text2world"), row(demo / "video2world")
    first, second = video.chunk(2, dim=-1)
    width = max(text.shape[-1], first.shape[-1])
    rows = [torch.nn.functional.pad(r, (0, width - r.shape[-1]), value=1.0) for r in (text, first, second)]
    write_video(Path(__file__).parent / "assets" / "demo.gif", torch.cat(rows, dim=-2), fps=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
