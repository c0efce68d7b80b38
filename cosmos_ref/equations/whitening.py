"""Principal components in closed form: the training-free half of the Haar-PCA tokenizer."""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Pearson 1901; Jolliffe, Principal Component Analysis (2002), Ch. 1"
_STANDARD = "code: Cosmos latents, by channel and latent frame"


@equation("whitening.standardize", source=_STANDARD)
def standardize(z: Float[Tensor, "*S"], mean: Float[Tensor, "*M"], std: Float[Tensor, "*M"]) -> Float[Tensor, "*S"]:
    r"""Numbers at zero mean and unit variance; the statistics are one for each, or broadcast.

    $$\hat z = \frac{z - \mu}{s}$$
    """
    return (z - mean) / std


@equation("whitening.unstandardize", source=_STANDARD)
def unstandardize(z: Float[Tensor, "*S"], mean: Float[Tensor, "*M"], std: Float[Tensor, "*M"]) -> Float[Tensor, "*S"]:
    r"""Numbers at the mean and variance they had: the inverse of `standardize`.

    $$z = s\, \hat z + \mu$$
    """
    return z * std + mean


@equation("whitening.merge_moments", source="Chan, Golub and LeVeque 1979, eq. 2.1")
def merge_moments(
    count_a: float,
    mean_a: Float[Tensor, "*S"],
    m2_a: Float[Tensor, "*S"],
    count_b: float,
    mean_b: Float[Tensor, "*S"],
    m2_b: Float[Tensor, "*S"],
) -> tuple[Float[Tensor, "*S"], Float[Tensor, "*S"]]:
    r"""Mean and sum of squared deviations of two samples together, from those of each: no number is seen twice.

    $$\mu = \mu_a + \delta\, \frac{n_b}{n_a + n_b}, \qquad
      M = M_a + M_b + \delta^2\, \frac{n_a n_b}{n_a + n_b}, \qquad \delta = \mu_b - \mu_a$$

    Of each sample $n$ is how many numbers it has, at least one together, $\mu$ their mean and
    $M = \sum (x - \mu)^2$. Nothing large is subtracted from something large, so a mean far from zero costs no digits.
    """
    delta, count = mean_b - mean_a, count_a + count_b
    return mean_a + delta * (count_b / count), m2_a + m2_b + delta**2 * (count_a * count_b / count)


@equation("whitening.principal_axes", source=_SOURCE)
def principal_axes(covariance: Float[Tensor, "D D"], channels: int) -> Float[Tensor, "C D"]:
    r"""Orthonormal directions of largest variance, largest first: the `channels` leading eigenvectors.

    $$\Sigma = \sum_i \lambda_i v_i v_i^\top, \qquad \lambda_1 \ge \lambda_2 \ge \dots$$

    Each is signed so that its entry of largest magnitude is positive, which makes the result unique. Of entries whose
    magnitudes differ by less than a millionth the first counts: which is larger, rounding would say.
    """
    axes = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:channels]
    size = axes.abs()
    largest = (size > (1 - 1e-6) * size.amax(dim=1, keepdim=True)).long().argmax(dim=1, keepdim=True)
    return axes * axes.gather(1, largest).sign()


@equation("whitening.whiten", source=_SOURCE)
def whiten(
    x: Float[Tensor, "*S D"],
    axes: Float[Tensor, "C D"],
    mean: Float[Tensor, "*M C"],
    std: Float[Tensor, "*M C"],
) -> Float[Tensor, "*S C"]:
    r"""Coordinates along the principal axes, at zero mean and unit variance.

    $$z = \frac{V x - \mu}{s}$$
    """
    return standardize(x @ axes.T, mean, std)


@equation("whitening.unwhiten", source=_SOURCE)
def unwhiten(
    z: Float[Tensor, "*S C"],
    axes: Float[Tensor, "C D"],
    mean: Float[Tensor, "*M C"],
    std: Float[Tensor, "*M C"],
) -> Float[Tensor, "*S D"]:
    r"""The point on the principal subspace with these coordinates: the inverse of `whiten` there.

    $$\hat x = V^\top (s z + \mu)$$
    """
    return unstandardize(z, mean, std) @ axes
