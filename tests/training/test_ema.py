"""Averages of weights: the one that is followed, and those that are put together afterwards."""

import dataclasses

import pytest
import torch
from torch import nn

from cosmos_ref.checkpoint import read_checkpoint, save_checkpoint
from cosmos_ref.config import PRESETS
from cosmos_ref.errors import UserError
from cosmos_ref.training.ema import PowerEMA
from cosmos_ref.training.posthoc import combine, find_snapshots
from tests.strategies import normal

STDS = (0.1, 0.05, 0.025)
MICRO = PRESETS["micro"]
CONFIG = dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, ema_stds=STDS))


class Wanderer(nn.Module):
    """Weights on a random walk, one that stays where it is, and one that grows with the time."""

    def __init__(self):
        super().__init__()
        self.walk = nn.Parameter(torch.zeros(300))
        self.still = nn.Parameter(torch.full((2,), 0.3))
        self.clock = nn.Parameter(torch.zeros(1))


def test_what_is_not_trained_is_its_own_average_and_takes_no_memory_of_its_own():
    module = Wanderer()
    module.still.requires_grad_(False)
    average = PowerEMA(module, 0.1)
    assert average.weights["still"].data_ptr() == module.still.data_ptr()
    assert average.weights["walk"].data_ptr() != module.walk.data_ptr()
    average.update(module, 0)
    assert torch.equal(average.weights["still"], module.still)


@pytest.fixture(scope="module")
def wandered(tmp_path_factory):
    """A run of 200 updates with checkpoints at 150 and 200, and averages of other widths that it did not keep."""
    run = tmp_path_factory.mktemp("wandered")
    module = Wanderer()
    steps = normal(7, 200, 300).float()
    kept = {std: PowerEMA(module, std) for std in STDS}
    others = {std: PowerEMA(module, std) for std in (0.07, 0.035)}
    for step in range(200):
        with torch.no_grad():
            module.walk += steps[step]
            module.clock += 1
        for std_ema in (*kept.values(), *others.values()):
            std_ema.update(module, step)
        if step + 1 in (150, 200):
            groups = {name: kept[std].weights for name, std in zip(("ema", "ema_2", "ema_3"), STDS, strict=True)}
            folder = run / "checkpoints" / f"step_{step + 1:07d}"
            save_checkpoint(folder, CONFIG, groups | {"tokenizer": {"mean": torch.ones(1)}}, {"step": step + 1})
    return run, {std: average.weights for std, average in others.items()}


def test_every_average_of_every_checkpoint_is_found_with_its_width(wandered):
    found = [(snapshot.step, snapshot.group, snapshot.std) for snapshot in find_snapshots(wandered[0])]
    groups = [("ema", 0.1), ("ema_2", 0.05), ("ema_3", 0.025)]
    assert found == [(step, *group) for step in (150, 200) for group in groups]


@pytest.mark.parametrize("std", STDS)
def test_a_width_that_was_kept_is_taken_from_the_last_checkpoint_as_it_is(wandered, std):
    combination = combine(find_snapshots(wandered[0]), std)
    group = ("ema", "ema_2", "ema_3")[STDS.index(std)]
    expected = read_checkpoint(wandered[0] / "checkpoints" / "step_0000200", [group]).tensors[group]
    for name, tensor in combination.tensors().items():  # coefficients of 1e-10 beside 1, and float32
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-5)
    assert combination.misfit < 1e-6


@pytest.mark.parametrize("std", [0.07, 0.035])
def test_a_width_that_was_not_kept_comes_out_as_if_it_had_been_followed(wandered, std):
    run, followed = wandered
    snapshots = find_snapshots(run)
    found = combine(snapshots, std).tensors()["walk"]
    wanted = followed[std]["walk"]
    kept = [read_checkpoint(s.folder, [s.group]).tensors[s.group]["walk"] for s in snapshots]
    assert (found - wanted).norm() < 0.2 * min((other - wanted).norm() for other in kept)


def test_a_weight_that_never_moved_stays_where_it_is(wandered):
    """To float32 rounding of six terms of up to twice its size; without the division by the sum it is 0.5 % off."""
    for std in (0.07, 0.12, 0.03):
        found = combine(find_snapshots(wandered[0]), std).tensors()["still"]
        torch.testing.assert_close(found, torch.full((2,), 0.3), rtol=1e-6, atol=0)


def test_wider_averages_look_further_back(wandered):
    clocks = [combine(find_snapshots(wandered[0]), std).tensors()["clock"].item() for std in (0.11, 0.08, 0.06, 0.03)]
    assert clocks == sorted(clocks) and clocks[-1] - clocks[0] > 10


def test_a_width_out_of_reach_is_refused_with_what_can_be_reached(wandered):
    snapshots = find_snapshots(wandered[0])
    with pytest.raises(UserError, match=r"width 0.25 .*--std can be 0.01\d to 0.1\d") as refusal:
        combine(snapshots, 0.25)
    low, high = str(refusal.value).split("--std can be ")[1].split(".  ")[0].split(" to ", 1)
    for std in (float(low), float(high.split(". ")[0])):
        combine(snapshots, std)
    with pytest.raises(UserError, match="between 0 and"):
        combine(snapshots, 0.3)


def test_one_checkpoint_fits_worse_than_two(wandered):
    folder = wandered[0] / "checkpoints" / "step_0000200"
    for std in (0.035, 0.07, 0.11):
        alone, both = (combine(find_snapshots(path), std).misfit for path in (folder, wandered[0]))
        assert both < 0.9 * alone


def test_a_checkpoint_without_averages_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", CONFIG, {"model": {"w": torch.ones(1)}}, {"step": 3})
    with pytest.raises(UserError, match="holds no averages"):
        find_snapshots(tmp_path / "c")
