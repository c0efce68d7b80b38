"""Learning rate over training, and the average of the weights."""

import numpy as np

from cosmos_ref.traceability import equation


@equation(
    "schedules.warmup",
    source="Cosmos (arXiv 2501.03575), Sec. 5.1.3: linear, 2,500 iterations; code: starts at 1e-6",
)
def warmup(step: int, warmup_steps: int, start: float) -> float:
    r"""Factor of the learning rate: linear from `start` to 1 over the warm-up, then 1; of no steps, 1 throughout.

    $$\eta_i = \eta_0 + (1 - \eta_0) \min\!\left(1, \frac{i}{n}\right)$$
    """
    return 1.0 if step >= warmup_steps else start + (1 - start) * (step / warmup_steps)


@equation(
    "schedules.cooling_down",
    source="Cosmos (arXiv 2501.03575), Sec. 5.1.3: linearly decaying in the cooling-down phase",
)
def cooling_down(step: int, start_step: int, num_steps: int) -> float:
    r"""Factor of the learning rate: 1 until `start_step`, then linear to 0 at `num_steps`, where it stays.

    $$\eta_i = \max\!\left(0, \min\!\left(1, \frac{N - i}{N - n}\right)\right)$$
    """
    return 1.0 if step < start_step else max(0, num_steps - step) / max(1, num_steps - start_step)


@equation("schedules.ema_gamma", source="Karras et al. 2024 (arXiv 2312.02696), Eq. 126")
def ema_gamma(relative_std: float) -> float:
    r"""Exponent of the power-function average whose width is `relative_std` of the training length.

    $$(\gamma + 2)^2 (\gamma + 3) = s^{-2} (\gamma + 1)$$
    """
    inverse = relative_std**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@equation("schedules.ema_beta", source="Karras et al. 2024 (arXiv 2312.02696), Eq. 127")
def ema_beta(step: int, gamma: float) -> float:
    r"""Weight of the old average after update number `step`, counted from 0; the first update replaces it.

    $$\beta_i = \left(1 - \frac{1}{i + 1}\right)^{\gamma + 1}$$
    """
    return (1 - 1 / (step + 1)) ** (gamma + 1)
