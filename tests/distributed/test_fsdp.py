from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from cosmos_ref.config import ParallelConfig, preset
from cosmos_ref.distributed.account import SentBytes
from cosmos_ref.distributed.context_parallel import AllToAll, ContextParallel
from cosmos_ref.distributed.layout import ManyProcesses, joined
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import build_denoiser, new_model
from tests.distributed.cases import (
    CPU,
    Case,
    check,
    gradients_of,
    layout_of,
    loss_of,
    model_of,
    modules_of,
    my_share,
    placed,
    samples_of,
)
from tests.ranks import run_ranks

EXACT = 1e-12
"""Float64 rounding: sums of some hundred numbers, in another order."""

LAYOUTS = {
    2: [
        Case(),
        Case(recompute=True, size="odd", video2world=False),
        Case(cp=2, recompute=True, size="odd"),
        Case(cp=2, ulysses=1, size="image", video2world=False),
        Case(cp=2, images=True, size="image", recompute=True),
        Case(cp=2, lora_rank=2, size="odd"),
    ],
    4: [
        Case(recompute=True),
        Case(replicate=2, size="odd"),
        Case(cp=2, size="odd"),
        Case(replicate=2, cp=2, ulysses=1, recompute=True),
        Case(cp=4, size="odd", recompute=True),
        Case(cp=4, size="few", video2world=False),
        Case(cp=4, heads=2, size="few", recompute=True),
        Case(cp=4, heads=5, size="image"),
    ],
}
"""Weights spread, in one replica or two; a clip in 1, 2, 4 slices by Ulysses, ring and both; all sizes, all options."""


@pytest.mark.parametrize("ranks", LAYOUTS)
def test_loss_and_every_gradient_are_those_of_one_process(ranks):
    run_ranks(check, ranks, LAYOUTS[ranks], torch.float64, EXACT)


def test_in_float32_they_agree_as_far_as_float32_goes():
    """1e-5 of each tensor's largest gradient: a hundred roundings."""
    run_ranks(check, 4, [Case(cp=2, recompute=True), Case(cp=4, ulysses=1, size="odd")], torch.float32, 1e-5)


def test_in_bfloat16_they_agree_as_far_as_bfloat16_goes():
    """Rounding to 8 bits in some ten places a block moves a gradient by a few hundredths of its tensor's largest."""
    run_ranks(check, 2, [Case(), Case(cp=2, ulysses=1)], torch.float32, 0.1, "bf16")


# --- what a loss alone would not show


