"""cosmos-ref merge-lora: an adapter becomes part of the weights."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from cosmos_ref.config import LoRAConfig
from cosmos_ref.errors import UserError


def merge_lora(
    base: Annotated[Path, tyro.conf.Positional],
    adapter: Annotated[Path | None, tyro.conf.Positional] = None,
    *,
    out: Path,
) -> None:
    """Add an adapter to the weights that it was trained on; the result is a checkpoint like any other.

    Args:
        base: a checkpoint, or the folder of a training run, whose averaged weights are taken.
        adapter: folder of the adapter, in PEFT's format; none merges those that the run itself has trained.
        out: folder that does not exist yet.
    """
    from cosmos_ref.adapter import load_adapter
    from cosmos_ref.blocks import lora
    from cosmos_ref.checkpoint import find_checkpoint, load_strict, read_checkpoint, save_checkpoint
    from cosmos_ref.model.initialization import build_denoiser

    if out.exists():
        raise UserError(f"{out} exists already: give another --out")
    folder = find_checkpoint(base)
    found = read_checkpoint(folder, names=())
    if adapter is None and not found.config.lora.rank:
        raise UserError(f"{folder} has no adapters of its own: name one, as `merge-lora {base} ADAPTER --out {out}`")
    network = next((group for group in ("ema", "model") if group in found.groups), None)
    if network is None:
        raise UserError(f"{folder} holds no network to merge with: give another checkpoint, or convert it again")
    plain = replace(found.config, lora=LoRAConfig())
    if adapter is not None:
        load_adapter(build_denoiser(plain).network, adapter)  # what does not fit is found before the weights are read
    others = [group for group in ("uncertainty", "tokenizer", "images") if group in found.groups]
    tensors = read_checkpoint(folder, [network, *others]).tensors
    denoiser = build_denoiser(found.config)
    load_strict(denoiser, tensors.pop(network), f"the network in {folder}")
    lora.merge_lora(denoiser.network)
    if adapter is not None:
        load_adapter(denoiser.network, adapter)
        lora.merge_lora(denoiser.network)
    save_checkpoint(out, plain, {"model": denoiser.state_dict(), **tensors}, found.state)
    Console().print(f"{out}: generate from it by `cosmos-ref sample --weights {out}`", soft_wrap=True)
