"""The plan of a training against what is counted: on fake processes with the real shapes, and on four real ones."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from cosmos_ref.config import PRESETS, Config, ParallelConfig, latent_shape
from cosmos_ref.distributed.account import KeptBytes, SentBytes
from cosmos_ref.distributed.layout import ManyProcesses
from cosmos_ref.distributed.plan import Machine, Plan, changes, clip_of, plan
from cosmos_ref.errors import UserError
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty
from cosmos_ref.model.sizes import flops
from tests.ranks import run_ranks
from tests.tokenizer.live_bytes import LiveBytes

CPU = torch.device("cpu")
H100 = Machine()


def shallow(name: str, depth: int = 2) -> Config:
    """A large model with few blocks; everything grows evenly with their number."""
    config = PRESETS[name]
    return replace(config, model=replace(config.model, depth=depth))


@contextmanager
def fake_processes(number: int, rank: int = 0) -> Iterator[None]:
    """Within it this process is one of so many, the others of which are not there."""
    dist.init_process_group("fake", rank=rank, world_size=number, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def placed(config: Config, parallel: ParallelConfig) -> tuple[Denoiser, nn.Module]:
    """Denoiser and u(sigma) on the meta device, in a layout."""
    layout = ManyProcesses(parallel, config.model.num_heads, CPU, config.train.precision)
    denoiser, uncertainty = build_denoiser(config), build_uncertainty(config)
    layout.place(denoiser)
    layout.place(uncertainty)
    return denoiser, uncertainty


def arguments(config: Config, batch: int) -> list[Tensor]:
    """What the denoiser is called with."""
    C, T, H, W = latent_shape(config, config.clip)
    text = torch.ones(batch, config.text.length, config.text.width)
    found = [torch.ones(batch, C, T, H, W), torch.ones(batch), text, torch.full((batch,), 24.0)]
    found.append(torch.zeros(batch, 1, H, W))
    if config.model.video2world:
        found += [torch.zeros(batch, 1, T, 1, 1), torch.ones(batch, C, T, H, W), torch.ones(batch)]
    return found


def counted(config: Config, parallel: ParallelConfig, batch: int = 1, fake: bool = True) -> tuple[Counter, int]:
    """Bytes sent by kind, and bytes kept for the backward pass, of one micro-batch in this process."""
    denoiser, uncertainty = placed(config, parallel)
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        for module in (denoiser, uncertainty):
            module.to_empty(device=CPU)
            for parameter in module.parameters():
                nn.init.ones_(parameter)
        given = arguments(config, batch)
        with SentBytes() as sent:
            with KeptBytes(denoiser) as kept:
                D = denoiser(*given)
            (D.square().mean() + uncertainty(given[1]).mean()).backward()
    return sent.bytes, kept.total


def planned(asked: Plan, batch: int) -> tuple[Counter, int]:
    """The same from the formulas."""
    sent = asked.sent_for(batch)
    kinds = {
        "all_gather": sent["weights"],
        "reduce_scatter": sent["gradients"],
        "all_reduce": sent["replicas"],
        "all_to_all": sent["heads"] + sent["tokens"],
        "send": sent["ring"],
    }
    kept = asked.activations(asked.parallel.recompute)
    return Counter({kind: sent for kind, sent in kinds.items() if sent}), kept["blocks"] + kept["around the blocks"]


def on(config: Config, parallel: ParallelConfig, batch: int = 1) -> Plan:
    """The plan with one micro-batch of so many clips in each group."""
    return plan(config, parallel, H100, batch_size=batch * parallel.world // parallel.cp, micro_batch=batch)


# --- what is exact


@pytest.mark.parametrize(
    ("name", "parallel", "batch"),
    [
        ("7b", ParallelConfig(world=32), 1),
        ("7b", ParallelConfig(world=8, cp=8, recompute=True), 1),
        ("7b", ParallelConfig(world=16, cp=4, replicate=2), 2),
        ("7b-video2world", ParallelConfig(world=8, cp=4, ulysses=1), 1),
        ("14b", ParallelConfig(world=64, cp=16, recompute=True), 1),  # 40 heads: a ring of 2 groups of 8
        ("tiny", ParallelConfig(world=8, cp=2), 3),  # float32
    ],
    ids=["sharded", "ulysses", "replicas", "ring", "ring of ulysses", "float32"],
)
def test_what_a_process_sends_and_keeps_is_what_the_plan_says_to_the_byte(name, parallel, batch):
    """Two blocks of the real models at 720p, forward and backward."""
    config = shallow(name)
    with fake_processes(parallel.world):
        found = counted(config, parallel, batch)
    assert found == planned(on(config, parallel, batch), batch)


@pytest.mark.parametrize("rank", [0, 31])
def test_a_process_of_32_holds_a_32nd_of_7b(rank):
    with fake_processes(32, rank):
        denoiser, _ = placed(PRESETS["7b"], ParallelConfig(world=32))
    held = sum(p.to_local().numel() for p in denoiser.parameters())
    assert held == pytest.approx(7_236_192_256 / 32, rel=0.001)
    if rank == 0:  # which has rows that the last processes lack
        assert held == plan(PRESETS["7b"], ParallelConfig(world=32), H100).local_parameters


def test_a_process_of_64_holds_a_64th_of_14b():
    with fake_processes(64):
        denoiser, _ = placed(PRESETS["14b"], ParallelConfig(world=64, cp=8))
    held = sum(p.to_local().numel() for p in denoiser.parameters())
    assert held == plan(PRESETS["14b"], ParallelConfig(world=64, cp=8), H100).local_parameters
    assert held == pytest.approx(14_267_149_312 / 64, rel=0.001)


def test_each_of_8_processes_does_an_eighth_of_the_arithmetic():
    """Counted with attention as matrix products: PyTorch's counter does not see into the CPU's fused kernel."""
    config, parallel = shallow("7b", depth=1), ParallelConfig(world=8, cp=8)
    with fake_processes(8):
        denoiser, _ = placed(config, parallel)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            denoiser.to_empty(device=CPU)
            with FlopCounterMode(display=False) as counter:
                denoiser(*arguments(config, 1))
    work = flops(config, config.clip)
    everywhere = 4 * config.text.length * config.text.width * config.model.width  # keys and values of the text
    everywhere += work["noise embedding"] + work["AdaLN"]
    assert counter.get_total_flops() == everywhere + (sum(work.values()) - everywhere) // 8


MICRO = ParallelConfig(world=4, cp=2, recompute=True), ParallelConfig(world=4, cp=2, ulysses=1, replicate=2)


@pytest.mark.parametrize("parallel", MICRO, ids=["ulysses", "ring and replicas"])
def test_four_real_processes_send_what_fake_ones_do(parallel):
    with fake_processes(4):
        expected = counted(PRESETS["micro"], parallel)
    assert expected == planned(on(PRESETS["micro"], parallel), 1)
    run_ranks(_sends, 4, parallel, expected)


def _sends(parallel: ParallelConfig, expected: tuple[Counter, int]) -> None:
    assert counted(PRESETS["micro"], parallel, fake=False) == expected


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_alive_at_once_is_what_the_plan_says(recompute):
    """All tensors that ever are at the same time, of two blocks of 7B, but for weights and their gradients. The plan is
    no lower, and by no more than 3 % higher: with recomputation the last block's backward pass needs less beside it.
    """
    config, parallel = shallow("7b"), ParallelConfig(world=1, recompute=recompute)
    with fake_processes(1):
        layout = ManyProcesses(parallel, config.model.num_heads, CPU, "fp32", spread_weights=False)
        denoiser = build_denoiser(config)
        layout.place(denoiser)
        with FakeTensorMode(allow_non_fake_inputs=True):
            denoiser.to_empty(device=CPU)
            for parameter in denoiser.parameters():
                parameter.data = torch.empty(parameter.shape, dtype=torch.bfloat16)
                parameter.grad = torch.empty(parameter.shape, dtype=torch.bfloat16)
            with LiveBytes() as live:
                denoiser(*arguments(config, 1)).square().mean().backward()
    expected = sum(on(config, parallel).activations(recompute).values())
    assert 0.97 * expected < live.peak <= expected


# --- what follows from it


def test_the_figures_of_the_paper_come_out():
    """14B: 20 bytes a parameter, 4.46 GB on each of 64; activations of 311 GB, 39 GB on each of 8. 7B: 194 GB."""
    large = plan(PRESETS["14b"], ParallelConfig(world=64, cp=8), H100)
    assert (large.paper_state, large.paper_activations) == (285_342_986_240, 311_427_072_000)
    assert large.paper_state / large.parameters == 20
    assert large.paper_state / 64 < 4.5e9 and 38e9 < large.paper_activations / 8 < 40e9
    small = plan(PRESETS["7b"], ParallelConfig(world=32), H100)
    assert round(small.paper_activations / 1e9) == 194
    assert round(small.forward_flops / small.clips / 1e15, 1) == 2.2


def test_a_training_with_one_average_holds_the_20_bytes_of_the_paper():
    """But for u(sigma), whose one row each process fills up, and which has no average."""
    config = replace(PRESETS["7b"], train=replace(PRESETS["7b"].train, ema_stds=(0.1,)))
    one = plan(config, ParallelConfig(), H100)
    assert sum(one.state().values()) == 20 * one.parameters + 16 * 128


def test_tokens_of_the_papers_stages():
    config = PRESETS["14b"]
    stages = [clip_of(config, 121, "720"), clip_of(config, 57, "512x640")]
    plans = [plan(replace(config, clip=clip), ParallelConfig(world=8, cp=8), H100) for clip in stages]
    assert [(p.tokens, p.local_tokens) for p in plans] == [(56_320, 7040), (10_240, 1280)]


def test_a_resolution_is_the_wide_size_of_its_bucket():
    clip = clip_of(PRESETS["7b"], None, "720")
    assert (clip.frames, clip.height, clip.width) == (121, 704, 1280)


@pytest.mark.parametrize(
    ("name", "parallel", "memory"),
    [
        ("14b", ParallelConfig(world=64, cp=8), 80.0),
        ("14b", ParallelConfig(world=4), 24.0),
        ("7b", ParallelConfig(), 141.0),
        ("7b", ParallelConfig(world=32, replicate=4, recompute=True), 48.0),
    ],
    ids=["64 x 80", "4 x 24", "one H200", "replicas"],
)
def test_each_change_that_is_named_fits_and_the_next_smaller_one_does_not(name, parallel, memory):
    asked = plan(PRESETS[name], parallel, Machine(memory=memory))
    assert not asked.fits
    found = changes(asked)
    assert found
    for options, changed in found:
        layout = {key: options[key] for key in ("cp", "world", "replicate") if key in options}
        again = replace(parallel, world=asked.split.world, recompute=parallel.recompute or "recompute" in options)
        clip = replace(asked.clip, frames=options.get("frames", asked.clip.frames))
        config = replace(PRESETS[name], clip=clip)
        rebuilt = plan(config, replace(again, **layout), asked.machine, micro_batch=options.get("micro_batch", 1))
        assert rebuilt.fits and rebuilt.memory(rebuilt.parallel.recompute) == changed.memory(changed.parallel.recompute)
        if "frames" in options:
            longer = replace(config, clip=replace(clip, frames=clip.frames + 8))
            assert not plan(longer, replace(again, **layout), asked.machine, micro_batch=1).fits
        if "world" in options and len(options) <= 2:
            fewer = replace(again, **layout | {"world": options["world"] // 2})
            assert not plan(config, fewer, asked.machine, micro_batch=1).fits


def test_a_plan_that_fits_after_recomputation_says_so_first():
    (options, _), *_ = changes(plan(PRESETS["14b"], ParallelConfig(world=64, cp=8), H100))
    assert options == {"recompute": 1}


def test_more_micro_batches_send_more_and_keep_the_same():
    once, twice = (
        plan(PRESETS["7b"], ParallelConfig(world=8, cp=2), H100, batch_size=clips, micro_batch=1) for clips in (4, 8)
    )
    assert {kind: 2 * sent for kind, sent in once.sent().items()} == twice.sent()
    assert once.memory(False) == twice.memory(False)
    assert twice.compute_seconds == pytest.approx(2 * once.compute_seconds)


def test_a_step_takes_no_less_than_its_arithmetic_and_no_more_than_everything_in_turn():
    for cp, network in ((1, 50.0), (8, 50.0), (16, 1.0), (64, 0.1)):
        p = plan(PRESETS["14b"], ParallelConfig(world=64, cp=cp), Machine(network=network))
        assert p.compute_seconds <= p.seconds <= p.most_seconds
        assert p.utilization(p.compute_seconds) == pytest.approx(0.5)  # what was assumed; the rest is lost on the way


def test_only_what_stays_among_neighbours_takes_the_fast_links():
    p = plan(PRESETS["14b"], ParallelConfig(world=64, cp=16), H100)  # 8 exchange heads, in a ring of 2
    assert {kind: p.link(kind) for kind in ("heads", "ring", "weights")} == {"heads": 450, "ring": 50, "weights": 50}


@pytest.mark.parametrize(
    ("parallel", "options", "words"),
    [
        (ParallelConfig(world=64, cp=3), {}, "--parallel.cp 3 must divide"),
        (ParallelConfig(world=64, cp=16, ulysses=16), {}, "40 heads: 1, 2, 4, 8"),
        (ParallelConfig(world=-1), {}, "world is -1"),
        (ParallelConfig(world=4), {"batch_size": 3}, "train.batch_size 3"),
        (ParallelConfig(), {"batch_size": 3, "micro_batch": 2}, "multiple of --micro-batch 2"),
        (ParallelConfig(), {"batch_size": 0}, "at least 1"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_what_can(parallel, options, words):
    with pytest.raises(UserError, match=words):
        plan(PRESETS["14b"], parallel, H100, **options)


@pytest.mark.parametrize("resolution", ["721", "big", "704x", "-8x8"])
def test_a_resolution_that_is_none_is_refused(resolution):
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        clip_of(PRESETS["7b"], None, resolution)


def test_a_machine_without_memory_is_refused():
    with pytest.raises(UserError, match="memory is 0"):
        Machine(memory=0)
    with pytest.raises(UserError, match="at most 1"):
        Machine(efficiency=1.5)
