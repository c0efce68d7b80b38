"""The `peft` library reads our adapters, and we read its."""

import warnings

import pytest
import torch

from cosmos_ref.adapter import load_adapter, save_adapter
from tests.blocks.test_lora import LORA, adapted, arguments, network, run

peft = pytest.importorskip("peft")

TOLERANCE = 1e-12
"""Float64, in which both compute. PEFT multiplies B A x by the scale, we A x: the last bits of 1e-16 differ."""


def test_peft_makes_of_our_adapter_what_we_make_of_it(tmp_path):
    ours, folder = adapted(), tmp_path / "adapter"
    save_adapter(folder, ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of keys that it misses or does not know, PEFT only warns
        theirs = peft.PeftModel.from_pretrained(network(), folder)
    found = theirs(*arguments())
    torch.testing.assert_close(found, run(ours), rtol=0, atol=TOLERANCE)
    assert (found - run(network())).abs().max() > 0.05
    torch.testing.assert_close(theirs.merge_and_unload()(*arguments()), run(ours), rtol=0, atol=TOLERANCE)


def test_we_make_of_pefts_adapter_what_it_makes_of_it(tmp_path):
    settings = peft.LoraConfig(r=LORA.rank, lora_alpha=5, target_modules=["to_k", "layer2"])
    theirs = peft.get_peft_model(network(), settings).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=generator).div_(4)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = network()
    assert load_adapter(ours, tmp_path / "adapter") == type(LORA)(LORA.rank, 5.0, ("layer2", "to_k"))
    expected = theirs(*arguments())
    torch.testing.assert_close(run(ours), expected, rtol=0, atol=TOLERANCE)
    assert (expected - run(network())).abs().max() > 0.05


def test_fresh_adapters_are_drawn_as_peft_draws_them():
    """The same range of A and zeros in B, over all layers of the network."""
    settings = peft.LoraConfig(r=LORA.rank, target_modules=list(LORA.targets))
    theirs = peft.get_peft_model(network(), settings)
    for name, parameter in theirs.named_parameters():
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5
            assert 0.8 * bound < parameter.abs().max() <= bound
        elif "lora_B" in name:
            assert not parameter.any()
