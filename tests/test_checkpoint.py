"""A checkpoint comes back as it went in, or says what is wrong with it."""

import dataclasses
import json
import os

import pytest
import torch
from torch import nn

from cosmos_ref import checkpoint
from cosmos_ref.checkpoint import (
    FORMAT,
    config_from_json,
    find_checkpoint,
    list_checkpoints,
    load_strict,
    read_checkpoint,
    save_checkpoint,
)
from cosmos_ref.config import PRESETS
from cosmos_ref.errors import UserError
from tests.strategies import normal

MICRO = PRESETS["micro"]
TENSORS = {
    "model": {"a.weight": normal(0, 3, 5).float(), "odd": normal(1, 7).bfloat16()},
    "optimizer": {"step": torch.tensor(4.0), "transposed": normal(2, 3, 4).T},
}


@pytest.fixture
def saved(tmp_path):
    return save_checkpoint(tmp_path / "checkpoints" / "step_0000004", MICRO, TENSORS, {"step": 4})


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_configuration_survives_json(config):
    text = json.dumps(dataclasses.asdict(config))
    assert config_from_json(json.loads(text), "here") == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["model"].pop("width"), "width"),
        (lambda c: c["train"].update(colour="red"), "colour"),
        (lambda c: c["model"].update(width="32"), "config.model.width"),
        (lambda c: c["model"].update(width=True), "config.model.width"),
        (lambda c: c["model"].update(patch_size=[1, 2]), "config.model.patch_size"),
        (lambda c: c["model"].update(patch_size=[1, 2, 2.5]), r"config.model.patch_size\[2\]"),
        (lambda c: c["text"].update(encoder="t6"), "config.text.encoder"),
        (lambda c: c.update(clip=None), "config.clip"),
    ],
)
def test_a_configuration_is_read_strictly(change, named):
    value = json.loads(json.dumps(dataclasses.asdict(MICRO)))
    change(value)
    with pytest.raises(UserError, match=named):
        config_from_json(value, "here")


def test_what_is_saved_is_read_back_to_the_bit(saved):
    found = read_checkpoint(saved)
    assert found.config == MICRO
    assert found.state == {"step": 4}
    assert found.tensors.keys() == TENSORS.keys()
    for group, tensors in TENSORS.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[group][name], tensor)


def test_tensors_come_back_aligned_like_torchs_own(saved):
    """A sum over unaligned memory may round differently: resumed runs would drift from undisturbed ones."""
    for group in read_checkpoint(saved).tensors.values():
        assert all(tensor.data_ptr() % 64 == 0 for tensor in group.values())


def test_only_the_wanted_groups_are_read_and_verified(saved):
    (saved / "optimizer.safetensors").write_bytes(b"not read")
    assert read_checkpoint(saved, ["model"]).tensors.keys() == {"model"}


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def alter(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [os.remove, truncate, alter])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json", "state.json"])
def test_a_damaged_file_is_named_with_what_to_do(saved, damage, name):
    damage(saved / name)
    with pytest.raises(UserError, match=f"{name}.*use an earlier one"):
        read_checkpoint(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "files": {"config.json": 3}}'])
def test_a_damaged_manifest_is_refused(saved, text):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_checkpoint(saved)


def test_another_format_is_refused(saved):
    path = saved / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match="use the version that wrote it"):
        read_checkpoint(saved)


def test_a_file_that_is_no_safetensors_is_refused(saved, monkeypatch):
    """Even where its checksum is right, that is, where it was written so."""
    (saved / "model.safetensors").write_bytes(b"\x80\x04pickle")
    monkeypatch.setattr(checkpoint, "_verify", lambda path, entry: None)
    with pytest.raises(UserError, match="safetensors"):
        read_checkpoint(saved)


def test_a_writer_that_dies_leaves_the_old_checkpoint(saved, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_flush", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, MICRO, {"model": {}}, {"step": 5})
    assert read_checkpoint(find_checkpoint(saved.parent.parent)).state == {"step": 4}


def test_a_checkpoint_replaces_an_older_one_and_sweeps_up(saved):
    (saved.parent / f".{saved.name}.partial").mkdir()
    save_checkpoint(saved, MICRO, {"model": {"b": torch.ones(2)}}, {"step": 5})
    found = read_checkpoint(saved)
    assert found.state == {"step": 5}
    assert found.tensors.keys() == {"model"}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no checkpoint"):
        save_checkpoint(tmp_path, MICRO, TENSORS, {})
    assert (tmp_path / "thesis.txt").exists()


def test_the_newest_complete_checkpoint_of_a_run_is_found(saved):
    run = saved.parent.parent
    later = save_checkpoint(saved.parent / "step_10000000", MICRO, TENSORS, {"step": 10_000_000})
    (saved.parent / "step_20000000").mkdir()  # no manifest: not ours
    (saved.parent / ".step_30000000.partial").mkdir()
    (saved.parent / ".step_30000000.partial" / "manifest.json").write_text("{}")
    assert list_checkpoints(run) == [saved, later]
    assert find_checkpoint(run) == later
    assert find_checkpoint(saved) == saved


def test_no_checkpoint_is_the_users_error(tmp_path):
    (tmp_path / "file").touch()
    for path, named in [(tmp_path, "no complete"), (tmp_path / "file", "a file"), (tmp_path / "no", "not exist")]:
        with pytest.raises(UserError, match=named):
            find_checkpoint(path)


def test_loading_lists_everything_that_does_not_fit():
    module = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_strict(module, {"weight": torch.ones(3, 4), "extra": torch.ones(1)}, "the test")
    for line in ["missing: bias", "unexpected: extra", "weight is (3, 4), should be (3, 2)"]:
        assert line in str(error.value)
    with pytest.raises(UserError, match="not finite: bias"):
        load_strict(module, before | {"bias": torch.tensor([0, float("nan"), 0])}, "the test")
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_module_without_memory_is_filled():
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    tensors = {"weight": normal(0, 3, 2).float(), "bias": normal(1, 3).float()}
    load_strict(module, tensors, "the test")
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert all(parameter.requires_grad for parameter in module.parameters())
