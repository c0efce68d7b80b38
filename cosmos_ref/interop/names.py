"""What NVIDIA's release and diffusers call our tensors. Only names differ: no tensor is transposed or split."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from cosmos_ref.config import PRESETS, Config
from cosmos_ref.errors import UserError
from cosmos_ref.interop.sources import listed, read_json
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty

Layout = Literal["ours", "nvidia", "nvidia-training", "diffusers"]
"""
- ours: `model.`, `ema.` or `uncertainty.`, then the name in that module;
- nvidia: the release, one flat dictionary: `net.` (or nothing), and `logvar.` for u(sigma);
- nvidia-training: `{"model": the same, "ema": the same with - for .}`, nesting written as a dot;
- diffusers: CosmosTransformer3DModel, which has neither u(sigma) nor an average of the weights.
"""

# ours, NVIDIA, diffusers
NETWORK = [
    ("patch_embedding.weight", "x_embedder.proj.1.weight", "patch_embed.proj.weight"),
    ("position_embedding.t", "extra_pos_embedder.pos_emb_t", "learnable_pos_embed.pos_emb_t"),
    ("position_embedding.h", "extra_pos_embedder.pos_emb_h", "learnable_pos_embed.pos_emb_h"),
    ("position_embedding.w", "extra_pos_embedder.pos_emb_w", "learnable_pos_embed.pos_emb_w"),
    ("noise_embedding.linear_1.weight", "t_embedder.1.linear_1.weight", "time_embed.t_embedder.linear_1.weight"),
    ("noise_embedding.linear_2.weight", "t_embedder.1.linear_2.weight", "time_embed.t_embedder.linear_2.weight"),
    ("noise_embedding.norm.weight", "affline_norm.weight", "time_embed.norm.weight"),
    ("final_layer.adaln.down.weight", "final_layer.adaLN_modulation.1.weight", "norm_out.linear_1.weight"),
    ("final_layer.adaln.up.weight", "final_layer.adaLN_modulation.2.weight", "norm_out.linear_2.weight"),
    ("final_layer.linear.weight", "final_layer.linear.weight", "proj_out.weight"),
]
BLOCK_PREFIXES = ("blocks.{i}.", "blocks.block{i}.blocks.", "transformer_blocks.{i}.")
BLOCK = [
    ("adaln_self.down.weight", "0.adaLN_modulation.1.weight", "norm1.linear_1.weight"),
    ("adaln_self.up.weight", "0.adaLN_modulation.2.weight", "norm1.linear_2.weight"),
    ("self_attention.to_q.weight", "0.block.attn.to_q.0.weight", "attn1.to_q.weight"),
    ("self_attention.norm_q.weight", "0.block.attn.to_q.1.weight", "attn1.norm_q.weight"),
    ("self_attention.to_k.weight", "0.block.attn.to_k.0.weight", "attn1.to_k.weight"),
    ("self_attention.norm_k.weight", "0.block.attn.to_k.1.weight", "attn1.norm_k.weight"),
    ("self_attention.to_v.weight", "0.block.attn.to_v.0.weight", "attn1.to_v.weight"),
    ("self_attention.to_out.weight", "0.block.attn.to_out.0.weight", "attn1.to_out.0.weight"),
    ("adaln_cross.down.weight", "1.adaLN_modulation.1.weight", "norm2.linear_1.weight"),
    ("adaln_cross.up.weight", "1.adaLN_modulation.2.weight", "norm2.linear_2.weight"),
    ("cross_attention.to_q.weight", "1.block.attn.to_q.0.weight", "attn2.to_q.weight"),
    ("cross_attention.norm_q.weight", "1.block.attn.to_q.1.weight", "attn2.norm_q.weight"),
    ("cross_attention.to_k.weight", "1.block.attn.to_k.0.weight", "attn2.to_k.weight"),
    ("cross_attention.norm_k.weight", "1.block.attn.to_k.1.weight", "attn2.norm_k.weight"),
    ("cross_attention.to_v.weight", "1.block.attn.to_v.0.weight", "attn2.to_v.weight"),
    ("cross_attention.to_out.weight", "1.block.attn.to_out.0.weight", "attn2.to_out.0.weight"),
    ("adaln_mlp.down.weight", "2.adaLN_modulation.1.weight", "norm3.linear_1.weight"),
    ("adaln_mlp.up.weight", "2.adaLN_modulation.2.weight", "norm3.linear_2.weight"),
    ("mlp.layer1.weight", "2.block.layer1.weight", "ff.net.0.proj.weight"),
    ("mlp.layer2.weight", "2.block.layer2.weight", "ff.net.2.weight"),
]
UNCERTAINTY = [
    ("uncertainty.frequencies", "logvar.0.freqs"),
    ("uncertainty.phases", "logvar.0.phases"),
    ("uncertainty.linear.weight", "logvar.1.weight"),
]


def from_ours(layout: Layout, config: Config) -> dict[str, str]:
    """Our name of every tensor that `layout` can hold, to its name there.

    Raises:
        UserError: no layout is called so.
    """
    if layout not in get_args(Layout):
        raise UserError(f"no layout is called {layout!r}; there are: {', '.join(get_args(Layout))}")
    if layout == "ours":
        return {name: name for name in our_shapes(config)}
    rows = NETWORK + [
        tuple(prefix.format(i=i) + name for prefix, name in zip(BLOCK_PREFIXES, row, strict=True))
        for i in range(config.model.depth)
        for row in BLOCK
    ]
    if layout == "diffusers":
        return {f"model.network.{ours}": diffusers for ours, _, diffusers in rows}
    network = {ours: f"net.{nvidia}" for ours, nvidia, _ in rows}
    if layout == "nvidia":
        return {f"model.network.{ours}": nvidia for ours, nvidia in network.items()} | dict(UNCERTAINTY)
    return (
        {f"model.network.{ours}": f"model.{nvidia}" for ours, nvidia in network.items()}
        | {ours: f"model.{nvidia}" for ours, nvidia in UNCERTAINTY}
        | {f"ema.network.{ours}": f"ema.{nvidia.replace('.', '-')}" for ours, nvidia in network.items()}
    )


def to_ours(shapes: Mapping[str, tuple[int, ...]], layout: Layout, config: Config) -> dict[str, str]:
    """The name of every tensor of a state dictionary in `layout`, to its name with us.

    Left out is only what holds no weights: Transformer Engine's `_extra_state` and the table 0, 1, 2, ... in
    `pos_embedder.seq`; and the average of u(sigma), for which we have no place. The weights or their average must be
    there; whatever is there must be whole.

    Args:
        shapes: names of the state dictionary and the shapes of their tensors.
        layout: whose names they are.
        config: the model they should fit.

    Raises:
        UserError: tensors are unknown, missing, there twice or of another shape, or another preset's; ten of them are
            listed, the others counted.
    """
    wanted = {theirs: ours for ours, theirs in from_ours(layout, config).items()}
    expected = our_shapes(config)
    found: dict[str, str] = {}
    problems: list[str] = []
    for name in shapes:
        written = _as_written(name, layout, shapes)
        if layout.startswith("nvidia") and _holds_no_weights(written):
            continue
        ours = wanted.get(written)
        if ours is None:
            problems.append(f"unknown: {name}")
        elif ours in found.values():
            problems.append(f"there twice: {name}")
        else:
            found[name] = ours
            if tuple(shapes[name]) != expected[ours]:
                problems.append(f"of another shape: {name} is {tuple(shapes[name])}, should be {expected[ours]}")
    here = set(found.values())
    groups = {group_of(ours) for ours in here}
    if "ema" not in groups:
        groups.add("model")
    problems += [f"missing: {name}" for name, ours in wanted.items() if group_of(ours) in groups and ours not in here]
    if problems:
        raise UserError(f"{_misfit(shapes, layout, config)}:{listed(problems)}")
    return found


def recognise_layout(names: Iterable[str]) -> Layout | None:
    """Whose names these are; None if they are nobody's."""
    signs: dict[Layout, str] = {
        "ours": r"(model|ema)\.network\.",
        "diffusers": r"transformer_blocks\.",
        "nvidia-training": r"(model|ema)\.(net[.-])?blocks[.-]block",
        "nvidia": r"(net\.)?blocks\.block",
    }
    names = list(names)
    return next((layout for layout, sign in signs.items() if any(re.match(sign, name) for name in names)), None)


