"""Principal components in closed form: the training-free half of the Haar-PCA tokenizer."""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Pearson 1901; Jolliffe, Principal Component Analysis (2002), Ch. 1"


@equation("whitening.principal_axes", source=_SOURCE)
def principal_axes(covariance: Float[Tensor, "D D"], channels: int) -> Float[Tensor, "C D"]:
    r"""Orthonormal directions of largest variance, largest first: the `channels` leading eigenvectors.

    $$\Sigma = \sum_i \lambda_i v_i v_i^\top, \qquad \lambda_1 \ge \lambda_2 \ge \dots$$

    Each is signed so that its entry of largest magnitude is positive, which makes the result unique.
    """
    axes = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:channels]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return axes * largest.sign()


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
    return (x @ axes.T - mean) / std


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
    return (z * std + mean) @ axes
