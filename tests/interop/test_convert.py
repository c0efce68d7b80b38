import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_ref.checkpoint import load_strict, save_checkpoint
from cosmos_ref.config import PRESETS
from cosmos_ref.errors import UserError
from cosmos_ref.interop.convert import convert, read_sources
from cosmos_ref.interop.names import from_ours, our_shapes
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty

MICRO = PRESETS["micro"]
OTHERS = ["nvidia", "nvidia-training", "diffusers"]


def values(config=MICRO):
    """Every tensor of a preset, each other than all others; the average in another precision."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16 if name.startswith("ema.") else torch.float32)
        for name, shape in our_shapes(config).items()
    }


def written(folder, layout, config=MICRO):
    """A checkpoint as another program would write it, and what it holds by our names."""
    names = from_ours(layout, config)
    state = {name: tensor for name, tensor in values(config).items() if name in names}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({names[name]: tensor for name, tensor in state.items()}, folder / "model.safetensors")
    return folder, state


def loaded(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_there_and_back_every_value_is_the_same(layout, max_shard_bytes, tmp_path):
    source, state = written(tmp_path / "source", layout)
    ours = convert(source, tmp_path / "ours", layout, "ours", MICRO, max_shard_bytes=max_shard_bytes)
    same(loaded(ours), state)
    back = convert(ours, tmp_path / "back", "ours", layout, MICRO, max_shard_bytes=max_shard_bytes)
    same(loaded(back), loaded(source))


def test_shards_keep_to_their_size_and_the_index_names_every_tensor(tmp_path):
    source, state = written(tmp_path / "source", "diffusers")
    out = convert(source, tmp_path / "out", "diffusers", "nvidia", MICRO, max_shard_bytes=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {name: file.name for file in out.glob("*.safetensors") for name in load_file(file)} == index["weight_map"]
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in out.glob("*.safetensors")]
    assert max(sizes) <= 20_000 < sum(sizes) == index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())


def test_a_checkpoint_of_ours_goes_out_and_the_converted_one_fits_the_model(tmp_path):
    state = values()
    groups = {
        group: {name.removeprefix(f"{group}."): t for name, t in state.items() if name.startswith(f"{group}.")}
        for group in ("model", "ema", "uncertainty")
    }
    checkpoint = save_checkpoint(tmp_path / "checkpoint", MICRO, groups, {})
    released = convert(checkpoint, tmp_path / "released", "ours", "nvidia", MICRO)
    back = loaded(convert(released, tmp_path / "back", "nvidia", "ours", MICRO))
    denoiser, uncertainty = build_denoiser(MICRO), build_uncertainty(MICRO)
    load_strict(denoiser, {n.removeprefix("model."): t for n, t in back.items() if n.startswith("model.")}, "denoiser")
    load_strict(uncertainty, {n.removeprefix("uncertainty."): t for n, t in back.items() if n[0] == "u"}, "u")
    same(denoiser.state_dict(), groups["model"])
    same(uncertainty.state_dict(), groups["uncertainty"])


def test_the_average_goes_out_where_it_is_asked_for(tmp_path):
    source, state = written(tmp_path / "source", "nvidia-training")
    out = convert(source, tmp_path / "out", "nvidia-training", "diffusers", MICRO, weights="ema")
    names = from_ours("diffusers", MICRO)
    same(loaded(out), {names[name]: state[name.replace("model.", "ema.", 1)] for name in names})
    with pytest.raises(UserError, match="no averaged weights"):
        convert(out, tmp_path / "again", "diffusers", "nvidia", MICRO, weights="ema")


def test_a_pickle_of_weights_is_read_and_so_is_its_nesting(tmp_path):
    _, state = written(tmp_path / "source", "nvidia-training")
    names = from_ours("nvidia-training", MICRO)
    nested = {"model": {}, "ema": {}}
    for name, tensor in state.items():
        group, rest = names[name].split(".", 1)
        nested[group][rest] = tensor
    nested["model"]["net.blocks.block0.blocks.0.block.attn.attn_op._extra_state"] = io.BytesIO(b"bytes")
    nested["model"]["net.pos_embedder.seq"] = torch.arange(128)
    torch.save(nested, tmp_path / "model.pt")
    same(loaded(convert(tmp_path / "model.pt", tmp_path / "out", "nvidia-training", "ours", MICRO)), state)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"net.x": Trap(str(tmp_path / "sprung"))}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="could run code"):
        convert(tmp_path / "model.pt", tmp_path / "out", "nvidia", "ours", MICRO)
    assert not (tmp_path / "sprung").exists()


def spoil(name, value):
    def change(folder):
        state = load_file(folder / "model.safetensors")
        state[name] = value(state[name])
        save_file(state, folder / "model.safetensors")

    return change


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil("net.affline_norm.weight", lambda t: t.index_fill(0, torch.tensor([3]), float("nan"))), "not finite"),
        (spoil("net.affline_norm.weight", lambda t: t.index_fill(0, torch.tensor([3]), float("-inf"))), "not finite"),
        (spoil("net.affline_norm.weight", lambda t: t.int()), "can be converted"),
        (spoil("net.affline_norm.weight", lambda t: t[:-1].clone()), "of another shape"),
        (truncate, "no whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "0 safetensors files"),
        (lambda folder: (folder / "other.safetensors").write_bytes(b""), "2 safetensors files"),
    ],
)
def test_a_damaged_source_leaves_nothing_behind(damage, message, tmp_path):
    source, _ = written(tmp_path / "source", "nvidia")
    damage(source)
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "out", "nvidia", "ours", MICRO)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_shard_is_named(tmp_path):
    source, _ = written(tmp_path / "source", "nvidia")
    out = convert(source, tmp_path / "out", "nvidia", "ours", MICRO, max_shard_bytes=20_000)
    first = min(out.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=first.name):
        read_sources(out)


def test_what_is_there_is_not_replaced(tmp_path):
    source, _ = written(tmp_path / "source", "nvidia")
    with pytest.raises(UserError, match="exists"):
        convert(source, source, "nvidia", "ours", MICRO)


MEASURE = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from cosmos_ref.config import PRESETS
from cosmos_ref.interop.convert import convert
from tests.interop.test_convert import LARGE
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(Path(sys.argv[1]), Path(sys.argv[2]), "diffusers", "nvidia", LARGE, max_shard_bytes=10**8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
LARGE = replace(MICRO, model=replace(MICRO.model, width=512, depth=10))


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_holds_little_more_than_the_largest_tensor(tmp_path):
    """160 MB pass through; the largest tensor has 4 MB, and is there twice: as a file's page and as its copy."""
    source, state = written(tmp_path / "source", "diffusers", LARGE)
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", MEASURE, source, tmp_path / "out"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    total, largest = sum(t.nbytes for t in state.values()), max(t.nbytes for t in state.values())
    assert total > 30 * largest
    assert int(run.stdout) * 1024 < 2 * largest + 24e6  # what Python and torch fetch for their first conversion
