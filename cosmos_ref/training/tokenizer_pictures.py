"""What the training of a tokenizer shows: its curves, and what became of some clips."""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer


def draw_losses(records: list[dict[str, Any]], stage_2: int, path: Path) -> Path:
    """Draw the parts of the loss over the updates as PNG, videos strong and images pale."""
    from matplotlib.figure import Figure

    names = [name for name in ("absolute", "perceptual", "gram", "flow") if any(name in r for r in records)]
    figure = Figure(figsize=(8, 2 * len(names) + 0.6), dpi=120, layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        for images, colour, label in ((True, "#c9a27e", "images"), (False, "#1f6fb2", "videos")):
            chosen = [r for r in records if name in r and (r["frames"] == 1) == images]
            if chosen:
                axes.plot([r["step"] for r in chosen], [r[name] for r in chosen], color=colour, lw=1, label=label)
        axes.set(ylabel=name, yscale="log")
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if records[0]["step"] <= stage_2 < records[-1]["step"]:
            axes.axvline(stage_2 + 1, color="#777777", linestyle="--", linewidth=1)
    panels[0].set_title("Training of the tokenizer; dashed: the second stage begins", loc="left", fontweight="bold")
    panels[0].legend(frameon=False)
    panels[-1].set_xlabel("step")
    return _save_figure(figure, path)


@torch.no_grad()
def draw_reconstructions(tokenizer: ContinuousTokenizer | DiscreteTokenizer, video: Video, path: Path) -> Path:
    """Draw clips as strips of frames: the original above, its reconstruction below."""
    from matplotlib.figure import Figure

    back = tokenizer.decode(tokenizer.encode(video.to(next(tokenizer.parameters()).device))).to(video)
    chosen = torch.linspace(0, video.shape[2] - 1, min(5, video.shape[2])).long()
    strips = torch.stack([video[:, :, chosen], back[:, :, chosen]])
    pixels = rearrange(strips, "two B C T H W -> (B two H) (T W) C").clamp(-1, 1) / 2 + 0.5
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(8, 8 * height / width + 0.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(pixels.numpy(), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("held-out clips: original above, reconstruction below", loc="left", fontsize=9)
    return _save_figure(figure, path)


def _save_figure(figure: Any, path: Path) -> Path:
    beside = path.with_name(f".{path.name}.partial")
    figure.savefig(beside, format="png")
    beside.replace(path)
    return path
