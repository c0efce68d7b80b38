import torch

from cosmos_ref.blocks.mlp import MLP
from tests.blocks.filled import filled
from tests.strategies import normal


def test_gelu_is_the_exact_one():
    """gelu(2) = 2 Phi(2) = 1.9544997361; the tanh approximation gives 1.9545976, sigmoid's 1.9356."""
    mlp = MLP(1, 1).double()
    with torch.no_grad():
        mlp.layer1.weight.fill_(2)
        mlp.layer2.weight.fill_(1)
    torch.testing.assert_close(mlp(torch.ones(1, 1, 1).double()).item(), 1.9544997361036416, rtol=0, atol=1e-12)


def test_every_token_is_mapped_by_itself():
    mlp, x = filled(MLP(6, 24)), normal(0, 2, 5, 6)
    changed = x.clone()
    changed[:, 3] += 1
    difference = (mlp(changed) - mlp(x)).abs().amax(dim=(0, 2))
    assert difference[3] > 1e-3
    assert difference[[0, 1, 2, 4]].max() == 0
