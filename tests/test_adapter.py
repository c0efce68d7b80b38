"""Adapters come back from the disk as they were, and none is loaded without effect."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_ref.adapter import CONFIG, WEIGHTS, load_adapter, save_adapter
from cosmos_ref.blocks.lora import add_lora, initialize_lora
from cosmos_ref.errors import UserError
from tests.blocks.test_lora import LORA, adapted, network, run


@pytest.fixture
def folder(tmp_path):
    return save_adapter(tmp_path / "adapter", adapted())


def test_an_adapter_comes_back_as_it_was(folder):
    loaded = network()
    assert load_adapter(loaded, folder) == type(LORA)(LORA.rank, LORA.alpha, tuple(sorted(LORA.targets)))
    assert torch.equal(run(loaded), run(adapted()))
    assert (run(loaded) - run(network())).abs().max() > 0.05


def test_the_average_of_the_adapters_can_be_written_in_their_place(tmp_path):
    made = adapted()
    average = {name: 2 * tensor for name, tensor in made.state_dict().items() if "lora_" in name}
    found = load_file(save_adapter(tmp_path / "adapter", made, average) / WEIGHTS)
    key = "base_model.model.blocks.1.cross_attention.to_k.lora_B.weight"
    assert torch.equal(found[key], 2 * made.blocks[1].cross_attention.to_k.lora_B)
    assert len(found) == len(average)


def test_an_adapter_is_replaced_whole_and_nothing_else_is(tmp_path, folder):
    save_adapter(folder, adapted(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="is no adapter"):
        save_adapter(other, adapted())


def renamed(folder, rename):
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)


def settings(folder, **changed):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_names_that_do_not_match_are_refused_not_passed_over(folder):
    """The classic: keys with another prefix, a loader that is not strict, and a model without its adapter."""
    renamed(folder, lambda name: name.replace("base_model.model.", "base_model.model.network."))
    loaded = network()
    with pytest.raises(
        UserError, match=r"missing: base_model.model.blocks.0(.|\n)*unexpected: base_model.model.network"
    ):
        load_adapter(loaded, folder)
    assert torch.equal(run(loaded), run(network()))  # and nothing was changed by the attempt


def test_a_layer_without_its_tensors_is_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    lost = "base_model.model.blocks.0.mlp.layer1.lora_A.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"missing: {lost}$"):
        load_adapter(network(), folder)


def test_an_adapter_of_another_size_or_rank_is_refused(folder):
    settings(folder, r=4)
    with pytest.raises(UserError, match=r"of another shape: .*layer1.lora_A.weight is \(3, 32\), should be \(4, 32\)"):
        load_adapter(network(), folder)


def test_an_adapter_of_layers_that_are_not_there_is_refused(folder):
    settings(folder, target_modules=["to_x"])
    with pytest.raises(UserError, match="unexpected"):
        load_adapter(network(), folder)


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    fresh = network()
    add_lora(fresh, LORA)
    initialize_lora(fresh, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="changes nothing"):
        load_adapter(network(), save_adapter(tmp_path / "adapter", fresh))


def test_an_adapter_that_is_not_finite_is_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.blocks.0.mlp.layer1.lora_A.weight"][0, 0] = torch.inf
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"not finite: .*layer1.lora_A"):
        load_adapter(network(), folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"alpha_pattern": {"to_q": 3}}, "alpha_pattern"),
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"bias": "all"}, "bias all"),
        ({"target_modules": ".*to_q"}, "as a list"),
        ({"r": None}, "cannot be read"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(folder, changed, message):
    settings(folder, **changed)
    with pytest.raises(UserError, match=message):
        load_adapter(network(), folder)


def test_a_folder_that_is_no_adapter_is_told_what_one_is(tmp_path, folder):
    with pytest.raises(UserError, match=r"is no adapter: give a folder with adapter_model\.safetensors"):
        load_adapter(network(), tmp_path)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7])
    with pytest.raises(UserError, match="damaged"):
        load_adapter(network(), folder)
