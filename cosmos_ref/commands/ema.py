"""cosmos-ref ema: the average of the weights, of another length than the training kept."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from cosmos_ref.errors import UserError


def ema(run: Annotated[Path, tyro.conf.Positional], std: float, out: Path) -> None:
    """Put together the averaged weights of another width, from the averages in a run's checkpoints.

    Args:
        run: folder of a training run, or one of its checkpoints.
        std: width of the average, as a share of the training: 0.05 looks back half as far as 0.1.
        out: folder that does not exist yet; a checkpoint to sample from.
    """
    from cosmos_ref.checkpoint import read_checkpoint, save_checkpoint
    from cosmos_ref.training.posthoc import combine, find_snapshots

    if out.exists():
        raise UserError(f"{out} exists already: give another --out")
    snapshots = find_snapshots(run)
    combination = combine(snapshots, std)
    last = snapshots[-1].folder
    found = read_checkpoint(last, names=())
    others = [group for group in ("uncertainty", "tokenizer", "images") if group in found.groups]
    config = replace(found.config, train=replace(found.config.train, ema_stds=(std,)))
    tensors = {"ema": combination.tensors(), **read_checkpoint(last, others).tensors}
    save_checkpoint(out, config, tensors, found.state)
    Console().print(
        f"{out}: the average of width {std:g} after {found.state['step']} steps, from {len(snapshots)} averages "
        f"(misfit {combination.misfit:.1%}); generate from it by `cosmos-ref sample --weights {out}`",
        soft_wrap=True,
    )