def recognise_preset(shapes: Mapping[str, tuple[int, ...]]) -> Config | None:
    """The preset whose width, depth and input channels these tensors have."""
    return next((config for config in PRESETS.values() if _size_of(config) == _size(shapes)), None)


def our_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a preset by our name, and its shape."""
    denoiser, uncertainty = build_denoiser(config).state_dict(), build_uncertainty(config).state_dict()
    groups = {"model": denoiser, "ema": denoiser, "uncertainty": uncertainty}
    return {f"{group}.{name}": tuple(t.shape) for group, state in groups.items() for name, t in state.items()}


def group_of(ours: str) -> str:
    """`model`, `ema` or `uncertainty`."""
    return ours.split(".", 1)[0]


def diffusers_config(config: Config) -> dict[str, Any]:
    """What diffusers' CosmosTransformer3DModel is built from (its `config.json`)."""
    model = config.model
    return {
        "_class_name": "CosmosTransformer3DModel",
        "in_channels": model.in_channels - 1,  # diffusers adds the padding mask by itself
        "out_channels": model.channels,
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.head_dim,
        "num_layers": model.depth,
        "mlp_ratio": model.mlp_ratio,
        "text_embed_dim": model.text_width,
        "adaln_lora_dim": model.adaln_lora_dim,
        "max_size": [tokens * patch for tokens, patch in zip(model.max_tokens, model.patch_size, strict=True)],
        "patch_size": list(model.patch_size),
        "rope_scale": list(model.rope_ratios),
        "concat_padding_mask": True,
        "extra_pos_embed_type": "learnable",
    }


