"""In bfloat16 training some numbers stay in float32. Each law here breaks if its island is flooded."""

import pytest
import torch

from cosmos_ref.config import PRESETS
from cosmos_ref.equations import edm, rope, schedules
from cosmos_ref.equations.losses import denoising_error
from cosmos_ref.model.initialization import new_model
from cosmos_ref.training.update import in_bf16
from tests.strategies import normal

MICRO = PRESETS["micro"]
SIGMA_DATA = MICRO.diffusion.sigma_data
GRID = torch.cartesian_prod(torch.arange(16), torch.arange(44), torch.arange(80))  # 7B, 121 frames at 720p


def rounded(x):
    return x.bfloat16().to(x)


def test_preconditioning_in_bfloat16_would_drown_weak_noise():
    """At sigma_min the estimate is nearly x itself, and its rounding would be told apart from noise by nobody.

    Measured as the loss measures: lambda times the mean square of what differs from float64.
    """
    x, F = SIGMA_DATA * normal(0, 4, 16, 3, 4, 4), normal(1, 4, 16, 3, 4, 4)
    sigma = torch.full((4,), MICRO.diffusion.sigma_min, dtype=torch.float64)
    exact = edm.denoise(F, x, sigma, SIGMA_DATA)

    def weighted(D):
        return (edm.loss_weight(sigma, SIGMA_DATA)[:, None, None, None, None] * (D.double() - exact) ** 2).mean().item()

    island = edm.denoise(
        rounded(F.float()), x.float(), sigma.float(), SIGMA_DATA
    )  # only the network's output is rounded
    flooded = edm.denoise(rounded(F.float()), rounded(x.float()), sigma.float(), SIGMA_DATA)
    assert weighted(island) < 1e-5  # 2**-9 of F, squared
    assert weighted(flooded) > 1e-2  # a percent of what a network that says nothing has


def test_autocast_leaves_the_denoisers_ends_in_float32():
    """The whole denoiser at sigma_min: near float64, which it could not be if its input were rounded."""
    denoiser, _ = new_model(MICRO, torch.Generator().manual_seed(0))
    x, text = SIGMA_DATA * normal(0, 2, 16, 3, 4, 4), normal(1, 2, 24, 16)
    sigma = torch.full((2,), MICRO.diffusion.sigma_min, dtype=torch.float64)
    zeros = torch.zeros(2, 1, 3, 1, 1, dtype=torch.float64)
    rest = torch.full((2,), 24.0, dtype=torch.float64), torch.zeros(2, 1, 4, 4, dtype=torch.float64), zeros
    arguments = x, sigma, text, *rest, torch.zeros_like(x), sigma
    ours = in_bf16(denoiser, torch.device("cpu"))(*(argument.float() for argument in arguments))
    exact = denoiser.double()(*arguments)
    assert ours.dtype == torch.float32
    # c_out is sigma here, and the network's output of size 1 is off by a few percent at most.
    assert (ours - exact).abs().max() < 0.1 * MICRO.diffusion.sigma_min
    assert (rounded(ours) - exact).abs().max() > MICRO.diffusion.sigma_min


def test_rotary_angles_in_bfloat16_would_turn_distant_tokens_by_a_tenth_of_a_radian():
    model = PRESETS["7b"].model
    fps = torch.full((1,), 24.0)
    exact = rope.angles_3d(GRID, fps.double(), model.head_dim, model.rope_ratios, 10000.0, 24.0)
    ours = rope.angles_3d(GRID, fps, model.head_dim, model.rope_ratios, 10000.0, 24.0)
    assert (ours.cos() - exact.cos()).abs().max() < 1e-4
    assert (rounded(ours).cos() - exact.cos()).abs().max() > 0.1


@pytest.mark.parametrize("scale", [1e-2, 1e-3])
def test_the_error_of_a_good_estimate_would_be_rounding_if_it_were_taken_in_bfloat16(scale):
    x0 = SIGMA_DATA * normal(0, 2, 16, 3, 4, 4).float()
    D = x0 + scale * normal(1, 2, 16, 3, 4, 4).float()
    mask = torch.zeros(2, 1, 3, 1, 1)
    exact = denoising_error(D.double(), x0.double(), mask.double())
    assert denoising_error(D, x0, mask).tolist() == pytest.approx(exact.tolist(), rel=1e-5)
    flooded = denoising_error(D.bfloat16(), x0.bfloat16(), mask.bfloat16()).double()
    assert ((flooded - exact) / exact).abs().max() > 0.005


def test_the_variance_of_a_wide_token_needs_a_float32_sum():
    """4096 squares added one by one: beyond 512 bfloat16 counts in steps of 4, beyond 1024 in steps of 8."""
    squares = normal(0, 4096).square()
    narrow = wide = torch.zeros((), dtype=torch.bfloat16)
    wide = wide.float()
    for square in squares:
        narrow, wide = narrow + square.bfloat16(), wide + square.float()
    assert wide.item() == pytest.approx(squares.sum().item(), rel=1e-5)
    assert narrow.item() < 0.6 * squares.sum().item()


def test_bfloat16_weights_would_not_move_at_the_papers_learning_rate():
    """AdamW moves a weight by about its rate: less than half a unit in the last place of most weights."""
    start = 0.02 * normal(0, 10000).float()
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(start.to(dtype, copy=True))
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], lr=2**-16, weight_decay=0.0).step()
        moved[dtype] = (weight != start.to(dtype)).double().mean().item()
    assert moved[torch.float32] == 1
    assert moved[torch.bfloat16] < 0.4


def test_a_bfloat16_average_would_stop_taking_weights_in():
    """After 10,000 updates the narrowest average takes 0.4 % of the difference."""
    beta = schedules.ema_beta(10_000, schedules.ema_gamma(0.025))
    average, weight = torch.ones(1), torch.full((1,), 0.6)
    assert average.lerp(weight, 1 - beta).item() < 1
    assert average.bfloat16().lerp(weight.bfloat16(), 1 - beta).item() == 1
