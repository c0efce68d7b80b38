"""Learning rate over training, and the average of the weights."""

import numpy as np

from cosmos_ref.traceability import equation

Numbers = np.ndarray | float


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


@equation("schedules.profile_overlap", source="Karras et al. 2024 (arXiv 2312.02696), Appendix C")
def profile_overlap(time: Numbers, gamma: Numbers, time2: Numbers, gamma2: Numbers) -> np.ndarray:
    r"""Inner product of two power-function averages, as functions of the moment that they look at.

    $$\langle p_1, p_2 \rangle = \int_0^{t_1} p_1\, p_2\, d\tau
      = \frac{(\gamma_1 + 1)(\gamma_2 + 1)}{\gamma_1 + \gamma_2 + 1}\,
        \frac{1}{t_2} \left(\frac{t_1}{t_2}\right)^{\gamma_2}, \qquad
      p_i(\tau) = \frac{\gamma_i + 1}{t_i} \left(\frac{\tau}{t_i}\right)^{\gamma_i} \text{ for } \tau \le t_i$$

    Here $t_1 \le t_2$; the function takes them in either order.
    """
    earlier, later = np.minimum(time, time2), np.maximum(time, time2)
    exponent = np.where(time < time2, gamma2, gamma)
    return (gamma + 1) * (gamma2 + 1) / (gamma + gamma2 + 1) * (earlier / later) ** exponent / later


@equation("schedules.posthoc_weights", source="Karras et al. 2024 (arXiv 2312.02696), Sec. 3.1 and Appendix C")
def posthoc_weights(times: np.ndarray, gammas: np.ndarray, time: float, gamma: float) -> np.ndarray:
    r"""Weights with which averages that were kept come closest to one that was not, in least squares.

    $$w = \arg\min_w \Big\lVert p - \sum_i w_i\, p_i \Big\rVert^2 \quad\Leftrightarrow\quad
      \sum_j \langle p_i, p_j \rangle\, w_j = \langle p_i, p \rangle$$

    `times` are numbers of updates, `gammas` exponents of the averages that were kept; `time`, `gamma` those of the
    wanted one. The weights may be negative.
    """
    among = profile_overlap(times[:, None], gammas[:, None], times, gammas)
    return np.linalg.lstsq(among, profile_overlap(times, gammas, time, gamma), rcond=None)[0]