class OwnSlice(torch.autograd.Function):
    """An exchange whose backward pass keeps what this process made of its own slice, and forgets the others'."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return AllToAll.apply(x, group)

    @staticmethod
    def backward(ctx, grad):
        mine = torch.zeros_like(grad)
        mine[ctx.group.rank()] = grad[ctx.group.rank()]
        return mine, None


def forgetful_gather(self, x, length):
    slices = OwnSlice.apply(x.expand(self.group.size(), *x.shape), self.group)
    return slices.movedim(0, 1).flatten(1, 2)[:, :length]


def impostors_are_caught_by_gradients():
    case = Case(cp=2)
    config, samples = model_of(case), samples_of(case, torch.float64)
    alone = modules_of(config, torch.float64)
    expected, theirs = loss_of(alone, samples), gradients_of(alone)

    def off(share):
        spread = placed(config, alone, layout)
        loss = layout.mean(loss_of(spread, share))
        mine = gradients_of(spread, layout)
        errors = [((mine[name] - g).abs().max() / g.abs().max().clamp(min=1e-3)).item() for name, g in theirs.items()]
        return (loss - expected).abs().item(), max(errors)

    layout = layout_of(case)
    share = my_share(samples, layout)
    assert max(off(share)) < EXACT
    with mock.patch.object(ContextParallel, "gather", forgetful_gather):
        in_loss, in_gradient = off(share)
        assert in_loss < EXACT and in_gradient > 0.4  # half of it is missing
    noise = torch.randn(share["noise"].shape, generator=torch.Generator().manual_seed(dist.get_rank()))
    assert off(share | {"noise": noise.double()})[1] > 0.01


def test_a_gather_that_forgets_the_others_has_the_right_loss_and_wrong_gradients():
    run_ranks(impostors_are_caught_by_gradients, 2)


# --- weights


def weights_are_those_of_one_process(expected):
    for parallel in (ParallelConfig(), ParallelConfig(replicate=2), ParallelConfig(cp=4, recompute=True)):
        config = preset("micro")
        layout = ManyProcesses(parallel, config.model.num_heads, CPU)
        modules = new_model(config, torch.Generator().manual_seed(3), layout.place, layout.write)
        for module, values in zip(modules, expected, strict=True):
            found = {name: layout.whole(tensor) for name, tensor in module.state_dict().items()}
            assert list(found) == list(values), "names have changed"
            assert all(torch.equal(found[name], values[name]) for name in values)
        held = sum(p.to_local().numel() for p in modules[0].parameters())
        total = sum(p.numel() for p in modules[0].parameters())
        assert held < 1.1 * total / (4 // parallel.replicate)


def test_a_new_model_has_the_same_weights_in_every_layout():
    expected = [m.state_dict() for m in new_model(preset("micro"), torch.Generator().manual_seed(3))]
    run_ranks(weights_are_those_of_one_process, 4, expected)


def weights_are_gathered_once_a_pass():
    case = Case(recompute=True)
    config, samples = model_of(case), samples_of(case, torch.float32)
    layout = layout_of(case)
    spread = placed(config, modules_of(config, torch.float32), layout)
    share = my_share(samples, layout)
    for _ in range(2):  # the first call also sets up
        with SentBytes() as sent:
            loss_of(spread, share)
    # Forward: two blocks, the rest, u. Backward: the first block again; the others have theirs still.
    assert sent.calls == {"all_gather": 5, "reduce_scatter": 4}
    with torch.no_grad(), SentBytes() as sent:
        denoiser, sigma = spread["denoiser"], share["sigma"]
        prepared = denoiser.prepare(share["x0"], share["text_embeddings"], share["fps"])
        modulations = denoiser.modulations(sigma)
        rest = {name: share[name] for name in ("padding_mask", "frame_mask", "given_latents", "augment_sigma")}
        denoiser.run(share["x0"], sigma, modulations, prepared, **rest)
        denoiser.run(share["x0"], sigma, modulations, prepared, **rest)
    # The rest and the last block stay; the first block is gathered for what is prepared, and once a call.
    assert sent.calls == {"all_gather": 2 + 4}


def test_weights_are_gathered_once_a_pass():
    run_ranks(weights_are_gathered_once_a_pass, 2)


def compiled_blocks_have_the_same_gradients():
    with mock.patch.object(torch, "compile", lambda f: compile_(f, backend=lambda graph, _: graph.forward)):
        check([Case(cp=2, depth=1, recompute=True, compile=True)], torch.float64, EXACT)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


compile_ = torch.compile


def test_compiled_blocks_have_the_same_gradients():
    run_ranks(compiled_blocks_have_the_same_gradients, 2)


@pytest.mark.parametrize(("name", "world", "cp"), [("7b", 32, 8), ("14b", 64, 8), ("14b", 64, 16)])
def test_a_process_holds_its_share_of_the_released_models(name, world, cp):
    """Of 64 processes that are not there. What does not divide evenly makes less than a hundredth."""
    dist.init_process_group("fake", rank=world // 2, world_size=world, store=FakeStore())
    try:
        config = preset(name)
        denoiser = build_denoiser(config)
        total = sum(p.numel() for p in denoiser.parameters())
        layout = ManyProcesses(ParallelConfig(cp=cp, recompute=True), config.model.num_heads, CPU, "bf16")
        layout.place(denoiser)
        held = sum(p.to_local().numel() for p in denoiser.parameters())
    finally:
        dist.destroy_process_group()
    assert held == pytest.approx(total / world, rel=0.01)


# --- errors


def test_a_process_that_torchrun_did_not_start_cannot_join(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"RANK.* not set: start many processes with torchrun"), joined("cpu"):
        pass


def everyone_hears_of_errors():
    layout, rank = ManyProcesses(ParallelConfig(), 2, CPU), dist.get_rank()
    layout.agree(None)
    for error, kind, message in (
        (UserError("no such folder: x"), UserError, "process 1: no such folder: x"),
        (OSError("disk full " + 1000 * "x"), RuntimeError, r"process 1: OSError: disk full x+\.\.\."),
    ):
        with pytest.raises(type(error) if rank == 1 else kind, match=None if rank == 1 else message) as caught:
            layout.agree(error if rank == 1 else None)
        assert (caught.value is error) == (rank == 1) and (rank == 1 or len(str(caught.value)) < 600)


def test_an_error_in_one_process_is_an_error_in_all():
    run_ranks(everyone_hears_of_errors, 2)


def what_the_first_has_measured():
    layout = ManyProcesses(ParallelConfig(), 2, CPU)
    mine = torch.tensor([float(layout.rank), 1.0])
    assert layout.first(mine).tolist() == [0.0, 1.0]
    assert mine[0] == layout.rank, "the argument stays"


def test_all_processes_go_on_with_what_the_first_has_measured():
    run_ranks(what_the_first_has_measured, 2)
