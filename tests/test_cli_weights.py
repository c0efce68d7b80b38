"""Weights that are made from weights, on the command line: another start, adapters, averages."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint
from cosmos_ref.cli import main
from cosmos_ref.config import LoRAConfig
from cosmos_ref.training.initial import load_initial
from cosmos_ref.video_io import read_clip
from tests.test_cli import refused

FEW = ["--train.num-steps", "4", "--train.cooling-steps", "1", "--train.checkpoint-every", "2"]
LARGE = ["--train.learning-rate", "0.02", "--train.warmup-steps", "0"]  # so that four steps can be seen


def command(*arguments):
    main([str(argument) for argument in arguments])


def tensors(folder, group):
    return read_checkpoint(find_checkpoint(folder), [group]).tensors[group]


@pytest.fixture(scope="module")
def quick():
    """Fit the tokenizer on a few clips, and draw nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cosmos_ref.training.run.TOKENIZER_CLIPS", range(2**39, 2**39 + 32))
        patch.setattr("cosmos_ref.training.log.TrainingLog.draw", lambda log: None)
        yield


@pytest.fixture(scope="module")
def run(quick, tmp_path_factory):
    """A run of the micro preset, with three averages in each of two checkpoints."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    command("train", "--preset", "micro", "--out", folder, *FEW, "--train.ema-stds", "0.1", "0.05", "0.025")
    return folder


@pytest.fixture(scope="module")
def adapter(quick, run, tmp_path_factory):
    """A run that trains adapters beside the weights of the first one."""
    folder = tmp_path_factory.mktemp("weights") / "adapter"
    command("train", "--preset", "micro", "--out", folder, *FEW, "--initial", run, "--lora.rank", "2", *LARGE)
    return folder


def test_a_run_of_adapters_leaves_all_weights_where_they_were(run, adapter):
    before, after = tensors(run, "ema"), tensors(adapter, "model")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(tensor.any() for name, tensor in after.items() if name.endswith("lora_B"))
    moments = {name.split(".", 1)[1] for name in tensors(adapter, "optimizer")}
    assert {name.rpartition(".")[2] for name in moments} == {"lora_A", "lora_B", "weight"}
    assert {name for name in moments if name.endswith("weight")} == {"uncertainty.linear.weight"}


def test_the_adapter_that_a_run_leaves_is_small_and_is_the_average(adapter):
    folder = adapter / "lora"
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2
    found, average = load_file(folder / "adapter_model.safetensors"), tensors(adapter, "ema")
    adapters = {name: tensor for name, tensor in average.items() if "lora_" in name}
    assert len(found) == len(adapters) < len(average)
    for name, tensor in adapters.items():
        assert torch.equal(found["base_model.model." + name.removeprefix("network.") + ".weight"], tensor)


def test_beside_merged_and_in_their_own_run_adapters_make_the_same_clip(run, adapter, tmp_path, capsys):
    command("merge-lora", run, adapter / "lora", "--out", tmp_path / "merged")
    command("merge-lora", adapter, "--out", tmp_path / "own")
    ways = {
        "beside": ["--weights", run, "--lora", adapter / "lora"],
        "merged": ["--weights", tmp_path / "merged"],
        "own": ["--weights", adapter],
        "own merged": ["--weights", tmp_path / "own"],
        "without": ["--weights", run],
    }
    clips = {}
    for name, way in ways.items():
        out = tmp_path / f"{name}.png"
        command("sample", *way, "--prompt", "a red ball", "--out", out)
        clips[name] = read_clip(out).video
    for name in ("merged", "own", "own merged"):  # one level of 8 bits: unmerged, sums are rounded elsewhere
        assert (clips[name] - clips["beside"]).abs().max() < 1.01 / 127.5
    assert (clips["without"] - clips["beside"]).abs().max() > 1.01 / 127.5
    assert read_checkpoint(tmp_path / "merged", ()).config.lora == LoRAConfig()


def test_the_next_training_starts_from_merged_weights_and_with_new_adapters(adapter, tmp_path):
    """Whether the run was merged before or not."""
    command("merge-lora", adapter, "--out", tmp_path / "merged")
    plain = read_checkpoint(tmp_path / "merged", ()).config
    again = read_checkpoint(find_checkpoint(adapter), ()).config
    merged = tensors(tmp_path / "merged", "model")
    for start in (tmp_path / "merged", adapter):
        found = load_initial(plain, start).denoiser
        assert found.keys() == merged.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in merged.items())
        found = load_initial(again, start).denoiser
        assert all(torch.equal(found[name], tensor) for name, tensor in merged.items())
        assert found.keys() == tensors(adapter, "model").keys()
        assert all(tensor.any() == name.endswith("lora_A") for name, tensor in found.items() if "lora_" in name)


def test_an_average_of_another_width_is_a_checkpoint_to_sample_from(run, tmp_path, capsys):
    command("ema", run, "--std", "0.07", "--out", tmp_path / "ema")
    assert "after 4 steps, from 6 averages" in " ".join(capsys.readouterr().out.split())
    found = read_checkpoint(tmp_path / "ema")
    assert found.config.train.ema_stds == (0.07,)
    name = "network.blocks.0.mlp.layer1.weight"
    between, (wide, narrow) = found.tensors["ema"][name], (tensors(run, group)[name] for group in ("ema", "ema_2"))
    assert 0 < (between - narrow).norm() < (wide - narrow).norm()
    command("sample", "--weights", tmp_path / "ema", "--prompt", "a red ball", "--out", tmp_path / "clip.png")


def test_what_cannot_be_merged_or_read_is_refused_before_anything_is_written(run, adapter, tmp_path, capsys):
    out = tmp_path / "out"
    assert "--std can be" in refused(capsys, "ema", run, "--std", "0.27", "--out", out)
    assert "has no adapters of its own" in refused(capsys, "merge-lora", run, "--out", out)
    assert "is no adapter" in refused(capsys, "merge-lora", run, run, "--out", out)
    assert "has adapters already" in refused(capsys, "sample", "--weights", adapter, "--lora", adapter / "lora",
                                             "--prompt", "x", "--out", out.with_suffix(".png"))  # fmt: skip
    assert "exists already" in refused(capsys, "ema", run, "--std", "0.07", "--out", run)
    assert "exists already" in refused(capsys, "merge-lora", run, adapter / "lora", "--out", run)
    assert "stand beside trained weights" in refused(
        capsys, "train", "--preset", "micro", "--out", out, "--lora.rank", "2"
    )
    assert "its network is another" in refused(
        capsys, "train", "--preset", "micro", "--out", tmp_path / "deeper", "--initial", run, "--model.depth", "3"
    )
    assert "cosmos-ref convert" in refused(
        capsys, "train", "--preset", "micro", "--out", tmp_path / "none", "--initial", tmp_path / "nothing"
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text((adapter / "lora" / "adapter_config.json").read_text())
    names = load_file(adapter / "lora" / "adapter_model.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in names.items()}, broken / "adapter_model.safetensors")
    said = refused(capsys, "sample", "--weights", run, "--lora", broken, "--prompt", "x", "--out", tmp_path / "x.png")
    assert "is not of this network" in said and "unexpected: model.base_model" in said
    assert not any(path.exists() for path in (tmp_path / "x.png", out.with_suffix(".png")))
    assert not [*tmp_path.rglob("manifest.json")]


def test_where_adapters_have_no_place_they_are_not_left_out_in_silence(adapter, tmp_path, capsys):
    """Without them these would be the weights from before their training."""
    out = tmp_path / "out"
    for layout in ("diffusers", "nvidia", "nvidia-training"):
        said = refused(capsys, "convert", adapter, "--to", layout, "--out", out)
        assert f"cosmos-ref merge-lora {adapter} --out FOLDER" in said
    pytest.importorskip("onnx")
    said = refused(capsys, "export", "--weights", adapter, "--out", out)
    assert f"cosmos-ref merge-lora {adapter} --out FOLDER" in said
    assert not out.exists()
