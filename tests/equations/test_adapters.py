import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import adapters
from tests.impostors import impostor
from tests.strategies import normal, seeds

ranks = st.integers(1, 6)
alphas = st.floats(0.1, 40)


def matrices(seed, rank, outputs=7, inputs=9):
    """W, A and B of a layer with more inputs than outputs."""
    return normal(seed, outputs, inputs), normal(seed + 1, rank, inputs), normal(seed + 2, outputs, rank)


# --- lora


@pytest.mark.verifies("adapters.lora", by="point")
def test_a_weight_of_two_by_three_with_an_adapter_of_rank_two():
    W = torch.zeros(2, 3, dtype=torch.float64)
    A = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    B = torch.tensor([[1.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    expected = torch.tensor([[4.0, 8.0, 0.0], [4.0, 20.0, 12.0]], dtype=torch.float64)  # alpha / r = 4
    assert torch.equal(adapters.lora(W, A, B, 8.0), expected)


@pytest.mark.verifies("adapters.lora")
@given(seeds, ranks, alphas)
def test_the_change_has_no_more_than_its_rank(seed, rank, alpha):
    W, A, B = matrices(seed, rank)
    change = adapters.lora(W, A, B, alpha) - W
    assert change.shape == W.shape
    values = torch.linalg.svdvals(change)
    assert (values[rank:] < 1e-12 * values[0]).all() and (values[:rank] > 1e-9 * values[0]).all()


@pytest.mark.verifies("adapters.lora")
@given(seeds, ranks, alphas)
def test_at_the_start_the_weight_is_as_it_was(seed, rank, alpha):
    W, A, B = matrices(seed, rank)
    assert torch.equal(adapters.lora(W, A, torch.zeros_like(B), alpha), W)


@pytest.mark.verifies("adapters.lora")
@given(seeds, ranks, alphas, st.floats(0.1, 10))
def test_the_change_is_proportional_to_alpha(seed, rank, alpha, factor):
    W, A, B = matrices(seed, rank)
    once, more = (adapters.lora(W, A, B, scale) - W for scale in (alpha, factor * alpha))
    # rtol for numbers of the size of W + change, of which the difference is taken
    torch.testing.assert_close(more, factor * once, rtol=1e-9, atol=1e-10)


@pytest.mark.verifies("adapters.lora")
@given(seeds, ranks, st.integers(2, 4), alphas)
def test_rank_that_brings_nothing_new_changes_nothing(seed, rank, times, alpha):
    """The same A and B many times over: r grows, and the scale falls by as much. So alpha holds for every rank."""
    W, A, B = matrices(seed, rank)
    found = adapters.lora(W, A.repeat(times, 1), B.repeat(1, times), alpha)
    torch.testing.assert_close(found, adapters.lora(W, A, B, alpha), rtol=1e-12, atol=1e-12)


@pytest.mark.verifies("adapters.lora")
@given(seeds, ranks, alphas)
def test_what_a_does_not_look_at_passes_unchanged(seed, rank, alpha):
    """An input from the null space of A meets W alone, and every change lies in the span of the columns of B."""
    W, A, B = matrices(seed, rank)
    change = adapters.lora(W, A, B, alpha) - W
    unseen = torch.linalg.svd(A).Vh[rank:].T
    unreached = torch.linalg.svd(B).U[:, rank:].T
    zero = 1e-12 * (1 + change.norm().item())
    assert (change @ unseen).abs().max() < zero
    assert rank == 7 or (unreached @ change).abs().max() < zero


@impostor("adapters.lora", "alpha not divided by the rank: it must be found anew for every rank")
def lora_without_the_rank(W, A, B, alpha):
    return W + alpha * B @ A


@impostor("adapters.lora", "divided by the root of the rank: rsLoRA, another method")
def lora_with_the_root_of_the_rank(W, A, B, alpha):
    return W + alpha / len(A) ** 0.5 * B @ A


@impostor("adapters.lora", "divided by the rows of B, which are the layer's outputs, not the rank")
def lora_over_the_outputs(W, A, B, alpha):
    return W + alpha / len(B) * B @ A


@impostor("adapters.lora", "rows of A that meet the columns of B in the opposite order")
def lora_of_other_pairs(W, A, B, alpha):
    return W + alpha / len(A) * B @ A.flip(0)


@impostor("adapters.lora", "A and B normalised, as if only their directions counted")
def lora_of_directions(W, A, B, alpha):
    return W + alpha / len(A) * _directions(B) @ A


@impostor("adapters.lora", "W scaled along with the change")
def lora_that_scales_the_weight(W, A, B, alpha):
    return alpha / len(A) * (W + B @ A)


@impostor("adapters.lora", "multiplied onto W instead of added to it")
def lora_as_a_factor(W, A, B, alpha):
    return W * (1 + alpha / len(A) * B @ A)


@impostor("adapters.lora", "means of A and B added to W, not their product: of rank two, and there when B is zero")
def lora_as_a_sum(W, A, B, alpha):
    return W + alpha / len(A) * (B.mean(1, keepdim=True) + A.mean(0))


def _directions(B):
    return B / (B.norm(dim=0) + 1e-30)


# --- lora_output


@pytest.mark.verifies("adapters.lora_output", by="point")
def test_the_output_of_a_layer_with_an_adapter_of_rank_two():
    x = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    W = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    A = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    B = torch.tensor([[1.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    # A x = (1, 2); B A x = (1, 7); alpha / r = 4; W x = (3, -2)
    assert adapters.lora_output(x, W, A, B, 8.0).tolist() == [[7.0, 26.0]]


@pytest.mark.verifies("adapters.lora_output", "adapters.lora")
@given(seeds, ranks, alphas)
def test_beside_the_weight_or_in_it_the_output_is_the_same(seed, rank, alpha):
    W, A, B = matrices(seed, rank)
    x = normal(seed + 3, 2, 5, 9)
    merged = x @ adapters.lora(W, A, B, alpha).T
    found = adapters.lora_output(x, W, A, B, alpha)
    torch.testing.assert_close(found, merged, rtol=1e-12, atol=1e-12 * alpha)


@pytest.mark.verifies("adapters.lora_output")
@given(seeds, ranks, alphas)
def test_gradients_beside_the_weight_are_those_in_it(seed, rank, alpha):
    """Of A, B and x, by the chain rule from the gradient of W', which is (dL/dy)^T x."""
    W, A, B = matrices(seed, rank)
    x, upstream = normal(seed + 3, 5, 9), normal(seed + 4, 5, 7)
    A, B, x = (tensor.requires_grad_() for tensor in (A, B, x))
    (adapters.lora_output(x, W, A, B, alpha) * upstream).sum().backward()
    with torch.no_grad():
        of_weight = upstream.T @ x
        scale = alpha / rank
        expected = scale * B.T @ of_weight, scale * of_weight @ A.T, upstream @ (W + scale * B @ A)
    for tensor, gradient in zip((A, B, x), expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-10, atol=1e-11 * alpha)


@pytest.mark.verifies("adapters.lora_output")
@given(seeds, ranks, alphas)
def test_at_the_start_the_output_is_the_layers_and_only_b_has_a_gradient(seed, rank, alpha):
    W, A, B = matrices(seed, rank)
    x = normal(seed + 3, 5, 9)
    A, B = A.requires_grad_(), torch.zeros_like(B).requires_grad_()
    y = adapters.lora_output(x, W, A, B, alpha)
    assert torch.equal(y, x @ W.T)
    y.sum().backward()
    assert not A.grad.any() and B.grad.any()


@impostor("adapters.lora_output", "alpha not divided by the rank")
def output_without_the_rank(x, W, A, B, alpha):
    return x @ W.T + alpha * (x @ A.T) @ B.T


@impostor("adapters.lora_output", "the scale put on both factors")
def output_scaled_twice(x, W, A, B, alpha):
    scale = alpha / len(A)
    return x @ W.T + (x @ (scale * A).T) @ (scale * B).T


@impostor("adapters.lora_output", "the adapter put after the layer, not beside it")
def output_of_an_adapter_behind(x, W, A, B, alpha):
    return x @ W.T * (1 + alpha / len(A) * ((x @ A.T) @ B.T).tanh())


@impostor("adapters.lora_output", "the adapter detached, as under a forgotten no_grad: nothing learns")
def output_without_gradients(x, W, A, B, alpha):
    return x @ W.T + (alpha / len(A) * (x @ A.T) @ B.T).detach() + 0 * (A.sum() + B.sum() + x.sum())


@impostor("adapters.lora_output", "the adapter alone, the layer forgotten")
def output_of_the_adapter(x, W, A, B, alpha):
    return alpha / len(A) * (x @ A.T) @ B.T