def check_diffusers_config(folder: Path, config: Config) -> None:
    """Numbers that decide what the weights do, and that their shapes do not show.

    Raises:
        UserError: `config.json` in the folder has others than the preset.
    """
    path = folder / "config.json"
    theirs, wanted = read_json(path), diffusers_config(config)
    if not isinstance(theirs, dict):
        raise UserError(f"{path} should hold an object with the numbers of a model: copy it again")
    differing = [name for name in wanted if name in theirs and theirs[name] != wanted[name]]
    if differing:
        problems = listed(f"{name} is {theirs[name]}, should be {wanted[name]}" for name in differing)
        raise UserError(f"{path} is not of {config.name}, give the preset it is of:{problems}")


def _misfit(shapes: Mapping[str, tuple[int, ...]], layout: str, config: Config) -> str:
    found, wanted, other = _size(shapes), _size_of(config), recognise_preset(shapes)
    if found is None or found == wanted:
        return f"these tensors are not a {config.name} in the layout {layout!r}; give the layout and preset they are of"
    if other is not None:
        return f"these are weights of {other.name}, not of {config.name}: ask for preset {other.name}"
    spelt = ("{} wide, {} blocks deep, {} numbers a patch".format(*size) for size in (found, wanted))
    return f"these are weights of another model than {config.name}: " + ", not ".join(spelt)


def _size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int] | None:
    """Width, depth and numbers a patch of a network, whatever the layout."""
    dotted = {name.replace("-", "."): tuple(shape) for name, shape in shapes.items()}
    ends = ("patch_embedding.weight", "x_embedder.proj.1.weight", "patch_embed.proj.weight")
    patches = [shape for name, shape in dotted.items() if name.endswith(ends) and len(shape) == 2]
    blocks = [int(match[1]) for name in dotted if (match := re.search(r"blocks\.(?:block)?(\d+)\.", name))]
    return (patches[0][0], 1 + max(blocks), patches[0][1]) if patches and blocks else None


def _size_of(config: Config) -> tuple[int, int, int]:
    model = config.model
    return model.width, model.depth, model.in_channels * math.prod(model.patch_size)


def _as_written(name: str, layout: str, all_names: Iterable[str]) -> str:
    """A name of NVIDIA's with the prefix `net.` and the separator that files of its layout have, or may lack."""
    if layout == "nvidia-training" and name.startswith("ema."):
        rest = name.removeprefix("ema.").replace(".", "-")
        prefixed = any(other.startswith(("ema.net.", "ema.net-")) for other in all_names)
        return f"ema.{rest}" if prefixed or rest.startswith("logvar-") else f"ema.net-{rest}"
    if layout.startswith("nvidia"):
        group = "model." if layout == "nvidia-training" else ""
        rest = name.removeprefix(group)
        prefixed = any(other.startswith(f"{group}net.") for other in all_names)
        if name.startswith(group) and not prefixed and not rest.startswith("logvar."):
            return f"{group}net.{rest}"
    return name


def _holds_no_weights(written: str) -> bool:
    return written.endswith(("_extra_state", "pos_embedder.seq", "pos_embedder-seq")) or written.startswith(
        "ema.logvar-"
    )
