import math
from dataclasses import replace
from functools import cache
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cosmos_ref.blocks.dit_block import DiTBlock
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.config import ModelConfig
from cosmos_ref.distributed.account import KeptBytes
from cosmos_ref.equations import costs, patches
from cosmos_ref.model.dit import CosmosDiT
from cosmos_ref.training.ema import PowerEMA
from tests.impostors import impostor

few = settings(max_examples=10)  # each builds a network, on the meta device

models = st.builds(
    ModelConfig,
    width=st.sampled_from([32, 36, 48]),
    depth=st.integers(1, 3),
    num_heads=st.just(2),
    text_width=st.integers(1, 9),
    adaln_lora_dim=st.integers(1, 7),
    video2world=st.booleans(),
    channels=st.integers(1, 4),
    mlp_ratio=st.sampled_from([1.0, 2.5, 4.0]),
    patch_size=st.sampled_from([(1, 2, 2), (1, 1, 2), (2, 2, 1)]),
    max_tokens=st.tuples(*[st.integers(4, 9)] * 3),
)
grids = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
sizes = st.integers(1, 10**20)  # whole numbers stay exact where floats do not


def shared(model: ModelConfig) -> dict[str, int]:
    """What both parameters and operations depend on."""
    patch = prod(model.patch_size)
    return {
        "width": model.width,
        "depth": model.depth,
        "text_width": model.text_width,
        "mlp_width": int(model.mlp_ratio * model.width),
        "adaln_lora_dim": model.adaln_lora_dim,
        "patch_in": model.in_channels * patch,
        "patch_out": model.channels * patch,
    }


def parameters_of(model: ModelConfig) -> dict[str, int]:
    return costs.parameters(**shared(model), head_dim=model.head_dim, position_rows=sum(model.max_tokens))


def network(model: ModelConfig) -> CosmosDiT:
    with torch.device("meta"):
        return CosmosDiT(model)


def count(module: nn.Module, *parts: str) -> int:
    """Numbers in the parameters that have one of these parts in their name."""
    return sum(p.numel() for name, p in module.named_parameters() if any(part in name for part in parts))


