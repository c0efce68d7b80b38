"""Adapters beside the layers of a real network: what they leave as it was, and what they change."""

import pytest
import torch
from torch import nn

from cosmos_ref.blocks.lora import LoRALinear, add_lora, initialize_lora, merge_lora
from cosmos_ref.config import PRESETS, LoRAConfig
from cosmos_ref.errors import UserError
from cosmos_ref.model.dit import CosmosDiT
from tests.blocks.filled import filled
from tests.strategies import normal

CONFIG = PRESETS["micro"].model
LORA = LoRAConfig(rank=3, alpha=6.0)


def network(seed=0):
    return filled(CosmosDiT(CONFIG), seed)


def adapted(seed=0, lora=LORA):
    """A network with adapters in which nothing is zero."""
    made = network(seed)
    add_lora(made, lora)
    for i, (name, parameter) in enumerate(sorted(made.named_parameters())):
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(normal(100 + i, *parameter.shape) / 4)
    return made


def arguments(dtype=torch.float64):
    positions = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(2))
    x, text = normal(1, 2, CONFIG.in_channels, 2, 4, 4), normal(2, 2, 6, CONFIG.text_width)
    noise, fps = torch.tensor([0.3, -0.2]), torch.tensor([24.0, 12.0])
    return x.to(dtype), noise.to(dtype), text.to(dtype), positions, fps.to(dtype)


def run(made, dtype=torch.float64):
    return made.to(dtype)(*arguments(dtype))


def test_every_layer_of_both_attentions_and_the_mlp_gets_an_adapter_and_no_other():
    names = add_lora(network(), LORA)
    attention = [f"{kind}_attention.to_{part}" for kind in ("self", "cross") for part in ("q", "k", "v", "out")]
    inside = [*attention, "mlp.layer1", "mlp.layer2"]
    assert sorted(names) == sorted(f"blocks.{i}.{name}" for i in range(CONFIG.depth) for name in inside)


def test_fresh_adapters_leave_the_output_as_it_was():
    plain, fresh = network(), network()
    add_lora(fresh, LORA)
    for module in fresh.modules():
        if isinstance(module, LoRALinear):
            nn.init.ones_(module.lora_B)  # what memory may hold
    initialize_lora(fresh, torch.Generator().manual_seed(3))
    assert torch.equal(run(fresh), run(plain))


def test_fresh_adapters_are_drawn_from_the_generator_and_can_learn():
    fresh = network()
    add_lora(fresh, LORA)
    initialize_lora(fresh, torch.Generator().manual_seed(3))
    run(fresh).square().sum().backward()
    layers = [module for module in fresh.modules() if isinstance(module, LoRALinear)]
    for layer in layers:
        bound = layer.in_features**-0.5
        assert 0.8 * bound < layer.lora_A.abs().max() <= bound  # uniform up to there
    assert max(layer.lora_A.abs().max() * layer.in_features**0.5 for layer in layers) > 0.98  # of some 2,000 numbers
    for layer in layers:
        assert layer.lora_B.grad.abs().max() > 0 and not layer.lora_A.grad.any()
    assert not torch.equal(layers[0].lora_A, layers[1].lora_A)
    again = network()
    add_lora(again, LORA)
    initialize_lora(again, torch.Generator().manual_seed(3))
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), again.parameters(), strict=True))


def test_only_adapters_learn():
    made = adapted()
    run(made).square().sum().backward()
    for name, parameter in made.named_parameters():
        learns = name.endswith(("lora_A", "lora_B"))
        assert parameter.requires_grad == learns
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name


def test_weights_keep_their_names_and_values():
    plain, made = network().state_dict(), adapted().state_dict()
    assert all(torch.equal(made[name], tensor) for name, tensor in plain.items())
    assert {name.rpartition(".")[2] for name in made.keys() - plain.keys()} == {"lora_A", "lora_B"}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),  # outputs of size 1, some dozen sums on the way
        (torch.float32, 1e-5),
    ],
)
def test_merged_the_network_has_the_output_that_it_had_unmerged(dtype, tolerance):
    made, plain = adapted().to(dtype), network()
    beside = run(made, dtype)
    merge_lora(made)
    assert made.state_dict().keys() == plain.state_dict().keys()
    assert not any(isinstance(module, LoRALinear) for module in made.modules())
    torch.testing.assert_close(run(made, dtype), beside, rtol=tolerance, atol=tolerance)
    assert (run(plain, dtype) - beside).abs().max() > 0.05  # the adapters do something
    for module in made.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
            assert not module.weight.requires_grad, "what was merged is done with learning"


def test_gradients_of_the_adapters_are_those_of_the_merged_form():
    """The merged network with W + alpha / r B A formed by autograd, in the place of each weight."""
    made = adapted()
    upstream = normal(9, *run(made).shape)
    (run(made) * upstream).sum().backward()
    plain = network()
    leaves, merged = {}, {}
    for name, layer in made.named_modules():
        if isinstance(layer, LoRALinear):
            A, B = (leaf.detach().clone().requires_grad_() for leaf in (layer.lora_A, layer.lora_B))
            leaves[name] = A, B
            merged[f"{name}.weight"] = layer.weight + LORA.alpha / LORA.rank * torch.einsum("or,ri->oi", B, A)
    output = torch.func.functional_call(plain, merged, arguments())
    (output * upstream).sum().backward()
    for name, (A, B) in leaves.items():
        layer = made.get_submodule(name)
        for found, expected in ((layer.lora_A.grad, A.grad), (layer.lora_B.grad, B.grad)):
            assert expected.abs().max() > 1e-6
            # float64: sums of some dozen terms on two ways through two blocks
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_in_half_precision_the_sum_is_rounded_once():
    layer = LoRALinear(nn.Linear(4, 4, bias=False, dtype=torch.bfloat16), rank=2, alpha=1.0)
    with torch.no_grad():
        layer.weight.copy_(normal(1, 4, 4))
        layer.lora_A.copy_(normal(2, 2, 4))
        layer.lora_B.copy_(normal(3, 4, 2))
    exact = (layer.weight.double() + layer.lora_B.double() @ layer.lora_A.double() / 2).bfloat16()
    holder = nn.Sequential(layer)
    merge_lora(holder)
    assert torch.equal(holder[0].weight, exact)


def test_targets_that_are_no_layers_are_refused_by_name():
    with pytest.raises(
        UserError, match=r"\['to_x'\] are no .* down, layer1, layer2, .*, to_k, to_out, to_q, to_v, up$"
    ):
        add_lora(network(), LoRAConfig(rank=2, targets=("to_q", "to_x")))


def test_adapters_are_not_put_on_adapters():
    with pytest.raises(ValueError, match="already"):
        add_lora(adapted(), LORA)


@pytest.mark.parametrize("wrong", [{"rank": -1}, {"alpha": 0.0}, {"alpha": float("nan")}, {"targets": ()}])
def test_numbers_that_are_no_adapter_are_refused(wrong):
    with pytest.raises(UserError, match=f"lora.{next(iter(wrong))}"):
        LoRAConfig(**{"rank": 2, **wrong})
