"""The exercises of tutorial 01 accept what is right and reject what students write."""

import pytest
import torch

from cosmos_ref.exercises import check


def right_mixture_denoiser(x, sigma, weights, means, std):
    variance = sigma**2 + std**2
    distances = ((x[:, None] - means) ** 2).sum(dim=2)
    responsibilities = torch.softmax(torch.log(weights) - distances / (2 * variance), dim=1)
    mean = responsibilities @ means
    return mean + std**2 / variance * (x - mean)


def with_responsibilities(responsibilities):
    def denoiser(x, sigma, weights, means, std):
        distances = ((x[:, None] - means) ** 2).sum(dim=2)
        mean = responsibilities(distances, sigma, weights, std) @ means
        return mean + std**2 / (sigma**2 + std**2) * (x - mean)

    return denoiser


@with_responsibilities
def forgets_the_weights(distances, sigma, weights, std):
    return torch.softmax(-distances / (2 * (sigma**2 + std**2)), dim=1)


@with_responsibilities
def forgets_the_two(distances, sigma, weights, std):
    return torch.softmax(torch.log(weights) - distances / (sigma**2 + std**2), dim=1)


@with_responsibilities
def forgets_the_noise_in_the_responsibilities(distances, sigma, weights, std):
    return torch.softmax(torch.log(weights) - distances / (2 * std**2), dim=1)


@with_responsibilities
def forgets_the_width_of_the_blobs(distances, sigma, weights, std):
    return torch.softmax(torch.log(weights) - distances / (2 * sigma**2), dim=1)


@with_responsibilities
def does_not_square_the_distance(distances, sigma, weights, std):
    return torch.softmax(torch.log(weights) - distances.sqrt() / (2 * (sigma**2 + std**2)), dim=1)


@with_responsibilities
def trusts_the_weights_alone(distances, sigma, weights, std):
    return weights.expand(len(distances), -1)


@with_responsibilities
def decides_for_one_blob(distances, sigma, weights, std):
    terms = torch.log(weights) - distances / (2 * (sigma**2 + std**2))
    return torch.nn.functional.one_hot(terms.argmax(dim=1), len(weights)).double()


@with_responsibilities
def divides_zero_by_zero_far_away(distances, sigma, weights, std):
    terms = weights * torch.exp(-distances / (2 * (sigma**2 + std**2)))
    return terms / terms.sum(dim=1, keepdim=True)


@with_responsibilities
def sums_over_samples(distances, sigma, weights, std):
    return torch.softmax(torch.log(weights) - distances / (2 * (sigma**2 + std**2)), dim=0)


def deviations_where_variances_should_be(x, sigma, weights, means, std):
    mean = right_mixture_denoiser(x, sigma, weights, means, 0 * std)
    return mean + std / (sigma + std) * (x - mean)


def goes_from_x_to_the_mean(x, sigma, weights, means, std):
    wrong_way = sigma**2 / (sigma**2 + std**2)
    mean = right_mixture_denoiser(x, sigma, weights, means, 0 * std)
    return mean + wrong_way * (x - mean)


def estimates_the_noise(x, sigma, weights, means, std):
    return (x - right_mixture_denoiser(x, sigma, weights, means, std)) / sigma


def returns_one_point(x, sigma, weights, means, std):
    return right_mixture_denoiser(x, sigma, weights, means, std)[0]


RIGHT = {
    "01.mixture_denoiser": right_mixture_denoiser,
    "01.score_from_denoiser": lambda x, D, sigma: (D - x) / sigma**2,
    "01.denoised_from_noise": lambda x, n, sigma: x - sigma * n,
}
WRONG = [
    ("01.mixture_denoiser", wrong)
    for wrong in (
        forgets_the_weights,
        forgets_the_two,
        forgets_the_noise_in_the_responsibilities,
        forgets_the_width_of_the_blobs,
        does_not_square_the_distance,
        trusts_the_weights_alone,
        decides_for_one_blob,
        divides_zero_by_zero_far_away,
        sums_over_samples,
        deviations_where_variances_should_be,
        goes_from_x_to_the_mean,
        estimates_the_noise,
        returns_one_point,
    )
] + [
    ("01.score_from_denoiser", lambda x, D, sigma: (D - x) / sigma),
    ("01.score_from_denoiser", lambda x, D, sigma: (x - D) / sigma**2),
    ("01.score_from_denoiser", lambda x, D, sigma: (x - D) / sigma),
    ("01.score_from_denoiser", lambda x, D, sigma: D - x),
    ("01.denoised_from_noise", lambda x, n, sigma: x - n),
    ("01.denoised_from_noise", lambda x, n, sigma: x + sigma * n),
    ("01.denoised_from_noise", lambda x, n, sigma: x - sigma**2 * n),
    ("01.denoised_from_noise", lambda x, n, sigma: (x - n) / sigma),
]


@pytest.mark.parametrize("id", RIGHT)
def test_the_right_answer_passes(id, capsys):
    assert check(id, RIGHT[id])
    assert capsys.readouterr().out == f"{id}: ✓\n"


@pytest.mark.parametrize(("id", "wrong"), WRONG)
def test_a_wrong_answer_gets_a_counter_example_and_a_hint(id, wrong, capsys):
    assert not check(id, wrong)
    verdict, example, problem, hint, dica = capsys.readouterr().out.splitlines()
    assert verdict == f"{id}: ✗"
    assert "sigma = " in example
    assert "yours / seu: " in problem and "must be / deve ser" in problem
    assert hint.startswith("  hint: ") and dica.startswith("  dica: ")


def test_whoever_divides_zero_by_zero_is_told_of_softmax(capsys):
    check("01.mixture_denoiser", divides_zero_by_zero_far_away)
    assert "torch.softmax" in capsys.readouterr().out


def test_whoever_is_wrong_on_one_blob_is_shown_one_blob_at_zero(capsys):
    check("01.mixture_denoiser", deviations_where_variances_should_be)
    printed = capsys.readouterr().out
    assert "M = 1, K = 1, B = 1" in printed
    assert "With one blob" in printed
