import pytest
import torch
from hypothesis import given

from cosmos_ref.blocks.dit_block import DiTBlock, FinalLayer
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.equations import attention, modulation, rope
from tests.blocks.filled import filled
from tests.strategies import normal, seeds

WIDTH, HEADS, TEXT_WIDTH, RANK = 24, 2, 10, 4
HEAD_DIM = WIDTH // HEADS
GRID = torch.cartesian_prod(torch.arange(2), torch.arange(1), torch.arange(3))
EXACT = dict(rtol=0, atol=1e-12)  # float64 rounding of sums of a few dozen numbers near one


def new_block(seed=0):
    return filled(DiTBlock(WIDTH, HEADS, TEXT_WIDTH, 4.0, RANK), seed)


def inputs(block, seed):
    fps = torch.tensor([24.0, 12.0], dtype=torch.float64)
    angles = rope.angles_3d(GRID, fps, HEAD_DIM, (1.0, 1.0, 1.0), 10000.0, 24.0)
    return {
        "x": normal(seed, 2, 6, WIDTH),
        "noise_embedding": normal(seed + 1, 2, WIDTH),
        "adaln_lora": normal(seed + 2, 2, 3 * WIDTH),
        "position_embedding": normal(seed + 3, 6, WIDTH),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "text_embeddings": normal(seed + 4, 2, 5, TEXT_WIDTH),
    }


def layer_norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def silu(x):
    return x * torch.sigmoid(x)


def heads(x):
    return torch.stack(x.chunk(HEADS, dim=-1), dim=1)


def merged(x):
    return torch.cat(list(x.unbind(1)), dim=-1)


