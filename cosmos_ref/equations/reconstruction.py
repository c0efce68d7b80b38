"""What a tokenizer is trained for: that a video comes back as it was, in pixels, in features, in texture, in motion."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as nnf
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 4.2"
Features = Sequence[Float[Tensor, "B C *S"]]
Frames = Float[Tensor, "B C H W"]


@equation("reconstruction.absolute_error", source=_SOURCE)
def absolute_error(a: Float[Tensor, "*S"], b: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    r"""Mean magnitude of the difference of two videos.

    $$L_1 = \operatorname{mean} |a - b|$$
    """
    return (a - b).abs().mean()


@equation(
    "reconstruction.perceptual_distance",
    source=_SOURCE + "; code: magnitudes, no norm over the channels, no learned weights",
)
def perceptual_distance(a: Features, b: Features, weights: Sequence[float]) -> Float[Tensor, ""]:
    r"""How far apart two videos are in the eyes of a fixed network, whose layers give the features $a_k$ and $b_k$.

    $$L_P = \sum_k w_k \operatorname{mean} |a_k - b_k|$$
    """
    layers = zip(a, b, weights, strict=True)
    return torch.stack([weight * (x - y).abs().mean() for x, y, weight in layers]).sum()


@equation(
    "reconstruction.gram_matrix", source="Gatys et al. 2015 (arXiv 1508.06576), Eq. 3; code: by pixels, of all frames"
)
def gram_matrix(features: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C D"]:
    r"""Which features occur together, wherever that is: the texture of a clip, over all its P pixels and frames.

    $$G_{ij} = \frac1P \sum_p f_{ip} f_{jp}$$
    """
    flat = features.flatten(start_dim=2)
    return einsum(flat, flat, "B C P, B D P -> B C D") / flat.shape[2]


@equation("reconstruction.gram_distance", source=_SOURCE + "; code: squares, as Gatys et al. 2015, Eq. 4")
def gram_distance(a: Features, b: Features, weights: Sequence[float]) -> Float[Tensor, ""]:
    r"""How far apart the textures of two videos are, which keeps reconstructions sharp.

    $$L_G = \sum_k w_k \operatorname{mean} \left(G(a_k) - G(b_k)\right)^2$$
    """
    layers = zip(a, b, weights, strict=True)
    return torch.stack([weight * ((gram_matrix(x) - gram_matrix(y)) ** 2).mean() for x, y, weight in layers]).sum()


@equation("reconstruction.flow_distance", source=_SOURCE + "; code: magnitudes, from and to each frame's successor")
def flow_distance(
    a: Float[Tensor, "B C T H W"], b: Float[Tensor, "B C T H W"], flow: Callable[[Frames, Frames], Tensor]
) -> Float[Tensor, ""]:
    r"""How differently two videos move: their optical flow from each frame to the next, and back.

    $$L_F = \tfrac12 \operatorname{mean} \left| v(a_t, a_{t+1}) - v(b_t, b_{t+1}) \right|
      + \tfrac12 \operatorname{mean} \left| v(a_{t+1}, a_t) - v(b_{t+1}, b_t) \right|$$

    Args:
        a: a video of at least two frames.
        b: another one.
        flow: v, displacement in pixels from a frame to another, `B 2 H W`.
    """

    def motion(video: Tensor) -> Tensor:
        earlier = rearrange(video[:, :, :-1], "B C T H W -> (B T) C H W")
        later = rearrange(video[:, :, 1:], "B C T H W -> (B T) C H W")
        return torch.cat([flow(earlier, later), flow(later, earlier)])

    return (motion(a) - motion(b)).abs().mean()


@equation("reconstruction.scheduled_weight", source="code: WeightScheduler of the tokenizer's losses")
def scheduled_weight(step: int, boundaries: Sequence[int], values: Sequence[float]) -> float:
    r"""Weight of a loss in update number `step`, counted from 0: constant between boundaries, one value more than them.

    $$w_i = v_{\,\#\{k \,:\, b_k \le i\}}$$
    """
    return values[sum(boundary <= step for boundary in boundaries)]


@equation("reconstruction.lucas_kanade", source="Lucas & Kanade 1981; the ridge and the symmetric gradient are ours")
def lucas_kanade(first: Frames, second: Frames, window: int, ridge: float) -> Float[Tensor, "B 2 H W"]:
    r"""Small displacement (right, down) of what is seen around each pixel, in closed form and differentiable.

    $$v = -\left(\left\langle \nabla I\, \nabla I^\top \right\rangle + \epsilon\, \mathbb 1\right)^{-1}
      \left\langle \nabla I\, (I_2 - I_1) \right\rangle, \qquad I = \tfrac12 (I_1 + I_2)$$

    Args:
        first: frames, in any number of colours; all of them move alike.
        second: the frames after them.
        window: side of the square that the means are taken over, odd; at the border, over the part inside.
        ridge: $\epsilon$, squared change of brightness a pixel below which nothing is said to move.
    """
    down, right = torch.gradient((first + second) / 2, dim=(2, 3))
    change = second - first
    products = torch.stack([right**2, right * down, down**2, right * change, down * change], dim=1).mean(dim=2)
    means = nnf.avg_pool2d(products, window, stride=1, padding=window // 2, count_include_pad=False)
    xx, xy, yy, xt, yt = means.unbind(dim=1)
    xx, yy = xx + ridge, yy + ridge
    return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / (xx * yy - xy**2)[:, None]
