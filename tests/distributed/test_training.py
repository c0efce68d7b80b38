"""However a training is spread over processes, it is the same training; and it goes on on any other number of them."""

import dataclasses
import json
import shutil
from contextlib import contextmanager

import pytest
import torch

from cosmos_ref.checkpoint import find_checkpoint, list_checkpoints, list_groups, read_checkpoint
from cosmos_ref.config import PRESETS, ParallelConfig
from cosmos_ref.interop.convert import convert
from cosmos_ref.pipelines.world_model import load_world_model
from cosmos_ref.training import data, run
from cosmos_ref.training.log import TrainingLog
from cosmos_ref.training.loop import train
from cosmos_ref.training.sources import WorldSource
from tests.ranks import run_ranks

MICRO = PRESETS["micro"]
CONFIG = dataclasses.replace(
    MICRO,
    data=dataclasses.replace(MICRO.data, image_share=0.5),
    train=dataclasses.replace(
        MICRO.train, num_steps=4, micro_batch=1, checkpoint_every=2, keep_checkpoints=2, ema_stds=(0.05, 0.1)
    ),
)
"""Videos, images, videos, images; four micro-batches each; two averages of the weights."""

LAYOUTS = {
    "2": (2, ParallelConfig()),
    "4": (4, ParallelConfig()),
    "2 of a clip": (2, ParallelConfig(cp=2)),
    "2 times 2 of a clip": (4, ParallelConfig(cp=2)),
    "4 of a clip, recomputed": (4, ParallelConfig(cp=4, recompute=True)),  # two heads: a ring of two pairs
    "2 copies of 2": (4, ParallelConfig(replicate=2)),
}
RESUMED = {
    "2 on 4": ("2", "4"),
    "2 on 2 of a clip": ("2", "2 of a clip"),
    "2 on 2": ("2", "2"),
    "2 on 1": ("2", "one"),
    "1 on 2": ("one", "2"),
    "2 times 2 of a clip on the same": ("2 times 2 of a clip", "2 times 2 of a clip"),
}

# float32 rounds at 6e-8; processes add in another order, and AdamW divides small gradients by their own size.
TOLERANCE = 1e-5


@contextmanager
def quick_start():
    """Fit the tokenizer and measure images on a few clips, as every process does at every start, and draw nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TOKENIZER_CLIPS", run.TOKENIZER_CLIPS[:32])
        patch.setattr(data, "IMAGE_CLIPS", data.IMAGE_CLIPS[:32])
        patch.setattr(TrainingLog, "draw", lambda log: None)
        yield


def train_one(out, layout=None):
    with quick_start():
        source = WorldSource(CONFIG.clip, CONFIG.data.world, CONFIG.train.seed)
        train(CONFIG, out, source, layout=layout, resume=True, progress=False)


def train_spread(outs):
    """In each of several processes: train with one layout after the other, or go on with what is in the folder."""
    from cosmos_ref.distributed.layout import ManyProcesses

    for out, parallel in outs.items():
        train_one(out, ManyProcesses(parallel, CONFIG.model.num_heads, torch.device("cpu")))


def train_all(outs):
    """Train in many folders, each with its layout; those of as many processes in the same ones."""
    for ranks in (2, 4):
        if mine := {out: LAYOUTS[name][1] for out, name in outs.items() if name != "one" and LAYOUTS[name][0] == ranks}:
            run_ranks(train_spread, ranks, mine, timeout=300)
    for out, name in outs.items():
        if name == "one":
            train_one(out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The training in one process, and in every layout."""
    out = tmp_path_factory.mktemp("runs")
    train_all({out / name: name for name in ["one", *LAYOUTS]})
    return out


@pytest.fixture(scope="module")
def resumed(runs, tmp_path_factory):
    """Trainings that were stopped after two steps and gone on with on another layout."""
    out = tmp_path_factory.mktemp("resumed")
    for name, (begun, _) in RESUMED.items():
        shutil.copytree(runs / begun, out / name)
        shutil.rmtree(find_checkpoint(out / name))
        assert find_checkpoint(out / name).name == "step_0000002"
    train_all({out / name: layout for name, (_, layout) in RESUMED.items()})
    return out


def records(run):
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "weighted_error", "grad_norm", "lr")} for line in lines]


def assert_same_training(run, expected):
    for found, wanted in zip(records(run), records(expected), strict=True):
        assert found == pytest.approx(wanted, rel=TOLERANCE)
    found, wanted = (read_checkpoint(find_checkpoint(folder)) for folder in (run, expected))
    assert found.state == wanted.state
    assert found.tensors.keys() == wanted.tensors.keys() >= {"model", "ema", "ema_2", "optimizer", "images"}
    for group, tensors in wanted.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                found.tensors[group][name], tensor, atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
            )


def assert_same_bits(run, expected):
    assert records(run) == records(expected)
    found, wanted = (read_checkpoint(find_checkpoint(folder)).tensors for folder in (run, expected))
    assert [
        f"{group}.{name}"
        for group, tensors in wanted.items()
        for name, tensor in tensors.items()
        if not torch.equal(found[group][name], tensor)
    ] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_is_the_same_however_it_is_spread(runs, layout):
    """Losses of videos and images, norms of gradients, weights, both averages, moments, statistics."""
    assert_same_training(runs / layout, runs / "one")


@pytest.mark.parametrize("name", RESUMED)
def test_a_training_goes_on_on_any_number_of_processes(runs, resumed, name):
    assert_same_training(resumed / name, runs / "one")


@pytest.mark.parametrize("name", [name for name, (begun, on) in RESUMED.items() if begun == on])
def test_on_the_same_layout_it_goes_on_to_the_bit(runs, resumed, name):
    assert_same_bits(resumed / name, runs / RESUMED[name][0])


def test_layouts_differ_in_bits(runs):
    """Else the processes would not have shared the work."""
    with pytest.raises(AssertionError):
        assert_same_bits(runs / "4", runs / "one")


def test_what_is_spread_is_written_spread(runs):
    (*_, last) = checkpoints = list_checkpoints(runs / "4")
    assert [path.name for path in checkpoints] == ["step_0000002", "step_0000004"]
    for group in ("model", "ema", "ema_2", "optimizer"):
        assert len(list((last / group).iterdir())) == 4
        assert not (last / f"{group}.safetensors").exists()
    assert {path.stem for path in last.glob("*.safetensors")} == {"tokenizer", "images"}


def test_what_many_processes_trained_is_sampled_from_and_made_one_file(runs, tmp_path):
    trained = find_checkpoint(runs / "2 times 2 of a clip")
    averages = read_checkpoint(trained, ["ema"]).tensors["ema"]
    model = load_world_model(runs / "2 times 2 of a clip")
    assert all(torch.equal(tensor, averages[name]) for name, tensor in model.denoiser.state_dict().items())
    convert(runs / "2 times 2 of a clip", tmp_path / "one", "ours")
    for group, tensors in read_checkpoint(tmp_path / "one").tensors.items():
        expected = read_checkpoint(trained, [group]).tensors[group]
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
        assert tensors.keys() == expected.keys()
    assert {*list_groups(tmp_path / "one"), "optimizer"} == set(list_groups(trained))
    assert all((tmp_path / "one" / f"{group}.safetensors").is_file() for group in list_groups(tmp_path / "one"))