@cache  # impostors meet the same networks again
def counted_flops(model: ModelConfig, grid, text_tokens: int, batch: int = 1) -> int:
    """Operations of the matrix products that PyTorch itself counts in a call of the network."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        T, H, W = (size * patch for size, patch in zip(grid, model.patch_size, strict=True))
        network(model)(
            torch.zeros(batch, model.in_channels, T, H, W),
            torch.zeros(batch),
            torch.zeros(batch, text_tokens, model.text_width),
            torch.zeros(prod(grid), 3, dtype=torch.long),
            torch.full((batch,), 24.0),
        )
    return counter.get_total_flops()


def released(large: bool, video2world: bool) -> ModelConfig:
    """The models as NVIDIA released them."""
    width, depth, num_heads = (5120, 36, 40) if large else (4096, 28, 32)
    return ModelConfig(
        width=width, depth=depth, num_heads=num_heads, text_width=1024, adaln_lora_dim=256, video2world=video2world
    )


SMALL = ModelConfig(width=32, depth=1, num_heads=2, text_width=3, adaln_lora_dim=2, video2world=False, channels=1)


# --- tokens


@pytest.mark.verifies("costs.tokens", by="point")
def test_tokens_of_the_clips_that_cosmos_was_trained_on():
    """121 frames of 704 x 1280 and 57 frames of 512 x 640, as latents; then 704 x 1280 as an image."""
    grids = [(16, 88, 160), (8, 64, 80), (1, 88, 160)]
    assert [len(range(costs.tokens(grid, (1, 2, 2)))) for grid in grids] == [56_320, 10_240, 3_520]  # no floats


@pytest.mark.verifies("costs.tokens")
@given(grids, st.tuples(*[st.integers(1, 3)] * 3))
def test_tokens_are_those_that_patchify_makes(grid, patch_size):
    size = tuple(n * patch for n, patch in zip(grid, patch_size, strict=True))
    tokens = patches.patchify(torch.zeros(1, 1, *size), patch_size)
    assert tokens.shape[1] == costs.tokens(size, patch_size)


@pytest.mark.verifies("costs.tokens")
@given(grids, st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_a_patch_has_a_size_in_time_too(grid, patch_size):
    try:
        costs.tokens(grid, patch_size)
    except ValueError:
        return
    raise AssertionError(f"a patch of {patch_size} was accepted")


@impostor("costs.tokens", "the patch (2, 2) of an image model, matched with time and height; the width stays whole")
def tokens_of_image_patches(grid, patch_size):
    return prod(size // patch for size, patch in zip(grid, patch_size, strict=False))


@impostor("costs.tokens", "latent pixels: patches forgotten")
def tokens_without_patches(grid, patch_size):
    return prod(grid)


@impostor("costs.tokens", "one side of the patch only")
def tokens_of_flat_patches(grid, patch_size):
    return prod(grid) // max(patch_size)


@impostor("costs.tokens", "one frame's")
def tokens_of_a_frame(grid, patch_size):
    return prod(size // patch for size, patch in zip(grid[1:], patch_size[1:], strict=True))


# --- parameters

NAMES = {
    "patch embedding": ["patch_embedding."],
    "position tables": ["position_embedding."],
    "noise embedding": ["noise_embedding."],
    "self-attention": [".self_attention."],
    "cross-attention": [".cross_attention."],
    "MLP": [".mlp."],
    "AdaLN": [".adaln_", ".adaln."],
    "final layer": ["final_layer.linear."],
}


@pytest.mark.verifies("costs.parameters", by="point")
def test_the_released_models_have_their_number_of_parameters():
    """7B and 14B, each as Text2World and as Video2World, whose mask is four more numbers in a patch."""
    models = [released(large, video2world) for large in (False, True) for video2world in (False, True)]
    totals = [sum(parameters_of(model).values()) for model in models]
    assert totals == [7_236_192_256, 7_236_208_640, 14_267_149_312, 14_267_169_792]


@pytest.mark.verifies("costs.parameters")
@few
@given(models)
def test_parameters_are_those_of_the_network_group_by_group(model):
    built = network(model)
    counted = {group: count(built, *parts) for group, parts in NAMES.items()}
    assert counted == parameters_of(model)
    assert sum(counted.values()) == sum(p.numel() for p in built.parameters())


@pytest.mark.verifies("costs.parameters")
@few
@given(models, st.integers(1, 3))
def test_a_longer_network_has_more_blocks_and_nothing_else(model, more):
    longer = replace(model, depth=model.depth + more)
    added = sum(parameters_of(longer).values()) - sum(parameters_of(model).values())
    assert added == more * count(network(model).blocks[0], "")


true_parameters = costs.parameters


@impostor("costs.parameters", "QK norms forgotten")
def parameters_without_qk_norms(width, depth, **sizes):
    return true_parameters(width, depth, **sizes) | {"self-attention": 4 * depth * width**2}


@impostor("costs.parameters", "QK norms as wide as the tokens, as in models that do not norm each head")
def parameters_with_wide_qk_norms(width, head_dim, **sizes):
    return true_parameters(width=width, head_dim=width, **sizes)


@impostor("costs.parameters", "AdaLN counted once a block: it is three times there")
def parameters_with_adaln_once_a_block(width, depth, adaln_lora_dim, **sizes):
    groups = true_parameters(width, depth, adaln_lora_dim=adaln_lora_dim, **sizes)
    return groups | {"AdaLN": (depth * 4 + 3) * adaln_lora_dim * width}


@impostor("costs.parameters", "a gate in the final layer: three parts")
def parameters_with_a_final_gate(width, depth, adaln_lora_dim, **sizes):
    groups = true_parameters(width, depth, adaln_lora_dim=adaln_lora_dim, **sizes)
    return groups | {"AdaLN": groups["AdaLN"] + adaln_lora_dim * width}


@impostor("costs.parameters", "text keys and values as wide as the tokens")
def parameters_with_wide_text(width, text_width, **sizes):
    return true_parameters(width=width, text_width=width, **sizes)


@impostor("costs.parameters", "a gated MLP: three matrices")
def parameters_with_a_gated_mlp(**sizes):
    groups = true_parameters(**sizes)
    return groups | {"MLP": groups["MLP"] * 3 // 2}


@impostor("costs.parameters", "biases in the MLP")
def parameters_with_biases(width, depth, mlp_width, **sizes):
    groups = true_parameters(width, depth, mlp_width=mlp_width, **sizes)
    return groups | {"MLP": groups["MLP"] + depth * (mlp_width + width)}


@impostor("costs.parameters", "the norm of the noise embedding forgotten")
def parameters_without_the_noise_norm(width, **sizes):
    return true_parameters(width, **sizes) | {"noise embedding": 4 * width**2}


@impostor("costs.parameters", "mask channels forgotten: as many numbers in a patch as come out")
def parameters_without_masks(patch_in, patch_out, **sizes):
    return true_parameters(patch_in=patch_out, patch_out=patch_out, **sizes)


# --- dense_adaln


def dense(model: ModelConfig) -> int:
    return sum((parameters_of(model) | costs.dense_adaln(model.width, model.depth)).values())


@pytest.mark.verifies("costs.dense_adaln", by="point")
def test_low_rank_saves_a_good_third_of_the_released_models():
    """The paper's 36 % is 1 - 7/11, of rounded sizes."""
    models = [released(large, video2world=False) for large in (False, True)]
    assert [dense(model) for model in models] == [11_108_583_424, 22_190_451_712]
    saved = [1 - sum(parameters_of(model).values()) / dense(model) for model in models]
    assert [f"{share:.2%}" for share in saved] == ["34.86%", "35.71%"]


@pytest.mark.verifies("costs.dense_adaln")
@few
@given(models)
def test_dense_adaln_is_that_of_a_network_with_full_matrices(model):
    """Ours, with each pair of AdaLN matrices replaced by one, and the second of the noise embedding by a square one."""
    built, width = network(model), model.width
    with torch.device("meta"):
        for module in [m for m in built.modules() if not isinstance(m, AdaLNLoRA)]:
            for name, child in module.named_children():
                if isinstance(child, AdaLNLoRA):
                    setattr(module, name, nn.Linear(width, child.parts * width, bias=False))
        built.noise_embedding.linear_2 = nn.Linear(width, width, bias=False)
    assert dense(model) == sum(p.numel() for p in built.parameters())


@impostor("costs.dense_adaln", "one matrix a block for all nine parts of three sub-blocks, as if it were three")
def dense_adaln_once_a_block(width, depth):
    return {"AdaLN": depth * 3 * width**2 + 2 * width**2, "noise embedding": 2 * width**2 + width}


