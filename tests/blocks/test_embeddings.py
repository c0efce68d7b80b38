import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.blocks.embeddings import NoiseEmbedding, PositionEmbedding
from tests.blocks.filled import filled
from tests.strategies import seeds

WIDTH = 12
levels = st.lists(st.floats(-1.6, 1.1), min_size=1, max_size=3).map(lambda c: torch.tensor(c, dtype=torch.float64))


def raw_sinusoid(c):
    frequencies = [math.exp(-math.log(10000) * i / (WIDTH / 2)) for i in range(WIDTH // 2)]
    rows = [[math.cos(x * f) for f in frequencies] + [math.sin(x * f) for f in frequencies] for x in c.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


@given(c=levels, seed=seeds)
def test_noise_embedding_is_the_normalised_raw_sinusoid(c, seed):
    module = filled(NoiseEmbedding(WIDTH), seed % 100)
    raw = raw_sinusoid(c)
    expected = raw / (raw.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.norm.weight
    torch.testing.assert_close(module(c)[0], expected, rtol=0, atol=1e-12)


@given(c=levels, seed=seeds)
def test_the_linear_layers_reach_the_shared_term_and_not_the_embedding(c, seed):
    one, other = filled(NoiseEmbedding(WIDTH), 1), filled(NoiseEmbedding(WIDTH), 2)
    other.norm.load_state_dict(one.norm.state_dict())
    assert torch.equal(one(c)[0], other(c)[0])
    hidden = raw_sinusoid(c) @ one.linear_1.weight.T
    expected = hidden * torch.sigmoid(hidden) @ one.linear_2.weight.T
    torch.testing.assert_close(one(c)[1], expected, rtol=0, atol=1e-12)
    assert (one(c)[1] - other(c)[1]).abs().max() > 1e-3


def test_noise_embedding_has_three_weights_and_no_bias():
    names = {name for name, _ in NoiseEmbedding(WIDTH).named_parameters()}
    assert names == {"linear_1.weight", "linear_2.weight", "norm.weight"}


def test_noise_embedding_comes_in_the_precision_of_its_weights():
    module = filled(NoiseEmbedding(WIDTH)).bfloat16()
    assert {part.dtype for part in module(torch.zeros(2))} == {torch.bfloat16}


def test_position_embedding_takes_the_row_of_each_axis_and_has_unit_root_mean_square():
    module = filled(PositionEmbedding(WIDTH, (3, 4, 5)))
    total = module.t[2] + module.h[3] + module.w[1]
    embedded = module(torch.tensor([[2, 3, 1], [0, 0, 0]]))
    torch.testing.assert_close(embedded[0], total / (1e-6 + total.square().mean().sqrt()), rtol=0, atol=1e-12)
    # eps 1e-6 against a root mean square near 0.3
    torch.testing.assert_close(embedded.square().mean(-1).sqrt(), torch.ones(2).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("position", [[3, 0, 0], [0, 4, 0], [0, 0, 5]])
def test_a_position_beyond_its_table_is_an_error_not_a_repetition(position):
    with pytest.raises(IndexError):
        filled(PositionEmbedding(WIDTH, (3, 4, 5)))(torch.tensor([position]))
