import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from cosmos_ref.errors import UserError
from cosmos_ref.interop.parts import find_parts, read_tokenizer
from cosmos_ref.interop.sources import is_torchscript, listed, read_sources
from tests.interop.files import CODER, Trap, same, write_jit, write_statistics
from tests.strategies import normal

TENSORS = {
    "float": normal(0, 3, 5).float(),
    "short": normal(1, 7).bfloat16(),
    "one": torch.tensor(2.0),
    "none": torch.empty(0, 4),
    "whole": torch.arange(5, dtype=torch.int32),
}


def read(path):
    return {name: source.read() for name, source in read_sources(path).items()}


def test_every_kind_of_tensor_is_read_as_it_was_written(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "a.pt")
    same(read(tmp_path / "a.safetensors"), TENSORS)
    same(read(tmp_path / "a.pt"), TENSORS)


def test_views_in_a_pickle_are_read_as_they_are_seen(tmp_path):
    whole = normal(2, 6, 4).float()
    views = {
        "row": whole[2],
        "column": whole[:, 1],
        "turned": whole.t()[1:3],
        "same": whole,
        "spread": whole[0].expand(3, 4),
    }
    torch.save(views, tmp_path / "a.pt")
    same(read(tmp_path / "a.pt"), views)


def test_the_layout_of_the_file_is_no_secret_of_its_name(tmp_path):
    write_jit(tmp_path, CODER)
    (tmp_path / "encoder.jit").rename(tmp_path / "encoder.pt")
    torch.save(TENSORS, tmp_path / "a.jit")
    assert is_torchscript(tmp_path / "encoder.pt") and not is_torchscript(tmp_path / "a.jit")
    with pytest.raises(UserError, match=r"encoder\.pt is TorchScript.*--allow-torchscript.*safetensors.*vae folder"):
        read_sources(tmp_path / "encoder.pt")
    assert "quant_conv.conv3d.weight" in read_sources(tmp_path / "encoder.pt", allow_torchscript=True)
    same(read(tmp_path / "a.jit"), TENSORS)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (torch.save, "holds more than tensors, and is not read, as that could run code"),
        (lambda value, path: path.write_bytes(pickle.dumps(value)), "nothing in it was run"),
        (lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False), "nothing in it was run"),
    ],
    ids=["torch.save", "pickle", "old torch.save"],
)
def test_a_pickle_with_code_is_refused_and_not_run(save, message, tmp_path):
    save({"net.x": Trap(tmp_path / "sprung")}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message) as raised:
        read_sources(tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in str(raised.value)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()  # the trap works


def test_statistics_with_code_are_refused_and_not_run(tmp_path):
    write_jit(tmp_path, CODER)
    torch.save((Trap(tmp_path / "sprung"), torch.ones(3)), tmp_path / "mean_std.pt")
    with pytest.raises(UserError, match=r"mean_std\.pt holds more than tensors"):
        read_tokenizer(tmp_path, CODER, allow_torchscript=True)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "encoder.jit"])
def test_a_git_lfs_pointer_is_named_as_one(name, tmp_path):
    pointer = (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 9\n"
    )
    (tmp_path / name).write_text(pointer)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / name))} is a Git LFS pointer.*git lfs pull"):
        read_sources(tmp_path / name)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "encoder.jit"])
@pytest.mark.parametrize("part", [0, 0.3, 0.99])
def test_a_file_cut_off_is_refused(name, part, tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "a.pt")
    write_jit(tmp_path, CODER)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name)) + " is (no whole|cut off)"):
        read_sources(tmp_path / name, allow_torchscript=True)


def test_a_pickle_of_something_else_lists_what_it_holds(tmp_path):
    torch.save({"model": {"x": torch.ones(2)}, "iteration": 7, "optim": {"lr": 0.1}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"keep only the weights:\n  iteration\n  optim\.lr$"):
        read_sources(tmp_path / "a.pt")


def test_a_shard_that_is_missing_is_named(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "m-1.safetensors")
    index = '{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}'
    (tmp_path / "m.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"m-2\.safetensors is missing"):
        read_sources(tmp_path)
    save_file({"c": torch.ones(2)}, tmp_path / "m-2.safetensors")
    with pytest.raises(UserError, match=r"differ, copy them again:\n  b\n  c$"):
        read_sources(tmp_path)


def test_a_long_list_ends_with_a_count():
    assert listed(["b", "a"]) == "\n  a\n  b"
    lines = listed(f"{n:03}" for n in range(300)).splitlines()
    assert lines[-2:] == ["  009", "  ... and 290 more"]


def test_nothing_to_read_says_what_is_there(tmp_path):
    with pytest.raises(UserError, match="gone does not exist"):
        find_parts(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} is empty; give a checkpoint"):
        find_parts(tmp_path)
    write_statistics(tmp_path)
    (tmp_path / "README.md").write_text("weights follow")
    with pytest.raises(UserError, match=r"holds no weights, only: README\.md, mean_std\.pt; give"):
        find_parts(tmp_path)
