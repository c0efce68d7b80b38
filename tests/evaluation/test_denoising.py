"""What the table over noise levels says of denoisers whose answer is known."""

import pytest
import torch

from cosmos_ref.config import preset
from cosmos_ref.equations.edm import c_skip
from cosmos_ref.evaluation.denoising import loss_over_sigma
from cosmos_ref.model.initialization import new_model
from cosmos_ref.shapes import expand

SIGMAS = [0.01, 0.3, 5.0, 40.0]
SIGMA_DATA = 0.5


@pytest.fixture
def x0():
    return SIGMA_DATA * torch.randn(64, 16, 3, 4, 4, generator=torch.Generator().manual_seed(99))  # not the noise's


@pytest.fixture
def uncertainty():
    return new_model(preset("micro"), torch.Generator().manual_seed(0))[1]


def silent(x, sigma, **condition):
    """A network that always says 0."""
    return expand(c_skip(sigma, SIGMA_DATA), x) * x


def table(denoiser, uncertainty, x0, seed=0, **condition):
    return loss_over_sigma(denoiser, uncertainty, x0, condition, SIGMAS, seed, SIGMA_DATA)


def test_a_silent_network_has_weighted_error_one_at_every_level(x0, uncertainty):
    for row in table(silent, uncertainty, x0):
        # 49,152 squared unit normals: their mean has a standard deviation of sqrt(2 / 49,152) = 0.0064; five of them
        assert row.weighted_error == pytest.approx(1, abs=0.032)


def test_a_denoiser_that_knows_the_answer_has_no_error(x0, uncertainty):
    for row in table(lambda x, sigma, **condition: x0, uncertainty, x0):
        assert row.weighted_error == 0


def test_given_frames_have_no_error(x0, uncertainty):
    mask = torch.zeros(64, 1, 3, 1, 1)
    mask[:, :, 0] = 1
    given = table(silent, uncertainty, x0, frame_mask=mask)
    for row, whole in zip(given, table(silent, uncertainty, x0), strict=True):
        # two frames of three are left; each mean has a standard deviation below 0.0064 of its size; five of them
        assert row.weighted_error == pytest.approx(whole.weighted_error * 2 / 3, abs=0.032)


def test_the_same_seed_gives_the_same_noise_and_another_seed_another(x0, uncertainty):
    first, again, other = (table(silent, uncertainty, x0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert all(a.weighted_error != b.weighted_error for a, b in zip(first, other, strict=True))


def test_the_uncertainty_is_that_of_each_level(x0, uncertainty):
    torch.nn.init.normal_(uncertainty.linear.weight, generator=torch.Generator().manual_seed(1))
    rows = table(silent, uncertainty, x0)
    expected = uncertainty(torch.tensor(SIGMAS)).exp().tolist()
    assert [row.uncertainty for row in rows] == pytest.approx(expected, rel=1e-5)  # float32, computed one by one
    assert [row.sigma for row in rows] == SIGMAS


def test_no_gradient_is_recorded(x0, uncertainty):
    denoiser, _ = new_model(preset("micro"), torch.Generator().manual_seed(0))
    recorded = []

    def watched(x, sigma, **condition):
        D = denoiser(
            x, sigma, torch.zeros(64, 4, 16), torch.full((64,), 24.0), torch.zeros(64, 1, 4, 4),
            torch.zeros(64, 1, 3, 1, 1), torch.zeros_like(x), torch.zeros(64),
        )  # fmt: skip
        recorded.append(D.requires_grad)
        return D

    table(watched, uncertainty, x0)
    assert recorded == [False] * len(SIGMAS)
