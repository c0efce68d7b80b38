"""Adapters on disk, as PEFT has them: a folder with `adapter_model.safetensors` and `adapter_config.json`."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cosmos_ref.blocks.lora import LoRALinear, add_lora
from cosmos_ref.config import Config, LoRAConfig
from cosmos_ref.errors import UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the path of a layer."""

UNSUPPORTED = (
    *("use_dora", "use_rslora", "use_qalora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layers_to_transform", "exclude_modules", "trainable_token_indices", "target_parameters"),
    *("megatron_config", "layer_replication"),
)
"""Settings of PEFT's that make another adapter of the same tensors; ours has none of them."""


def save_adapter(folder: str | Path, network: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> Path:
    """Write the adapters of a network in PEFT's format; the folder appears whole or not at all.

    Args:
        folder: where; an older adapter there is replaced, its parent is made.
        network: a network with adapters.
        tensors: A and B of the layers, where it is not those in the network that are wanted (but their average), under
            the names that they have in the network's state dictionary.

    Raises:
        UserError: the folder exists and is no adapter.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LoRALinear)}
    tensors = network.state_dict() if tensors is None else tensors
    adapter = {
        f"{PREFIX}{name}.{matrix}.weight": tensors[f"{name}.{matrix}"].detach().cpu().contiguous()
        for name in layers
        for matrix in ("lora_A", "lora_B")
    }
    some = next(iter(layers.values()))
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": len(some.lora_A),
        "lora_alpha": some.alpha,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} exists and is no adapter: give another folder, or delete it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "replaced"))
    for rest in (partial, replaced):
        shutil.rmtree(rest, ignore_errors=True)
    partial.mkdir()
    save_file(adapter, partial / WEIGHTS, metadata={"format": "pt"})
    (partial / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(partial, folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


@torch.no_grad()
def load_adapter(network: nn.Module, folder: str | Path) -> LoRAConfig:
    """Put the adapters of a folder beside the layers of a network, in place.

    Every tensor must find its layer and every layer its tensors, and something must change: names that do not match and
    are passed over in silence leave a model that works as if nothing had been loaded.

    Args:
        network: a network without adapters, on any device.
        folder: an adapter in PEFT's format, ours or not.

    Returns:
        Rank, alpha and layers.

    Raises:
        UserError: the folder is no adapter, is damaged, of another kind, for another network, or changes nothing.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is missing or damaged ({error}): copy the adapter again") from None
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    if any(isinstance(layer, LoRALinear) for layer in layers.values()):
        raise UserError(
            "the network has adapters already: merge them first, by `cosmos-ref merge-lora RUN --out FOLDER`"
        )
    expected = {
        f"{PREFIX}{name}.{matrix}.weight": shape
        for name, layer in layers.items()
        if name.rpartition(".")[2] in config.targets
        for matrix, shape in (
            ("lora_A", (config.rank, layer.in_features)),
            ("lora_B", (layer.out_features, config.rank)),
        )
    }
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    problems = [f"missing: {key}" for key in expected.keys() - found.keys()]
    problems += [f"unexpected: {key}" for key in found.keys() - expected.keys()]
    for key in expected.keys() & found.keys():
        if found[key] != expected[key]:
            problems.append(f"of another shape: {key} is {found[key]}, should be {expected[key]}")
        elif not torch.isfinite(tensors[key]).all():
            problems.append(f"not finite: {key}")
    if problems or not expected:
        listed = "\n  ".join(sorted(problems)) or f"no layer is called {', '.join(config.targets)}"
        raise UserError(f"the adapter {folder} is not of this network; give the network it was trained on:\n  {listed}")
    if not any(tensor.any() for key, tensor in tensors.items() if key.endswith("lora_B.weight")):
        raise UserError(f"the adapter {folder} changes nothing, every B in it is zero: it was not trained")
    for name in add_lora(network, config):
        layer = network.get_submodule(name)
        assert isinstance(layer, LoRALinear)
        for matrix in ("lora_A", "lora_B"):
            value = tensors[f"{PREFIX}{name}.{matrix}.weight"].to(layer.weight.device, layer.weight.dtype)
            setattr(layer, matrix, nn.Parameter(value))
    return config


def require_merged(config: Config, path: str | Path, what: str) -> None:
    """Refuse weights that have adapters beside them, where there is no place for these.

    Args:
        config: of the checkpoint.
        path: where it is.
        what: what has no place for them.

    Raises:
        UserError: there are adapters; without them the weights would be those from before their training.
    """
    if config.lora.rank:
        raise UserError(
            f"{path} has adapters beside its weights, and {what} has no place for them: merge it first, by "
            f"`cosmos-ref merge-lora {path} --out FOLDER`"
        )


def read_config(folder: Path) -> LoRAConfig:
    """Rank, alpha and layers of an adapter.

    Raises:
        UserError: the folder is no adapter, or one that does more than ours do.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no adapter: give a folder with {WEIGHTS} and {CONFIG}, as training writes it")
    try:
        settings: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, rank, alpha = settings["peft_type"], int(settings["r"]), float(settings["lora_alpha"])
        targets, bias = settings["target_modules"], settings.get("bias", "none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read ({error!r}): copy the adapter again") from None
    more = [name for name in UNSUPPORTED if settings.get(name)]
    if kind != "LORA" or bias != "none" or more:
        what = ", ".join(more) or f"peft_type {kind}, bias {bias}"
        raise UserError(f"the adapter {folder} is more than LoRA ({what}): merge it where it was trained")
    if not isinstance(targets, list):
        raise UserError(f"{folder / CONFIG} has target_modules {targets!r}: write the names of the layers as a list")
    return LoRAConfig(rank=rank, alpha=alpha, targets=tuple(sorted({name.rpartition(".")[2] for name in targets})))
