"""Adapters that are trained by several processes are those of one, and go on in any number of them."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from cosmos_ref.adapter import WEIGHTS
from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint, save_checkpoint
from cosmos_ref.config import PRESETS, LoRAConfig, ParallelConfig
from cosmos_ref.model.initialization import new_model
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.loop import train
from cosmos_ref.training.sources import WorldSource
from tests.distributed.test_training import quick_start
from tests.ranks import run_ranks

MICRO = PRESETS["micro"]
SHORT = dataclasses.replace(MICRO.train, num_steps=4, micro_batch=1, checkpoint_every=2, keep_checkpoints=2)
# Beside B = 0 the first gradients are tiny, and AdamW divides them by their size, their rounding too: this epsilon is
# larger than they are.
SHORT = dataclasses.replace(SHORT, eps=1e-2)
CONFIG = dataclasses.replace(MICRO, train=SHORT, lora=LoRAConfig(rank=2))


def train_here(out, base, parallel=None):
    from cosmos_ref.distributed.layout import ManyProcesses

    layout = None if parallel is None else ManyProcesses(parallel, CONFIG.model.num_heads, torch.device("cpu"))
    with quick_start():
        source = WorldSource(CONFIG.clip, CONFIG.data.world, CONFIG.train.seed)
        train(CONFIG, out, source, layout=layout, initial=base, resume=True, progress=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training in one process, in two, and in two that share each clip; all from the same weights."""
    out = tmp_path_factory.mktemp("adapters")
    denoiser, uncertainty = new_model(MICRO, torch.Generator().manual_seed(5))
    tokenizer = HaarPCATokenizer.fit(MICRO.tokenizer, WorldSource(MICRO.clip, "mixed", 0).clips(range(8)).video)
    groups = {"model": denoiser, "uncertainty": uncertainty, "tokenizer": tokenizer}
    base = save_checkpoint(
        out / "base", MICRO, {name: module.state_dict() for name, module in groups.items()}, {"step": 1}
    )
    train_here(out / "one", base)
    run_ranks(train_both, 2, out, base, timeout=300)
    return out


def train_both(out, base):
    train_here(out / "two", base, ParallelConfig())
    train_here(out / "two of a clip", base, ParallelConfig(cp=2))


@pytest.mark.parametrize("layout", ["two", "two of a clip"])
def test_adapters_are_the_same_however_their_training_is_spread(runs, layout):
    """In float32; AdamW makes the rounding of sums in another order at most a hundredth of what B has become."""
    found, wanted = (read_checkpoint(find_checkpoint(runs / name)) for name in (layout, "one"))
    for group, tensors in wanted.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                found.tensors[group][name], tensor, rtol=1e-5, atol=5e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("layout", ["one", "two", "two of a clip"])
def test_each_leaves_its_adapter_whole_and_the_weights_as_they_were(runs, layout):
    base = read_checkpoint(runs / "base", ["model"]).tensors["model"]
    last = read_checkpoint(find_checkpoint(runs / layout), ["model", "ema"]).tensors
    assert all(torch.equal(last["model"][name], tensor) for name, tensor in base.items())
    adapter = load_file(runs / layout / "lora" / WEIGHTS)
    assert all(tensor.any() for tensor in adapter.values())
    for name, tensor in last["ema"].items():
        if "lora_" in name:
            assert torch.equal(adapter[f"base_model.model.{name.removeprefix('network.')}.weight"], tensor)
