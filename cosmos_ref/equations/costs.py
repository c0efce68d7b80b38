"""What a model costs, counted before anything is allocated: its parameters, its arithmetic, its memory."""

from math import prod

from cosmos_ref.traceability import equation

_PAPER = "Cosmos (arXiv 2501.03575), Sec. 5"


@equation("costs.tokens", source=_PAPER + ".1.2; Peebles & Xie 2023 (arXiv 2212.09748), Sec. 3.2")
def tokens(grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> int:
    r"""Tokens that the network makes of a clip: one for each patch of its latents.

    $$L = \frac{t}{p_t} \cdot \frac{h}{p_h} \cdot \frac{w}{p_w}$$

    Args:
        grid: latent frames, height and width in latent pixels; patches divide them.
        patch_size: of a patch, in the same order.
    """
    return prod(size // patch for size, patch in zip(grid, patch_size, strict=True))


@equation("costs.parameters", source=_PAPER + "; released models: 7,236,192,256 and 14,267,149,312")
def parameters(
    width: int,
    depth: int,
    head_dim: int,
    text_width: int,
    mlp_width: int,
    adaln_lora_dim: int,
    patch_in: int,
    patch_out: int,
    position_rows: int,
) -> dict[str, int]:
    r"""Parameters of the transformer, by group; nothing has a bias, and the only norms with weights are RMS norms.

    $$n \left(4 D^2 + 2K\right) + n \left(2 D^2 + 2 D E + 2K\right) + n \cdot 2 D D_\text{mlp}
      + n \cdot 3 \cdot 4 R D + 3 R D + 4 D^2 + D + (P_\text{in} + P_\text{out} + P)\, D$$

    Args:
        width: D.
        depth: blocks n.
        head_dim: channels K of a head; queries and keys have a norm of this size, shared by all heads of a layer.
        text_width: E.
        mlp_width: hidden width of the MLP.
        adaln_lora_dim: rank R.
        patch_in: numbers in a patch of the network's input, mask channels included.
        patch_out: numbers in a patch of its output.
        position_rows: rows P of the three learned position tables together.
    """
    return {
        "patch embedding": patch_in * width,
        "position tables": position_rows * width,
        "noise embedding": width * width + width * 3 * width + width,
        "self-attention": depth * (4 * width**2 + 2 * head_dim),
        "cross-attention": depth * (2 * width**2 + 2 * text_width * width + 2 * head_dim),
        "MLP": depth * 2 * width * mlp_width,
        "AdaLN": depth * 3 * (1 + 3) * adaln_lora_dim * width + (1 + 2) * adaln_lora_dim * width,
        "final layer": width * patch_out,
    }


@equation("costs.dense_adaln", source=_PAPER + "; Peebles & Xie 2023 (arXiv 2212.09748), Sec. 3.2")
def dense_adaln(width: int, depth: int) -> dict[str, int]:
    r"""The groups of `parameters` that AdaLN without low rank and without a shared term would change.

    $$n \cdot 3 \cdot 3 D^2 + 2 D^2 \qquad \text{and} \qquad 2 D^2 + D$$

    Each sub-block has a full matrix to its shift, scale and gate, the final layer one to shift and scale, and the
    noise embedding's MLP ends at width D.
    """
    return {"AdaLN": depth * 3 * 3 * width**2 + 2 * width**2, "noise embedding": 2 * width**2 + width}


@equation("costs.adaln_saving", source=_PAPER + ".1.2, which says 36 %, that is 1 - 7/11")
def adaln_saving(parameters: dict[str, int], width: int, depth: int) -> float:
    r"""Share of its parameters that the low rank and the shared term save a network.

    $$1 - \frac{P}{P_\text{dense}}$$

    Args:
        parameters: of the network, by group.
        width: D.
        depth: blocks n.
    """
    return 1 - sum(parameters.values()) / sum((parameters | dense_adaln(width, depth)).values())


@equation("costs.flops", source=_PAPER + "; two operations a multiply-add")
def flops(
    tokens: int,
    text_tokens: int,
    width: int,
    depth: int,
    text_width: int,
    mlp_width: int,
    adaln_lora_dim: int,
    patch_in: int,
    patch_out: int,
) -> dict[str, int]:
    r"""Floating-point operations of all matrix products in one call of the network for one clip, by group.

    $$n \left(8 L D^2 + 4 L^2 D\right) + n \left(4 L D^2 + 4 L M D + 4 M E D\right) + n \cdot 4 L D D_\text{mlp}
      + n \cdot 24 R D + 6 R D + 8 D^2 + 2 L (P_\text{in} + P_\text{out})\, D$$

    Left out is everything that is no matrix product: norms, softmax, GELU, rotations, sums. They cost memory traffic
    rather than arithmetic.

    Args:
        tokens: L.
        text_tokens: M, padding included: it is attended like the rest.
        width: D.
        depth: blocks n.
        text_width: E.
        mlp_width: hidden width of the MLP.
        adaln_lora_dim: rank R.
        patch_in: numbers in a patch of the network's input, mask channels included.
        patch_out: numbers in a patch of its output.
    """
    text = 4 * text_tokens * text_width * width  # keys and values, the same at every noise level
    return {
        "patch embedding": 2 * tokens * patch_in * width,
        "noise embedding": 2 * (width * width + width * 3 * width),
        "self-attention": depth * 8 * tokens * width**2,
        "attention matrix": depth * 4 * tokens**2 * width,
        "cross-attention": depth * (4 * tokens * width**2 + 4 * tokens * text_tokens * width + text),
        "MLP": depth * 4 * tokens * width * mlp_width,
        "AdaLN": 2 * (depth * 3 * (1 + 3) + (1 + 2)) * adaln_lora_dim * width,
        "final layer": 2 * tokens * width * patch_out,
    }


@equation("costs.leading_flops", source=_PAPER + ", Tab. 13, whose 4sd^2 for a matrix of the MLP should be 8sd^2")
def leading_flops(tokens: int, width: int, depth: int) -> int:
    r"""The two terms that matter of `flops`, for an MLP four times as wide as the tokens.

    $$n \left(28 L D^2 + 4 L^2 D\right)$$

    It leaves out what the text, the noise level and the two ends of the network add: 0.6 % for the 7B model at 720p.
    """
    return depth * (28 * tokens * width**2 + 4 * tokens**2 * width)


@equation("costs.stored_activations", source=_PAPER + ", Tab. 13")
def stored_activations(tokens: int, batch: int, width: int, depth: int, number_bytes: int) -> int:
    r"""Bytes that a training step keeps from forward to backward pass, with the paper's selective recomputation.

    $$15\, n\, B L D \cdot b$$

    Attention matrices are not among them; norms, modulation and GELU are computed again.
    """
    return 15 * depth * batch * tokens * width * number_bytes


@equation("costs.training_bytes", source=_PAPER + ": 10 + 2 + 8 bytes a parameter")
def training_bytes(parameters: int) -> int:
    r"""Bytes that a training holds for its parameters, in either of two ways.

    $$(2 + 4 + 4 + 2 + 8)\,P = (4 + 4 + 4 + 8)\,P = 20\,P$$

    bfloat16 weights with a float32 copy, or float32 weights alone; their float32 average; gradients in the precision
    of the weights; AdamW's two float32 moments.
    """
    return (2 + 4 + 4 + 2 + 8) * parameters  # weights, their copy, average, gradients, moments


@equation(
    "costs.t5_parameters", source="Raffel et al. 2020 (arXiv 1910.10683), Sec. 2.1 and 3.7; code: google-t5/t5-11b"
)
def t5_parameters(
    vocabulary: int, width: int, depth: int, num_heads: int, head_dim: int, mlp_width: int, distances: int
) -> int:
    r"""Parameters of the encoder half of a T5 model of the first version, whose heads need not add up to its width.

    $$V D + n \left(4 D N K + 2 D D_\text{mlp} + 2 D\right) + b N + D$$

    Args:
        vocabulary: V.
        width: D.
        depth: layers n.
        num_heads: N.
        head_dim: K.
        mlp_width: hidden width of the MLP, which has no gate.
        distances: buckets b of the relative distances; only the first layer learns a bias for each, shared by all.
    """
    layer = 4 * width * num_heads * head_dim + 2 * width * mlp_width + 2 * width
    return vocabulary * width + depth * layer + distances * num_heads + width
