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


@equation("costs.kept_activations", source="ours, counted: what autograd keeps of one of our blocks; no recomputation")
def kept_activations(
    tokens: int,
    text_tokens: int,
    batch: int,
    width: int,
    num_heads: int,
    mlp_width: int,
    adaln_lora_dim: int,
    number_bytes: int,
) -> dict[str, int]:
    r"""Bytes that one of our blocks keeps from forward to backward pass when nothing is computed again, by group.

    $$B \left( L \left[ (19 D + 2 D_\text{mlp} + 6)\, b + (6 D + 5 N) \cdot 4 \right]
      + M \left[ 2 D\, b + (2 D + N) \cdot 4 \right] + 3 (5 D + R)\, b \right)$$

    The norm of queries and keys keeps its input and its result in float32, whatever the precision; so are the
    logarithms of the softmax's denominators. Text embeddings, positions and angles belong to no block: all share them.

    Args:
        tokens: L, of this process.
        text_tokens: M.
        batch: clips B.
        width: D.
        num_heads: N, at least 2.
        mlp_width: hidden width of the MLP.
        adaln_lora_dim: rank R.
        number_bytes: b of a number in the precision of the products.
    """
    row, head_norm, lse = width * number_bytes, 4 * (2 * width + num_heads), 4 * num_heads
    per_token = {
        "layer norms": 3 * (2 * row + 2 * number_bytes),  # before and after; mean and deviation
        "self-attention": 6 * row + 2 * head_norm + lse,  # input; queries, keys, values; result, twice
        "cross-attention": 3 * row + head_norm + lse,  # input; queries; result
        "MLP": row + 2 * mlp_width * number_bytes,  # input; before and after GELU
        "gates": 3 * row,  # what they let through
    }
    kept = {group: batch * tokens * size for group, size in per_token.items()}
    text = batch * text_tokens * (2 * row + head_norm)  # keys and values
    return kept | {"text": text, "AdaLN": batch * 3 * (5 * width + adaln_lora_dim) * number_bytes}


@equation("costs.sharded_size", source="Zhao et al. 2023 (arXiv 2304.11277); PyTorch's fully_shard, first axis")
def sharded_size(shape: tuple[int, ...], shards: int) -> int:
    r"""Numbers of a tensor that each process holds: a share of its rows, rounded up; the last may hold fewer.

    $$\left\lceil \frac{r_1}{n} \right\rceil r_2 \cdots r_k$$

    Rounded up is also what travels: messages have one size.
    """
    return -(-shape[0] // shards) * prod(shape[1:])


@equation("costs.sharding_bytes", source="Rajbhandari et al. 2020 (arXiv 1910.02054), Sec. 7; Zhao et al. 2023")
def sharding_bytes(shard: int, shards: int, gathers: int, weight_bytes: int, gradient_bytes: int) -> tuple[int, int]:
    r"""Bytes that a process sends so that weights are whole where they are used, and bytes of their summed gradients.

    $$g\,(n - 1)\, s\, b_w \qquad \text{and} \qquad (n - 1)\, s\, b_g$$

    All-gather sends each process's shard to all others; reduce-scatter sends each of them its piece of the gradient.

    Args:
        shard: numbers s that each process holds.
        shards: processes n.
        gathers: times g that the weights are gathered: before the forward pass, and again before the backward pass if
            they were freed between.
        weight_bytes: of a number as it is gathered.
        gradient_bytes: of a number as it is summed.
    """
    return gathers * (shards - 1) * shard * weight_bytes, (shards - 1) * shard * gradient_bytes


@equation("costs.all_reduce_bytes", source="Patarasuk & Yuan 2009, bandwidth-optimal ring all-reduce")
def all_reduce_bytes(size: int, ranks: int) -> int:
    r"""Bytes that a process sends so that all of them have the sum of what each has; at least that many are needed.

    $$2 \cdot \frac{n - 1}{n}\, s$$

    A reduce-scatter, after which each process has its piece of the sum, then an all-gather of the pieces.
    """
    return 2 * ((ranks - 1) * size // ranks)


@equation("costs.ulysses_bytes", source="Jacobs et al. 2023 (arXiv 2309.14509), DeepSpeed-Ulysses, Sec. 3.2")
def ulysses_bytes(tokens: int, width: int, ranks: int, number_bytes: int) -> int:
    r"""Bytes that a process sends in the forward pass of one self-attention, and as many in the backward pass.

    $$4 \cdot \frac{u - 1}{u}\, L D\, b$$

    Queries, keys and values go from "my tokens, all heads" to "all tokens, my heads", and the result comes back.

    Args:
        tokens: L, of this process.
        width: D.
        ranks: processes u; they divide the heads.
        number_bytes: b.
    """
    return 4 * (ranks - 1) * (tokens * width // ranks) * number_bytes


@equation("costs.ring_bytes", source="Liu et al. 2023 (arXiv 2310.01889), ring attention; gradients in float32: ours")
def ring_bytes(tokens: int, width: int, ranks: int, number_bytes: int) -> tuple[int, int]:
    r"""Bytes that a process sends in the forward pass of one self-attention, and in its backward pass.

    $$2 (r - 1)\, L D\, b \qquad \text{and} \qquad 2 (r - 1)\, L D\, b + 2\, r\, L D \cdot 4$$

    Keys and values visit all other processes, in both passes. In the second their float32 gradients follow them, and
    have one step more to go: home. A ring of one process sends nothing.

    Args:
        tokens: L, of this process.
        width: D; of its heads only those that this process attends.
        ranks: processes r.
        number_bytes: b.
    """
    visits = 2 * (ranks - 1) * tokens * width * number_bytes
    return visits, visits + (2 * ranks * tokens * width * 4 if ranks > 1 else 0)


@equation("costs.utilization", source="Chowdhery et al. 2022 (arXiv 2204.02311), App. B: model FLOPs utilisation")
def utilization(forward_flops: int, seconds: float, processes: int, peak: float) -> float:
    r"""Share of a machine's arithmetic that a training step uses for what the model needs.

    $$\frac{3 F}{T\, n\, p}$$

    The backward pass takes twice what the forward pass takes. What is computed again is not needed and not counted.

    Args:
        forward_flops: F of all clips of the step, forward pass only.
        seconds: T that the step takes.
        processes: n.
        peak: p operations a second that one process could do.
    """
    return 3 * forward_flops / (seconds * processes * peak)


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
