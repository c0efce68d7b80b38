import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.blocks.causal_conv import Past
from cosmos_ref.config import TOKENIZERS
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.pieces import decode_in_pieces, encode_in_pieces
from cosmos_ref.tokenizer.plan import HEAP_BYTES, decoder_stages, encoder_stages, plan_tokenizer, working_bytes
from tests.tokenizer.live_bytes import LiveBytes
from tests.tokenizer.small import SMALL

CONFIGS = {**SMALL, "full CV8x8x8": TOKENIZERS["CV8x8x8"]}
budgets = st.floats(1.5, 40).map(lambda gib: gib * 2**30)


def silent(config):
    """A tokenizer of zeros: how much memory it takes does not depend on what it says."""
    with torch.device("meta"):
        tokenizer = ContinuousTokenizer(config)
    return tokenizer.to_empty(device="cpu").apply(lambda module: [p.data.zero_() for p in module.parameters(False)])


def budget_for(config, frames, height, width, chunk, tile):
    """The least that a plan of these pieces asks for."""
    free = plan_tokenizer(config, frames, height, width, float("inf"))
    latent_frames = 1 + (frames - 1) // config.temporal_factor
    grid = (latent_frames, height // 8, width // 8)
    return free.weight_bytes + working_bytes(config, grid, chunk, (tile[0] // 8, tile[1] // 8), torch.float32)


@pytest.mark.parametrize(
    ("name", "size", "chunk", "tile"),
    [
        *((name, (64, 96), chunk, (64, 96)) for name in SMALL for chunk in (3, 2, 1)),
        *((name, (64, 96), 1, (64, 64)) for name in SMALL),
        *(("full CV8x8x8", (32, 48), chunk, (32, 48)) for chunk in (3, 1)),
    ],
)
@torch.no_grad()
def test_a_run_stays_within_its_plan_and_not_far_below(name, size, chunk, tile):
    """What is counted are tensors; convolutions take more inside, which the plan has room for: see the benchmark."""
    config = CONFIGS[name]
    tokenizer = silent(config)
    video = torch.zeros(1, 3, 1 + 2 * config.temporal_factor, *size)
    plan = plan_tokenizer(config, *video.shape[2:], budget_for(config, *video.shape[2:], chunk, tile))
    assert (plan.latent_frames, plan.tile_height, plan.tile_width) == (chunk, *tile)
    with LiveBytes() as encoding:
        latents = encode_in_pieces(tokenizer, video, plan)
    with LiveBytes() as decoding:
        decode_in_pieces(tokenizer, latents, plan)
    most = max(encoding.peak + video.nbytes, decoding.peak + latents.nbytes)
    tensors = plan.working_bytes - HEAP_BYTES
    assert tensors / 2.5 < most < tensors


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_past_holds_what_the_plan_says(name):
    """To the byte, but for what is cut off and not kept."""
    config = CONFIGS[name]
    tokenizer, past = silent(config), (Past(), Past())
    latents = tokenizer.encode(torch.zeros(1, 3, 1 + config.temporal_factor, 16, 24), past[0])
    tokenizer.decode(latents, past[1])
    for kept, stages in zip(past, (encoder_stages(config), decoder_stages(config)), strict=True):
        attention = (tokenizer.encoder if kept is past[0] else tokenizer.decoder).mid.temporal_attention
        width = attention.to_k.out_channels
        expected = 4 * 6 * (sum(stage.kept * stage.pixels for stage in stages) + 2 * width * 2)
        assert sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) == expected


def pieces_within(budget):
    """Latent frames at once and pixels of a tile; none where even the smallest pieces do not fit."""
    try:
        plan = plan_tokenizer(TOKENIZERS["CV8x8x8"], 57, 352, 640, budget)
    except UserError:
        return 0, 0
    return plan.latent_frames, plan.tile_height * plan.tile_width


@settings(max_examples=12)
@given(st.tuples(st.floats(0.5, 40), st.floats(0.5, 40)).map(sorted))
def test_less_memory_never_gives_larger_pieces(gib):
    (less_time, less_space), (more_time, more_space) = (pieces_within(budget * 2**30) for budget in gib)
    assert less_time <= more_time and less_space <= more_space


@settings(max_examples=12)
@given(budget=budgets)
def test_a_plan_fits_its_budget_and_cuts_time_before_space(budget):
    plan = plan_tokenizer(TOKENIZERS["CV8x8x8"], 57, 352, 640, budget)
    assert plan.peak_bytes <= budget
    if (plan.tile_height, plan.tile_width) != (352, 640):
        assert plan.latent_frames == 1


def test_a_clip_that_fits_is_left_whole():
    plan = plan_tokenizer(TOKENIZERS["CV8x8x8"], 121, 704, 1280, float("inf"))
    assert (plan.latent_frames, plan.tile_height, plan.tile_width) == (16, 704, 1280)
    again = plan_tokenizer(TOKENIZERS["CV8x8x8"], 121, 704, 1280, plan.peak_bytes)
    assert again == plan
    assert plan_tokenizer(TOKENIZERS["CV8x8x8"], 121, 704, 1280, plan.peak_bytes - 1).latent_frames < 16


def test_half_the_precision_takes_half_the_memory_but_for_clip_and_heap():
    single, half = (
        plan_tokenizer(TOKENIZERS["CV8x8x8"], 9, 352, 640, 1e15, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    other = HEAP_BYTES + 4 * (3 * 9 * 352 * 640 + 16 * 2 * 44 * 80)
    assert half.weight_bytes * 2 == single.weight_bytes == 4 * 105_653_696
    assert (half.working_bytes - other) * 2 == single.working_bytes - other


def test_a_budget_that_is_too_small_is_refused_with_the_one_that_is_not():
    config = TOKENIZERS["CV8x8x8"]
    with pytest.raises(
        UserError, match=r"0.5 GiB do not suffice for 121 frames of 704 x 1280.*\((\d+) bytes\)"
    ) as error:
        plan_tokenizer(config, 121, 704, 1280, 2**29)
    least = int(str(error.value).split("(")[-1].split()[0])
    assert plan_tokenizer(config, 121, 704, 1280, least).peak_bytes == least
    with pytest.raises(UserError, match="do not suffice"):
        plan_tokenizer(config, 121, 704, 1280, least - 1)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((120, 704, 1280), "a clip of 120 frames does not fit"),
        ((121, 700, 1280), "height 700 does not fit: it must be a multiple of 8"),
        ((121, 704, 0), "width 0 does not fit: it must be a multiple of 8"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(size, message):
    with pytest.raises(UserError, match=message):
        plan_tokenizer(TOKENIZERS["CV8x8x8"], *size, 2**40)