def by_hand(block, x, noise_embedding, adaln_lora, text_embeddings, position_embedding, cos, sin):
    """Position, then self-attention, cross-attention and MLP, each normalised, modulated, gated and added."""
    weights = dict(block.named_parameters())

    def linear(name, y):
        return y @ weights[f"{name}.weight"].T

    def queries_or_keys(name, letter, y):
        y = heads(linear(f"{name}.to_{letter}", y))
        return attention.rms_norm(y, weights[f"{name}.norm_{letter}.weight"], 1e-6)

    def self_attention(y):
        q, k = (rope.rotate(queries_or_keys("self_attention", letter, y), cos, sin) for letter in "qk")
        out = attention.softmax_attention(q, k, heads(linear("self_attention.to_v", y)))
        return linear("self_attention.to_out", merged(out))

    def cross_attention(y):
        q, k = queries_or_keys("cross_attention", "q", y), queries_or_keys("cross_attention", "k", text_embeddings)
        out = attention.softmax_attention(q, k, heads(linear("cross_attention.to_v", text_embeddings)))
        return linear("cross_attention.to_out", merged(out))

    def mlp(y):
        hidden = linear("mlp.layer1", y)
        return linear("mlp.layer2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)

    x = x + position_embedding
    for name, update in (("self", self_attention), ("cross", cross_attention), ("mlp", mlp)):
        parts = linear(f"adaln_{name}.up", linear(f"adaln_{name}.down", silu(noise_embedding))) + adaln_lora
        shift, scale, gate = (part[:, None] for part in parts.chunk(3, dim=-1))
        x = x + gate * update(layer_norm(x) * (1 + scale) + shift)
    return x


@given(seed=seeds)
def test_a_block_is_position_then_self_then_cross_then_mlp(seed):
    block = new_block(seed % 100)
    given_ = inputs(block, seed)
    # numbers grow to about ten through the three updates
    torch.testing.assert_close(block(**given_), by_hand(block, **given_), rtol=1e-11, atol=1e-11)


@given(seed=seeds)
def test_prepared_a_block_and_the_final_layer_say_the_same(seed):
    block, final, given_ = new_block(), filled(FinalLayer(WIDTH, 8, RANK)), inputs(new_block(), seed)
    x, embedding, lora, text, *positions = (
        given_[name]
        for name in ("x", "noise_embedding", "adaln_lora", "text_embeddings", "position_embedding", "cos", "sin")
    )
    prepared = block.run(x, block.modulation(embedding, lora), *positions, *block.keys_values(text))
    assert torch.equal(prepared, block(**given_))
    assert torch.equal(final.run(x, final.modulation(embedding, lora)), final(x, embedding, lora))


def test_nothing_has_a_bias():
    """One that no equation reads would be trained by nobody and be missing in every checkpoint."""
    modules = new_block(), FinalLayer(WIDTH, 8, RANK)
    assert {name.split(".")[-1] for module in modules for name, _ in module.named_parameters()} == {"weight"}


def test_the_mlp_is_as_many_times_as_wide_as_is_asked_for():
    for ratio, hidden in ((4.0, 96), (2.5, 60)):
        assert DiTBlock(WIDTH, HEADS, TEXT_WIDTH, ratio, RANK).mlp.layer1.weight.shape == (hidden, WIDTH)


@given(seed=seeds)
def test_a_block_with_closed_gates_only_adds_the_positions(seed):
    block = new_block()
    for adaln in (block.adaln_self, block.adaln_cross, block.adaln_mlp):
        torch.nn.init.zeros_(adaln.up.weight)
    given_ = inputs(block, seed)
    given_["adaln_lora"][:, 2 * WIDTH :] = 0  # the last third is the gate
    assert torch.equal(block(**given_), given_["x"] + given_["position_embedding"])


def test_one_modulation_serves_a_whole_batch():
    block = new_block()
    given_ = inputs(block, 0) | {
        name: normal(7, 1, size * WIDTH) for name, size in (("noise_embedding", 1), ("adaln_lora", 3))
    }
    for_each = given_ | {name: given_[name].expand(2, -1) for name in ("noise_embedding", "adaln_lora")}
    torch.testing.assert_close(block(**given_), block(**for_each), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("part", ["adaln_self", "adaln_cross", "adaln_mlp"])
def test_each_sub_block_has_a_gate_of_its_own(part):
    """One gate held shut changes the block, so no sub-block is modulated by another's weights."""
    block = new_block()
    given_ = inputs(block, 0)
    before = block(**given_)
    with torch.no_grad():
        getattr(block, part).up.weight.zero_()
    torch.testing.assert_close(block(**given_), by_hand(block, **given_), rtol=1e-11, atol=1e-11)
    assert (block(**given_) - before).abs().max() > 1e-3


@given(seed=seeds)
def test_adaln_with_its_second_half_at_zero_is_the_shared_term(seed):
    adaln = filled(AdaLNLoRA(WIDTH, RANK, parts=3))
    torch.nn.init.zeros_(adaln.up.weight)
    shared = normal(seed, 2, 3 * WIDTH)
    assert torch.equal(torch.cat(adaln(normal(seed + 1, 2, WIDTH), shared), dim=-1), shared)


def test_adaln_sees_the_noise_embedding_through_silu():
    """An embedding of -100 is one of 0 behind SiLU (up to 1e-42), one of 100 is not."""
    adaln, shared = filled(AdaLNLoRA(WIDTH, RANK, parts=3)), normal(0, 1, 3 * WIDTH)
    low, zero, high = (torch.cat(adaln(torch.full((1, WIDTH), e).double(), shared)) for e in (-100.0, 0.0, 100.0))
    torch.testing.assert_close(low, zero, **EXACT)
    assert (high - zero).abs().max() > 1


@given(seed=seeds)
def test_the_final_layer_uses_the_first_two_thirds_of_the_shared_term(seed):
    final = filled(FinalLayer(WIDTH, 8, RANK), seed % 100)
    x, embedding, shared = normal(seed, 2, 6, WIDTH), normal(seed + 1, 2, WIDTH), normal(seed + 2, 2, 3 * WIDTH)
    low_rank = silu(embedding) @ final.adaln.down.weight.T @ final.adaln.up.weight.T
    shift = (low_rank[:, :WIDTH] + shared[:, :WIDTH])[:, None]
    scale = (low_rank[:, WIDTH:] + shared[:, WIDTH : 2 * WIDTH])[:, None]
    expected = (layer_norm(x) * (1 + scale) + shift) @ final.linear.weight.T
    torch.testing.assert_close(final(x, embedding, shared), expected, rtol=1e-11, atol=1e-11)


def test_modulation_order_is_shift_scale_gate():
    shared = torch.cat([torch.full((1, WIDTH), value) for value in (1.0, 2.0, 3.0)], dim=-1).double()
    adaln = filled(AdaLNLoRA(WIDTH, RANK, parts=3))
    torch.nn.init.zeros_(adaln.up.weight)
    shift, scale, gate = adaln(normal(0, 1, WIDTH), shared)
    x = modulation.modulate(torch.ones(1, 1, WIDTH).double(), shift, scale)
    assert (modulation.gate(torch.zeros_like(x), x, gate) == 3 * (1 * (1 + 2) + 1)).all()