@impostor("costs.dense_adaln", "the final layer with a gate")
def dense_adaln_with_a_final_gate(width, depth):
    return {"AdaLN": depth * 9 * width**2 + 3 * width**2, "noise embedding": 2 * width**2 + width}


@impostor("costs.dense_adaln", "the shared term still made, which nobody adds any more")
def dense_adaln_with_the_shared_term(width, depth):
    return {"AdaLN": depth * 9 * width**2 + 2 * width**2, "noise embedding": 4 * width**2 + width}


# --- adaln_saving


@pytest.mark.verifies("costs.adaln_saving", by="point")
def test_the_saving_is_34_86_and_35_71_percent_where_the_paper_says_36():
    models = [released(large, video2world=False) for large in (False, True)]
    saved = [costs.adaln_saving(parameters_of(model), model.width, model.depth) for model in models]
    assert [f"{share:.2%}" for share in saved] == ["34.86%", "35.71%"]


@pytest.mark.verifies("costs.adaln_saving")
@given(models)
def test_a_rank_below_three_quarters_of_the_width_saves(model):
    """It has 9 n D^2 - 3 (4 n + 1) R D fewer: thrice a block, D -> 3 D against R (D + 3 D), and R (D + 2 D) at the end.

    The dense final layer and noise embedding together are as large as ours with the shared term.
    """
    width, n, rank = model.width, model.depth, model.adaln_lora_dim
    fewer = 9 * n * width**2 - 3 * (4 * n + 1) * rank * width
    share = costs.adaln_saving(parameters_of(model), width, n)
    assert share == pytest.approx(fewer / (sum(parameters_of(model).values()) + fewer), abs=1e-15)  # of a float
    assert (share > 0) == (rank < 3 * n * width / (4 * n + 1))


