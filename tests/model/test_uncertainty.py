import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.config import PRESETS
from cosmos_ref.equations.losses import uncertainty_weighted
from cosmos_ref.model.initialization import new_model


def new_uncertainty(seed=0):
    return new_model(PRESETS["micro"], torch.Generator().manual_seed(seed))[1].double()


@given(log_sigma=st.lists(st.floats(-7, 5), min_size=1, max_size=5))
def test_uncertainty_starts_at_zero_everywhere(log_sigma):
    sigma = torch.tensor(log_sigma, dtype=torch.float64).exp()
    assert torch.equal(new_uncertainty()(sigma), torch.zeros_like(sigma))


def test_uncertainty_learns_the_expected_weighted_error_of_every_noise_level():
    """Weighted errors scatter around 0.1 + sigma / (1 + sigma) by a factor of 0.5 or 1.5; e^u must find the mean (a
    median or a mean of logarithms would be 13 % lower). With noise levels this dense the fit is good to 3 %."""
    uncertainty = new_uncertainty()
    sigma = torch.linspace(-4, 4, 400, dtype=torch.float64).exp()
    expected = 0.1 + sigma / (1 + sigma)
    lambda_L = torch.cat([0.5 * expected, 1.5 * expected])
    levels = torch.cat([sigma, sigma])
    optimizer = torch.optim.LBFGS(uncertainty.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        total = uncertainty_weighted(lambda_L, torch.ones_like(lambda_L), uncertainty(levels)).mean()
        total.backward()
        return total

    optimizer.step(loss)
    torch.testing.assert_close(uncertainty(sigma).exp(), expected, rtol=0.03, atol=0)


def test_frequencies_and_phases_are_saved_but_not_trained():
    """Another draw of them would make the saved weights meaningless."""
    uncertainty = new_uncertainty()
    assert set(uncertainty.state_dict()) == {"frequencies", "phases", "linear.weight"}
    assert [name for name, _ in uncertainty.named_parameters()] == ["linear.weight"]
