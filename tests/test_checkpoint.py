"""A checkpoint comes back as it went in, or says what is wrong with it."""

import dataclasses
import errno
import json
import os
import re
import resource
import shutil

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cosmos_ref import checkpoint
from cosmos_ref.checkpoint import (
    FORMAT,
    config_from_json,
    fill_group,
    find_checkpoint,
    list_checkpoints,
    list_groups,
    load_strict,
    read_checkpoint,
    read_group,
    save_checkpoint,
    stored_tensors,
)
from cosmos_ref.config import PRESETS
from cosmos_ref.errors import UserError
from tests.ranks import run_ranks
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


# ----------------------------------------------------------------------------------------- many processes

WHOLE = {
    "matrix": normal(0, 7, 5).float(),  # 7 rows are uneven on 2 and on 4 processes
    "row": normal(1, 1, 3).float(),  # one process has it, the others nothing
    "vector": normal(2, 5).double(),
    "half": normal(3, 4, 2).bfloat16(),
    "columns": normal(4, 4, 6).float(),  # is spread along the second axis
    "step": torch.tensor(4.0),
    "frequencies": normal(5, 3).float(),  # the same in every process
}
PLAIN = ("step", "frequencies")


def spread(tensors, replicate=1):
    """Tensors as FSDP has them: rows over the processes, in `replicate` copies."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (replicate, dist.get_world_size() // replicate))
    return {
        name: t.clone()
        if name in PLAIN
        else distribute_tensor(t.clone(), mesh, [Replicate(), Shard(int(name == "columns"))])
        for name, t in tensors.items()
    }


def write_shards(folder, replicate):
    save_checkpoint(folder, MICRO, {"model": spread(WHOLE, replicate), "images": {"mean": WHOLE["row"]}}, {"step": 4})


def read_shards(folder, replicate):
    found = {name: torch.zeros_like(t) for name, t in spread(WHOLE, replicate).items()}
    fill_group(folder, "model", found, "the test")
    for name, tensor in WHOLE.items():
        whole = found[name] if name in PLAIN else found[name].full_tensor()
        assert whole.dtype == tensor.dtype
        assert torch.equal(whole, tensor), name


@pytest.fixture(scope="module", params=[(2, 1), (4, 2)], ids=["2", "2 times 2"])
def sharded(request, tmp_path_factory):
    """A checkpoint of two processes, or of two copies on two each."""
    folder = tmp_path_factory.mktemp("sharded") / "checkpoints" / "step_0000004"
    processes, replicate = request.param
    run_ranks(write_shards, processes, folder, replicate)
    return folder


@pytest.fixture
def copied(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / sharded.name)


@pytest.mark.parametrize(("processes", "replicate"), [(1, 1), (2, 1), (4, 2)])
def test_what_many_processes_wrote_any_number_of_them_reads_to_the_bit(sharded, processes, replicate):
    run_ranks(read_shards, processes, sharded, replicate)


def test_what_many_processes_wrote_one_reads_whole(sharded):
    found = read_checkpoint(sharded)
    assert found.groups == ("images", "model") == list_groups(sharded)
    assert found.tensors["model"].keys() == WHOLE.keys()
    filled = {name: torch.zeros_like(t) for name, t in WHOLE.items()}
    fill_group(sharded, "model", filled, "the test")
    for name, tensor in WHOLE.items():
        assert found.tensors["model"][name].dtype == tensor.dtype
        assert found.tensors["model"][name].data_ptr() % 64 == 0
        assert torch.equal(found.tensors["model"][name], tensor)
        assert torch.equal(filled[name], tensor)


def test_what_one_process_wrote_many_read(tmp_path):
    run_ranks(read_shards, 2, save_checkpoint(tmp_path / "one", MICRO, {"model": WHOLE}, {}), 1)


def test_no_process_writes_what_another_wrote(sharded):
    """Copies are written once, and nothing is written whole that is spread."""
    sizes = [path.stat().st_size for path in (sharded / "model").iterdir()]
    headers = 1500 * len(sizes)
    assert sum(sizes) < sum(tensor.nbytes for tensor in WHOLE.values()) + headers
    pieces = stored_tensors(sharded, "model")["matrix"].pieces
    assert sorted(piece.shape for piece in pieces) == [(3, 5), (4, 5)]
    assert (sharded / "images.safetensors").is_file()  # is not spread


@pytest.mark.parametrize("damage", [os.remove, truncate, alter])
def test_a_damaged_shard_is_named_with_what_to_do(copied, damage):
    shard = sorted((copied / "model").iterdir())[1]
    damage(shard)
    for read in (read_group, lambda folder, group: fill_group(folder, group, WHOLE, "the test")):
        with pytest.raises(UserError, match=f"{shard.name}.*use an earlier one"):
            read(copied, "model")


def test_a_shard_that_the_manifest_forgot_is_missed(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if "shard-00001" not in name}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="has not all of"):
        read_group(copied, "model")


def refused_alike(work, kind, says):
    """All processes raise the same message."""
    try:
        work()
    except kind as error:
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, str(error))
        assert re.search(says, told[0], re.DOTALL), told[0]
        assert len(set(told)) == 1, told
    else:
        raise AssertionError("nothing was raised")


def refuse_what_one_misses(folder):
    """A process that would be alone with its error would leave the others waiting."""
    last = dist.get_rank() == dist.get_world_size() - 1
    broken = {name: tensor.clone() for name, tensor in WHOLE.items()}
    broken["matrix"][-1, -1] = float("nan")  # in the last process's part
    save_checkpoint(folder / "nan", MICRO, {"model": spread(broken)}, {})
    found = spread(WHOLE)
    refused_alike(lambda: fill_group(folder / "nan", "model", found, "it"), UserError, "not finite: matrix")
    expected = {"more": found["matrix"], "row": found["columns"]}
    says = "missing: more.*of another shape: row is .1, 3., should be .4, 6..*unexpected: half"
    refused_alike(lambda: fill_group(folder / "nan", "model", expected, "it"), UserError, says)
    shard = max((folder / "nan" / "model").iterdir())
    dist.barrier()
    if last:
        truncate(shard)
    dist.barrier()
    refused_alike(lambda: fill_group(folder / "nan", "model", found, "it"), UserError, f"{shard.name}.*truncated")


def test_what_one_process_cannot_read_all_refuse(tmp_path):
    run_ranks(refuse_what_one_misses, 2, tmp_path)


def fail_to_write(folder, failing):
    """Process `failing` may write no file of more than 64 KiB, as if its disk was full."""
    tensors = {"model": spread({"matrix": normal(0, 512, 128).float()}), "images": {"mean": normal(1, 20_000).float()}}
    save_checkpoint(folder / "step_0000001", MICRO, tensors, {"step": 1})
    if dist.get_rank() == failing:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    says = f"step_0000002 was not written .process {failing}: .*File too large.*earlier ones are kept"
    refused_alike(lambda: save_checkpoint(folder / "step_0000002", MICRO, tensors, {"step": 2}), OSError, says)
    assert [path.name for path in folder.iterdir()] == ["step_0000001"]
    assert torch.equal(read_group(folder / "step_0000001", "images")["mean"], tensors["images"]["mean"])


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_of_one_process_stops_all_and_leaves_no_half_checkpoint(tmp_path, failing):
    run_ranks(fail_to_write, 2, tmp_path, failing)


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_half_one(saved, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(OSError, match=r"step_0000005 was not written .*No space left.*earlier ones are kept"):
        save_checkpoint(saved.with_name("step_0000005"), MICRO, TENSORS, {})
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert read_checkpoint(saved).state == {"step": 4}


def test_filling_lists_everything_that_does_not_fit(saved):
    tensors = {"a.weight": torch.zeros(3, 4), "b": torch.zeros(1)}
    with pytest.raises(UserError) as error:
        fill_group(saved, "model", tensors, "the test")
    for line in ["missing: b", "unexpected: odd", "a.weight is (3, 5), should be (3, 4)"]:
        assert line in str(error.value)
    assert not any(tensor.any() for tensor in tensors.values())