@impostor("costs.adaln_saving", "of rounded sizes, as the paper's 36 %: 1 - 7/11")
def adaln_saving_of_rounded_sizes(parameters, width, depth):
    dense = sum((parameters | costs.dense_adaln(width, depth)).values())
    return 1 - (sum(parameters.values()) // 10**9) / max(dense // 10**9, 1)


@impostor("costs.adaln_saving", "against the small network instead of the dense one: by how much that would grow")
def adaln_saving_as_growth(parameters, width, depth):
    return sum((parameters | costs.dense_adaln(width, depth)).values()) / sum(parameters.values()) - 1


@impostor("costs.adaln_saving", "against a dense network that keeps the wide shared matrix: 35.06 %")
def adaln_saving_with_the_shared_term(parameters, width, depth):
    dense = parameters | {"AdaLN": costs.dense_adaln(width, depth)["AdaLN"]}
    return 1 - sum(parameters.values()) / sum(dense.values())


@impostor("costs.adaln_saving", "of the AdaLN matrices alone")
def adaln_saving_of_adaln_alone(parameters, width, depth):
    return 1 - parameters["AdaLN"] / costs.dense_adaln(width, depth)["AdaLN"]


# --- flops


def flops_of(model: ModelConfig, tokens: int, text_tokens: int) -> dict[str, int]:
    return costs.flops(tokens, text_tokens, **shared(model))


@pytest.mark.verifies("costs.flops", by="point")
def test_operations_of_the_released_models_at_720p():
    totals = [sum(flops_of(released(large, video2world=False), 56_320, 512).values()) for large in (False, True)]
    assert totals == [2_209_461_642_985_472, 3_848_539_972_567_040]


@pytest.mark.verifies("costs.flops")
@few
@given(models, grids, st.integers(1, 6), st.integers(1, 3))
def test_operations_are_those_that_pytorch_counts(model, grid, text_tokens, batch):
    expected = batch * sum(flops_of(model, prod(grid), text_tokens).values())
    assert counted_flops(model, grid, text_tokens, batch) == expected


@pytest.mark.verifies("costs.flops")
@given(models, sizes, st.integers(1, 600), st.integers(2, 5))
def test_only_the_attention_matrix_is_quadratic_in_the_tokens(model, tokens, text_tokens, times):
    """What grows with the tokens at all grows in proportion, the attention matrix with their square."""
    one, many = (flops_of(model, n, text_tokens) for n in (tokens, times * tokens))
    text = model.depth * 4 * text_tokens * model.text_width * model.width
    for group in ("patch embedding", "self-attention", "MLP", "final layer"):
        assert many[group] == times * one[group]
    assert many["attention matrix"] == times**2 * one["attention matrix"]
    assert many["cross-attention"] - text == times * (one["cross-attention"] - text)
    assert all(many[group] == one[group] for group in ("noise embedding", "AdaLN"))


@pytest.mark.verifies("costs.flops")
@given(models, sizes)
def test_one_token_more_adds_what_one_token_takes_however_many_there_are(model, tokens):
    """To the last operation: floats count up to 2^53, four calls of the 7B model at 720p."""
    one, before, after = (flops_of(model, n, 1) for n in (1, tokens, tokens + 1))
    assert after["MLP"] - before["MLP"] == one["MLP"]


true_flops = costs.flops


@impostor("costs.flops", "counted in floats, which lose small terms beside large ones")
def flops_in_floats(tokens, text_tokens, **sizes):
    return {group: float(number) for group, number in true_flops(tokens, text_tokens, **sizes).items()}


@impostor("costs.flops", "the attention matrix once: only QK, or only AV")
def flops_with_half_the_attention(tokens, text_tokens, **sizes):
    groups = true_flops(tokens, text_tokens, **sizes)
    return groups | {"attention matrix": groups["attention matrix"] // 2}


@impostor("costs.flops", "a causal mask that is not there")
def flops_of_causal_attention(tokens, text_tokens, width, depth, **sizes):
    groups = true_flops(tokens, text_tokens, width, depth, **sizes)
    return groups | {"attention matrix": depth * 2 * tokens * (tokens + 1) * width}


@impostor("costs.flops", "4sd^2 for each matrix of the MLP, as in the paper's Tab. 13")
def flops_with_half_the_mlp(tokens, text_tokens, **sizes):
    groups = true_flops(tokens, text_tokens, **sizes)
    return groups | {"MLP": groups["MLP"] // 2}


@impostor("costs.flops", "the text's keys and values forgotten")
def flops_without_text(tokens, text_tokens, width, depth, text_width, **sizes):
    groups = true_flops(tokens, text_tokens, width, depth, text_width=text_width, **sizes)
    return groups | {"cross-attention": groups["cross-attention"] - depth * 4 * text_tokens * text_width * width}


@impostor("costs.flops", "AdaLN for each token")
def flops_with_adaln_for_each_token(tokens, text_tokens, **sizes):
    groups = true_flops(tokens, text_tokens, **sizes)
    return groups | {"AdaLN": (1 + tokens) * groups["AdaLN"]}


@impostor("costs.flops", "a gate in the final layer")
def flops_with_a_final_gate(tokens, text_tokens, width, depth, adaln_lora_dim, **sizes):
    groups = true_flops(tokens, text_tokens, width, depth, adaln_lora_dim=adaln_lora_dim, **sizes)
    return groups | {"AdaLN": groups["AdaLN"] + 2 * adaln_lora_dim * width}


@impostor("costs.flops", "a multiply-add counted as one")
def flops_of_multiply_adds(tokens, text_tokens, **sizes):
    return {group: number // 2 for group, number in true_flops(tokens, text_tokens, **sizes).items()}


# --- leading_flops


@pytest.mark.verifies("costs.leading_flops", by="point")
def test_a_call_at_720p_takes_2_2_or_3_8_petaflop():
    petaflops = [costs.leading_flops(56_320, width, depth) / 1e15 for width, depth in ((4096, 28), (5120, 36))]
    assert [round(number, 1) for number in petaflops] == [2.2, 3.8]


@pytest.mark.verifies("costs.leading_flops")
@given(st.integers(1, 2), st.integers(1, 2))
def test_what_is_left_out_does_not_grow_with_the_square_of_the_tokens(depth, n):
    """Second differences of what PyTorch counts, over equally spaced numbers of tokens, are those of the formula."""
    model = replace(SMALL, depth=depth)
    counted = [counted_flops(model, (1, n, m), 1) for m in (1, 2, 3)]
    leading = [costs.leading_flops(n * m, SMALL.width, depth) for m in (1, 2, 3)]
    assert counted[0] - 2 * counted[1] + counted[2] == leading[0] - 2 * leading[1] + leading[2]


@pytest.mark.verifies("costs.leading_flops")
@given(st.integers(1, 2), st.integers(5, 6))
def test_what_is_left_out_is_small_in_a_wide_network(depth, n):
    """With one text token and one channel and some hundred tokens: under 1 %.

    Beside the 28 n L D^2 stand 4 n L M D + 2 L (P_in + P_out) D, 0.1 % at D = 1024, and 8 D^2, at most 0.1 %.
    """
    model = replace(SMALL, width=1024, depth=depth)
    counted = counted_flops(model, (8, 8, n), 1)
    leading = costs.leading_flops(8 * 8 * n, model.width, depth)
    assert leading < counted < 1.01 * leading


@impostor("costs.leading_flops", "the paper's Tab. 13 has 4sd^2 for each matrix of the MLP: 20 instead of 28")
def leading_flops_of_the_paper(tokens, width, depth):
    return depth * (20 * tokens * width**2 + 4 * tokens**2 * width)


@impostor("costs.leading_flops", "the attention matrix once")
def leading_flops_with_half_the_attention(tokens, width, depth):
    return depth * (28 * tokens * width**2 + 2 * tokens**2 * width)


@impostor("costs.leading_flops", "without attention: two operations a parameter and token, as is usual for language")
def leading_flops_without_attention(tokens, width, depth):
    return depth * 28 * tokens * width**2


# --- stored_activations


@pytest.mark.verifies("costs.stored_activations", by="point")
def test_a_clip_at_720p_stores_194_or_311_gigabytes():
    """The paper says 310 for the 14B model."""
    stored = [costs.stored_activations(56_320, 1, width, depth, 2) for width, depth in ((4096, 28), (5120, 36))]
    assert [round(number / 1e9) for number in stored] == [194, 311]


@pytest.mark.verifies("costs.stored_activations")
@given(sizes, sizes, st.integers(1, 64), st.integers(1, 8192), st.integers(1, 40))
def test_parts_of_a_sequence_store_what_the_whole_does(left, right, batch, width, depth):
    """Why context parallelism divides the memory: no token's share depends on how many others there are."""
    parts = [costs.stored_activations(tokens, batch, width, depth, 2) for tokens in (left, right)]
    assert sum(parts) == costs.stored_activations(left + right, batch, width, depth, 2)


@pytest.mark.verifies("costs.stored_activations")
@given(sizes, st.integers(1, 64), st.integers(1, 8192), st.integers(1, 40))
def test_two_clips_store_twice_as_much_and_so_does_twice_the_precision(tokens, batch, width, depth):
    twice = 2 * costs.stored_activations(tokens, batch, width, depth, 2)
    assert twice == costs.stored_activations(tokens, 2 * batch, width, depth, 2)
    assert twice == costs.stored_activations(tokens, batch, width, depth, 4)
    assert twice == costs.stored_activations(tokens, batch, width, 2 * depth, 2)


@impostor("costs.stored_activations", "attention matrices are kept too")
def stored_activations_with_attention(tokens, batch, width, depth, number_bytes):
    return depth * batch * (15 * tokens * width + tokens**2) * number_bytes


@impostor("costs.stored_activations", "of one block only")
def stored_activations_of_a_block(tokens, batch, width, depth, number_bytes):
    return 15 * batch * tokens * width * number_bytes


@impostor("costs.stored_activations", "numbers, not bytes")
def stored_activations_in_numbers(tokens, batch, width, depth, number_bytes):
    return 15 * depth * batch * tokens * width


# --- training_bytes


def held(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


matrices = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.verifies("costs.training_bytes", "costs.stored_activations", by="point")
def test_a_device_of_64_holds_4_4_gigabytes_of_the_14b_model_and_a_device_of_8_39_of_its_activations():
    """The paper: 280 GB / 64 and 310 GB / 8, about 40."""
    assert costs.training_bytes(14_000_000_000) / 64 == 4.375e9
    assert round(costs.stored_activations(56_320, 1, 5120, 36, 2) / 8 / 1e9) == 39


@pytest.mark.verifies("costs.training_bytes", by="point")
def test_the_14b_model_takes_about_285_gigabytes_to_train():
    """The paper: 280 GB, of 14 billion parameters."""
    assert costs.training_bytes(14_000_000_000) == 280_000_000_000
    assert costs.training_bytes(14_267_149_312) == 285_342_986_240


@pytest.mark.verifies("costs.training_bytes")
@given(matrices)
def test_a_float32_training_holds_that_much(shape):
    """After one update: weights, gradients, AdamW's moments and the average that we sample from."""
    layer = nn.Linear(*shape, bias=False)
    optimizer, average = torch.optim.AdamW(layer.parameters()), PowerEMA(layer, 0.05)
    layer(torch.ones(shape[0])).sum().backward()
    optimizer.step()
    tensors = [layer.weight, layer.weight.grad, *moments(optimizer), *average.weights.values()]
    assert held(tensors) == costs.training_bytes(layer.weight.numel())


@pytest.mark.verifies("costs.training_bytes")
@given(matrices)
def test_a_bfloat16_training_with_float32_copies_holds_as_much(shape):
    """The paper's way: the optimizer and the average work on a float32 copy of the weights."""
    layer = nn.Linear(*shape, bias=False, dtype=torch.bfloat16)
    master = nn.Linear(*shape, bias=False)
    optimizer, average = torch.optim.AdamW(master.parameters()), PowerEMA(layer, 0.05)
    layer(torch.ones(shape[0], dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
    master.weight.grad = layer.weight.grad.float()
    optimizer.step()
    tensors = [layer.weight, layer.weight.grad, master.weight, *moments(optimizer), *average.weights.values()]
    assert held(tensors) == costs.training_bytes(layer.weight.numel())


@impostor("costs.training_bytes", "the rule of thumb for mixed precision, which knows no average of the weights")
def training_bytes_without_the_average(parameters):
    return 16 * parameters


@impostor("costs.training_bytes", "one moment, as in SGD with momentum")
def training_bytes_with_one_moment(parameters):
    return 16 * parameters


@impostor("costs.training_bytes", "gradients of bfloat16 weights in float32")
def training_bytes_with_wide_gradients(parameters):
    return 22 * parameters


# --- kept_activations


def block_sizes(width: int, num_heads: int, mlp_width: int, adaln_lora_dim: int) -> dict[str, int]:
    return dict(width=width, num_heads=num_heads, mlp_width=mlp_width, adaln_lora_dim=adaln_lora_dim)


@cache  # impostors meet the same blocks again
def counted_activations(tokens, text_tokens, batch, width, num_heads, mlp_width, adaln_lora_dim, dtype) -> int:
    """What autograd keeps of a block, real and filled with anything, but for what all blocks share."""
    block = DiTBlock(width, num_heads, 5, mlp_width / width, adaln_lora_dim).to(dtype)
    x = torch.zeros(batch, tokens, width, dtype=dtype, requires_grad=True)
    angles = torch.zeros(batch, tokens, width // num_heads)
    shared = [torch.zeros(batch, width, dtype=dtype), torch.zeros(batch, 3 * width, dtype=dtype)]
    shared += [torch.zeros(batch, text_tokens, 5, dtype=dtype), torch.zeros(tokens, width, dtype=dtype), angles]
    with KeptBytes(block, shared) as kept:
        block(x, *shared, angles)
    return kept.total


@pytest.mark.verifies("costs.kept_activations", by="point")
def test_a_block_keeps_39_numbers_a_token_and_channel_where_the_paper_keeps_15():
    """One block of the 7B model at 720p, 18 GB in bfloat16; a number in float32 counts twice."""
    kept = costs.kept_activations(56_320, 512, 1, **block_sizes(4096, 32, 16_384, 256), number_bytes=2)
    assert kept == {
        "layer norms": 2_768_916_480,
        "self-attention": 6_480_855_040,
        "cross-attention": 3_244_032_000,
        "MLP": 4_152_360_960,
        "gates": 1_384_120_320,
        "text": 25_231_360,
        "AdaLN": 124_416,
    }
    assert 39.0 < sum(kept.values()) / (56_320 * 4096 * 2) < 39.2


@pytest.mark.verifies("costs.kept_activations")
@few
@given(
    st.integers(2, 5),
    st.integers(2, 5),
    st.integers(1, 2),
    st.sampled_from([(32, 2, 64, 3), (36, 2, 36, 1), (48, 3, 96, 5)]),
    st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_what_a_block_keeps_is_what_autograd_keeps(tokens, text_tokens, batch, sizes, dtype):
    kept = costs.kept_activations(tokens, text_tokens, batch, **block_sizes(*sizes), number_bytes=dtype.itemsize)
    assert sum(kept.values()) == counted_activations(tokens, text_tokens, batch, *sizes, dtype)


true_kept_activations = costs.kept_activations


@impostor("costs.kept_activations", "the paper's 15, which compute norms and GELU again")
def kept_activations_of_the_paper(tokens, text_tokens, batch, width, number_bytes, **sizes):
    return {"block": 15 * batch * tokens * width * number_bytes}


@impostor("costs.kept_activations", "everything in the precision of the products, norms of queries and keys too")
def kept_activations_in_one_precision(tokens, text_tokens, batch, width, num_heads, number_bytes, **sizes):
    groups = true_kept_activations(tokens, text_tokens, batch, width, num_heads, number_bytes=number_bytes, **sizes)
    narrow = 3 * batch * (tokens + text_tokens / 3) * 2 * width * (4 - number_bytes)
    return groups | {"narrow": -int(narrow)}


@impostor("costs.kept_activations", "attention matrices are kept too")
def kept_activations_with_attention(tokens, text_tokens, batch, width, num_heads, number_bytes, **sizes):
    groups = true_kept_activations(tokens, text_tokens, batch, width, num_heads, number_bytes=number_bytes, **sizes)
    return groups | {"attention matrix": batch * num_heads * tokens**2 * number_bytes}


@impostor("costs.kept_activations", "the result of GELU only: its input is needed for its derivative")
def kept_activations_without_the_input_of_gelu(tokens, text_tokens, batch, mlp_width, number_bytes, **sizes):
    groups = true_kept_activations(tokens, text_tokens, batch, mlp_width=mlp_width, number_bytes=number_bytes, **sizes)
    return groups | {"MLP": groups["MLP"] - batch * tokens * mlp_width * number_bytes}


@impostor("costs.kept_activations", "of one clip")
def kept_activations_of_one_clip(tokens, text_tokens, batch, **sizes):
    return true_kept_activations(tokens, text_tokens, 1, **sizes)


@impostor("costs.kept_activations", "keys and values of the text forgotten")
def kept_activations_without_text(tokens, text_tokens, batch, **sizes):
    return true_kept_activations(tokens, text_tokens, batch, **sizes) | {"text": 0}


# --- sharded_size

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@pytest.mark.verifies("costs.sharded_size", by="point")
def test_a_matrix_of_7b_divides_among_32_and_a_position_table_does_not():
    assert costs.sharded_size((16_384, 4096), 32) == 2_097_152
    assert costs.sharded_size((120, 4096), 32) == 16_384  # 4 rows; the last two hold none


@pytest.mark.verifies("costs.sharded_size")
@given(shapes, st.integers(1, 12))
def test_a_shard_is_the_first_piece_that_torch_cuts(shape, shards):
    assert costs.sharded_size(shape, shards) == torch.zeros(shape).chunk(shards)[0].numel()


@impostor("costs.sharded_size", "an even share of all numbers, as if rows could be cut")
def sharded_size_of_flat_weights(shape, shards):
    return -(-prod(shape) // shards)


@impostor("costs.sharded_size", "rounded down: rows are lost")
def sharded_size_without_the_rest(shape, shards):
    return shape[0] // shards * prod(shape[1:])


@impostor("costs.sharded_size", "the last axis is cut, not the first")
def sharded_size_of_columns(shape, shards):
    return -(-shape[-1] // shards) * prod(shape[:-1])


# --- sharding_bytes

ranks = st.integers(1, 8)


@pytest.mark.verifies("costs.sharding_bytes", by="point")
def test_a_process_of_32_sends_28_gigabytes_of_the_7b_model_each_way():
    """226 million numbers each: gathered twice in bfloat16, their gradients summed in float32."""
    assert costs.sharding_bytes(226_130_944, 32, 2, 2, 4) == (28_040_237_056, 28_040_237_056)


@pytest.mark.verifies("costs.sharding_bytes")
@given(ranks, st.integers(1, 5), st.integers(0, 3), st.sampled_from([2, 4]), st.sampled_from([2, 4]))
def test_each_shard_travels_to_all_others_and_each_gradient_to_its_place(n, shard, gathers, weight, gradient):
    """Owners before and after, number by number, for process 0."""
    owners = torch.arange(n).repeat_interleave(shard)
    gathered = sum(int((owners == 0).sum()) for _ in range(gathers) for other in range(n) if other != 0)
    scattered = int((owners != 0).sum())  # it has a part of every sum, and keeps one sum
    assert costs.sharding_bytes(shard, n, gathers, weight, gradient) == (gathered * weight, scattered * gradient)


true_sharding_bytes = costs.sharding_bytes


@impostor("costs.sharding_bytes", "gathered once, however often")
def sharding_bytes_of_one_gather(shard, shards, gathers, weight_bytes, gradient_bytes):
    return true_sharding_bytes(shard, shards, 1, weight_bytes, gradient_bytes)


@impostor("costs.sharding_bytes", "to itself too")
def sharding_bytes_to_all(shard, shards, gathers, weight_bytes, gradient_bytes):
    return gathers * shards * shard * weight_bytes, shards * shard * gradient_bytes


@impostor("costs.sharding_bytes", "gradients in the precision of the weights")
def sharding_bytes_of_narrow_gradients(shard, shards, gathers, weight_bytes, gradient_bytes):
    return true_sharding_bytes(shard, shards, gathers, weight_bytes, weight_bytes)


@impostor("costs.sharding_bytes", "gradients to all, as if they were all-reduced")
def sharding_bytes_with_all_reduce(shard, shards, gathers, weight_bytes, gradient_bytes):
    gathered, scattered = true_sharding_bytes(shard, shards, gathers, weight_bytes, gradient_bytes)
    return gathered, 2 * scattered


# --- all_reduce_bytes


@pytest.mark.verifies("costs.all_reduce_bytes", by="point")
def test_two_replicas_exchange_half_of_the_sum_and_half_of_what_is_summed():
    assert [costs.all_reduce_bytes(1000, n) for n in (1, 2, 4, 1000)] == [0, 1000, 1500, 1998]


@pytest.mark.verifies("costs.all_reduce_bytes")
@given(ranks, sizes)
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather_of_the_pieces(n, piece):
    assert costs.all_reduce_bytes(4 * piece * n, n) == sum(costs.sharding_bytes(piece, n, 1, 4, 4))


@impostor("costs.all_reduce_bytes", "to each of the others")
def all_reduce_bytes_to_all(size, ranks):
    return (ranks - 1) * size


@impostor("costs.all_reduce_bytes", "the sum stays where it was made")
def all_reduce_bytes_of_a_reduce_scatter(size, ranks):
    return (ranks - 1) * size // ranks


@impostor("costs.all_reduce_bytes", "twice the whole: what the formula is near to with many processes")
def all_reduce_bytes_of_many(size, ranks):
    return 2 * size


# --- ulysses_bytes


@pytest.mark.verifies("costs.ulysses_bytes", by="point")
def test_a_layer_of_7b_at_720p_sends_202_megabytes_forward_with_8_processes():
    assert costs.ulysses_bytes(7040, 4096, 8, 2) == 201_850_880
    assert costs.ulysses_bytes(3, 2 * (2**60 + 1), 2, 2) == 24 * (2**60 + 1)  # no floats


@pytest.mark.verifies("costs.ulysses_bytes")
@given(ranks, st.integers(1, 4), st.integers(1, 3), sizes, st.sampled_from([2, 4]))
def test_heads_change_their_owner_and_the_result_comes_back(u, tokens, heads, head_dim, number_bytes):
    """Owners of all numbers before and after, for process 0: by token, then by head."""
    by_token = torch.arange(u * tokens)[:, None, None] // tokens
    by_head = torch.arange(u * heads)[None, :, None] // heads
    away = (by_token == 0) & (by_head != 0)
    back = (by_head == 0) & (by_token != 0)
    sent = (3 * int(away.sum()) + int(back.sum())) * head_dim * number_bytes
    assert costs.ulysses_bytes(tokens, u * heads * head_dim, u, number_bytes) == sent


true_ulysses_bytes = costs.ulysses_bytes


@impostor("costs.ulysses_bytes", "queries, keys and values; the result stays")
def ulysses_bytes_one_way(tokens, width, ranks, number_bytes):
    return true_ulysses_bytes(tokens, width, ranks, number_bytes) // 4 * 3


@impostor("costs.ulysses_bytes", "one's own piece is sent too")
def ulysses_bytes_of_all_pieces(tokens, width, ranks, number_bytes):
    return 4 * tokens * width * number_bytes


@impostor("costs.ulysses_bytes", "everything to everybody, as an all-gather does")
def ulysses_bytes_of_all_gather(tokens, width, ranks, number_bytes):
    return 4 * (ranks - 1) * tokens * width * number_bytes


# --- ring_bytes


@pytest.mark.verifies("costs.ring_bytes", by="point")
def test_a_layer_of_7b_at_720p_sends_four_times_as_much_round_a_ring_of_8():
    """0.81 GB, against the 0.20 of Ulysses; backward 2.65 GB."""
    assert costs.ring_bytes(7040, 4096, 8, 2) == (807_403_520, 2_652_897_280)
    assert costs.ring_bytes(7040, 4096, 8, 2)[0] == 4 * costs.ulysses_bytes(7040, 4096, 8, 2)


@pytest.mark.verifies("costs.ring_bytes")
@given(ranks, st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 4]))
def test_a_block_visits_all_and_its_gradient_comes_home(r, tokens, width, number_bytes):
    """Followed step by step round the ring; all processes send at once, so each sends what one block travels."""
    place, seen, hops, home = 0, {0}, 0, 0
    while len(seen) < r:
        place, hops = (place + 1) % r, hops + 1
        seen.add(place)
    while place != 0:  # the gradient went along, from where the block was first, and has to get back there
        place, home = (place + 1) % r, home + 1
    keys_and_values = 2 * tokens * width
    forward, backward = costs.ring_bytes(tokens, width, r, number_bytes)
    assert forward == hops * keys_and_values * number_bytes
    assert backward == hops * keys_and_values * number_bytes + (hops + home) * keys_and_values * 4


true_ring_bytes = costs.ring_bytes


@impostor("costs.ring_bytes", "gradients stop one step from home")
def ring_bytes_without_the_way_home(tokens, width, ranks, number_bytes):
    forward, _ = true_ring_bytes(tokens, width, ranks, number_bytes)
    return forward, forward + 2 * (ranks - 1) * tokens * width * 4


@impostor("costs.ring_bytes", "gradients in the precision of keys and values, whose sum over a ring is then rounded")
def ring_bytes_of_narrow_gradients(tokens, width, ranks, number_bytes):
    forward, _ = true_ring_bytes(tokens, width, ranks, number_bytes)
    return forward, forward + (2 * ranks * tokens * width * number_bytes if ranks > 1 else 0)


@impostor("costs.ring_bytes", "keys kept from the forward pass")
def ring_bytes_with_kept_keys(tokens, width, ranks, number_bytes):
    forward, backward = true_ring_bytes(tokens, width, ranks, number_bytes)
    return forward, backward - forward


@impostor("costs.ring_bytes", "keys without values")
def ring_bytes_of_keys(tokens, width, ranks, number_bytes):
    forward, backward = true_ring_bytes(tokens, width, ranks, number_bytes)
    return forward // 2, backward // 2


@impostor("costs.ring_bytes", "a ring of one process still sends its gradients home")
def ring_bytes_of_one(tokens, width, ranks, number_bytes):
    forward, _ = true_ring_bytes(tokens, width, ranks, number_bytes)
    return forward, forward + 2 * ranks * tokens * width * 4


# --- utilization


@pytest.mark.verifies("costs.utilization", by="point")
def test_a_clip_of_7b_in_16_seconds_on_one_h100_is_a_utilization_of_42_percent():
    """720p, 121 frames: 2.2 PFLOP forward, 6.7 in all, of 989 TFLOP/s."""
    work = costs.leading_flops(56_320, 4096, 28)
    assert f"{costs.utilization(work, 16.0, 1, 989e12):.4f}" == "0.4163"


@pytest.mark.verifies("costs.utilization")
@given(st.integers(1, 10**16), st.integers(1, 64), st.floats(1e9, 1e16))
def test_a_machine_that_does_nothing_else_is_used_whole_and_one_that_computes_again_three_quarters(work, n, peak):
    assert math.isclose(costs.utilization(work, 3 * work / (n * peak), n, peak), 1)
    assert math.isclose(costs.utilization(work, 4 * work / (n * peak), n, peak), 0.75)


@impostor("costs.utilization", "what is computed again counted too: utilisation of the hardware, not by the model")
def utilization_of_hardware(forward_flops, seconds, processes, peak):
    return 4 * forward_flops / (seconds * processes * peak)


@impostor("costs.utilization", "the forward pass alone")
def utilization_of_the_forward_pass(forward_flops, seconds, processes, peak):
    return forward_flops / (seconds * processes * peak)


@impostor("costs.utilization", "the peak of one process for all of them")
def utilization_of_one_process(forward_flops, seconds, processes, peak):
    return 3 * forward_flops / (seconds * peak)


# --- t5_parameters

T5_11B = dict(vocabulary=32_128, width=1024, depth=24, num_heads=128, head_dim=128, mlp_width=65_536, distances=32)


@pytest.mark.verifies("costs.t5_parameters", by="point")
def test_the_encoder_of_t5_11b_has_4_86_billion_parameters():
    assert costs.t5_parameters(**T5_11B) == 4_864_791_552


@cache
def counted_t5(vocabulary, width, depth, heads, head_dim, mlp_width, distances):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        num_layers=depth,
        num_heads=heads,
        d_kv=head_dim,
        d_ff=mlp_width,
        relative_attention_num_buckets=distances,
    )
    with torch.device("meta"):
        return sum(p.numel() for p in T5EncoderModel(config).parameters())


@pytest.mark.verifies("costs.t5_parameters")
@few
@given(st.tuples(*[st.integers(1, 3)] * 7))
def test_parameters_of_t5_are_those_of_transformers(sizes):
    assert counted_t5(*sizes) == costs.t5_parameters(*sizes)


@impostor("costs.t5_parameters", "heads that add up to the width, as in other transformers")
def t5_parameters_with_square_attention(vocabulary, width, depth, num_heads, head_dim, mlp_width, distances):
    layer = 4 * width**2 + 2 * width * mlp_width + 2 * width
    return vocabulary * width + depth * layer + distances * num_heads + width


@impostor("costs.t5_parameters", "the gated MLP of version 1.1, which t5-11b is not")
def t5_parameters_with_a_gated_mlp(vocabulary, width, depth, num_heads, head_dim, mlp_width, distances):
    layer = 4 * width * num_heads * head_dim + 3 * width * mlp_width + 2 * width
    return vocabulary * width + depth * layer + distances * num_heads + width


@impostor("costs.t5_parameters", "a bias of distances in each layer")
def t5_parameters_with_a_bias_a_layer(vocabulary, width, depth, num_heads, head_dim, mlp_width, distances):
    layer = 4 * width * num_heads * head_dim + 2 * width * mlp_width + 2 * width + distances * num_heads
    return vocabulary * width + depth * layer + width
