import gc
import weakref
from copy import deepcopy
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch

from cosmos_ref.checkpoint import save_checkpoint
from cosmos_ref.equations.edm import scale_latents
from cosmos_ref.errors import UserError
from cosmos_ref.pipelines.text2world import text2world
from cosmos_ref.pipelines.video2world import video2world
from cosmos_ref.pipelines.world_model import WorldModel, in_memory, load_world_model
from tests.pipelines.micro import CONFIG, micro, moving_waves

CLIP, SETTINGS = CONFIG.clip, CONFIG.sample
S = CONFIG.diffusion.sigma_data
ROUNDING = dict(rtol=0, atol=1e-3)
"""float32 in batches of different sizes: 1e-6 a call, times guidance and four steps down from noise of 80."""


def from_text(*prompts, clip=CLIP, negative_prompt=None, **settings):
    return text2world(micro(), prompts, clip, replace(SETTINGS, **settings), negative_prompt)


def from_frames(video, *prompts, clip=CLIP, negative_prompt=None, model=None, **settings):
    return video2world(model or micro(), video, prompts, clip, replace(SETTINGS, **settings), negative_prompt)


# --- seeds, neighbours, prompts


def test_the_same_seed_makes_the_same_video_and_another_seed_another():
    one, same, other = (from_text("a red ball", seed=seed).x0 for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().mean() > 0.1 * one.abs().mean()


def test_a_seed_makes_another_video_at_each_place_of_the_batch():
    x0 = from_text("a red ball", "a red ball").x0
    assert (x0[0] - x0[1]).abs().mean() > 0.1 * x0.abs().mean()


def test_a_clip_does_not_depend_on_its_neighbours():
    alone = from_text("a red ball").x0
    together = from_text("a red ball", "two blue balls", None).x0
    torch.testing.assert_close(together[:1], alone, **ROUNDING)


def test_a_continued_clip_does_not_depend_on_its_neighbours():
    video = moving_waves(3, clips=2, frames=3)
    alone = from_frames(video[:1], None).x0
    together = from_frames(video, None, "two blue balls").x0
    torch.testing.assert_close(together[:1], alone, **ROUNDING)


def test_prompt_and_negative_prompt_are_felt():
    plain = from_text("a red ball").x0
    for other in (from_text(None), from_text("a blue ball"), from_text("a red ball", negative_prompt="a blue ball")):
        assert (other.x0 - plain).abs().max() > 1e-2


def test_a_prompt_away_from_itself_is_no_guidance():
    against_itself = from_text("a red ball", negative_prompt="a red ball", guidance=3.0).x0
    torch.testing.assert_close(against_itself, from_text("a red ball", guidance=0.0).x0, **ROUNDING)


def test_the_frame_rate_is_felt():
    for make in (partial(from_text, "a red ball"), partial(from_frames, moving_waves(4, frames=3), None)):
        assert (make(clip=replace(CLIP, fps=6.0)).x0 - make().x0).abs().max() > 1e-2


def test_the_video_is_the_decoded_latents_at_the_clips_size():
    made = from_text("a red ball", clip=replace(CLIP, frames=7, height=24))
    assert made.video.shape == (1, 3, 7, 24, 16)
    assert torch.equal(made.video, micro().tokenizer.decode(made.x0 / S))


# --- given frames


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("solver", ["euler", "heun", "res_2ab"])
def test_given_frames_come_back_as_the_tokenizer_keeps_them(solver, frames):
    """1 + (n - 1) * 2 frames for n latents, held at every level, so the last step ends in them up to float32."""
    given = moving_waves(4, frames=frames)
    made = from_frames(given, "a red ball", solver=solver).video
    torch.testing.assert_close(
        made[:, :, :frames], micro().tokenizer.decode(micro().tokenizer.encode(given)), rtol=0, atol=1e-4
    )
    assert (made[:, :, frames:] - made[:, :, frames - 1 : frames]).abs().max() > 0.05  # and it goes on


def test_given_frames_are_held_only_down_to_their_own_noise():
    """With augment_sigma above the last level they are denoised with the rest from there on: near, but not the same."""
    given = moving_waves(4, frames=3)
    kept = scale_latents(micro().tokenizer.encode(given), S)
    made = from_frames(given, None, augment_sigma=0.05, num_steps=12).x0[:, :, :2]
    distance = (made - kept).square().mean().sqrt().item()
    # below 0.05 D is x and sigma times F, whose size is about ten in this untrained network
    assert 1e-4 < distance < 10 * 0.05


def test_the_network_sees_the_given_frames_with_their_noise_on():
    """The same at every step, of size augment_sigma; the frames held in the estimate have none."""
    seen = noise_on_given_frames(augment_sigma=0.3)
    assert seen[0].std().item() == pytest.approx(1, abs=0.15)  # of 512 numbers: 0.15 is five deviations
    assert all(torch.equal(each, seen[0]) for each in seen)


def test_fresh_noise_on_given_frames_is_new_in_every_branch_of_every_step():
    """The sampler's own start is the same as with fixed noise, and so is what the first branch sees first."""
    seen = torch.stack(noise_on_given_frames(augment_sigma=0.3, given_noise="fresh", num_steps=4)).flatten(1)
    assert len(seen) == 2 * 4
    correlations = torch.corrcoef(seen) - torch.eye(8)
    assert correlations.abs().max() < 0.23  # 512 numbers each: 0.044 is chance, times five
    assert all(each.std().item() == pytest.approx(1, abs=0.15) for each in seen)


def noise_on_given_frames(**settings):
    """Unit noise on the two given latent frames, for every branch of every call."""
    given, denoiser = moving_waves(4, frames=3), micro().denoiser
    with mock.patch.object(denoiser, "run", wraps=denoiser.run) as run:
        from_frames(given, None, **settings)
    clean = scale_latents(micro().tokenizer.encode(given), S)
    branches = [branch for call in run.call_args_list for branch in call.kwargs["given_latents"][:, None, :, :2]]
    return [(branch - clean) / settings["augment_sigma"] for branch in branches]


def test_how_it_goes_on_depends_on_the_given_frames():
    one, other = (from_frames(moving_waves(seed, frames=3), None).x0[:, :, 2:] for seed in (4, 40))
    assert (one - other).abs().max() > 1e-2


def test_the_noise_on_given_frames_is_not_the_noise_that_starts_the_sampler(monkeypatch):
    """The same noise in both would tell the network what to take away."""
    drawn = []
    import cosmos_ref.pipelines.video2world as module

    draw = module.noise_from_seed
    monkeypatch.setattr(module, "noise_from_seed", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    from_frames(moving_waves(4, clips=2, frames=3), None, None)
    assert len(drawn) == 4
    correlations = torch.corrcoef(torch.stack(drawn).flatten(1)) - torch.eye(4)
    # 768 numbers each: independent ones correlate by 0.036, five times that is chance no more
    assert correlations.abs().max() < 0.18


# --- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_text("a ball", clip=replace(CLIP, frames=4)), "4 frames does not fit"),
        (lambda: from_text("a ball", clip=replace(CLIP, height=20)), "height 20 does not fit"),
        (lambda: from_text("a ball", clip=replace(CLIP, width=1024)), "width 1024 does not fit.*at most 128"),
        (lambda: from_text("a ball", clip=replace(CLIP, frames=33)), "33 frames do not fit.*at most 31"),
        (lambda: from_text(" "), "empty"),
        (lambda: from_text("ball " * 25), "25 words; at most 24"),
        (lambda: from_text("a ball", negative_prompt=""), "empty"),
        (lambda: from_frames(moving_waves(0, frames=2), None), "2 frames does not fit"),
        (lambda: from_frames(moving_waves(0, frames=5), None), "5 given frames leave nothing to generate"),
        (lambda: from_frames(moving_waves(0, frames=7), None), "7 given frames leave nothing to generate"),
        (lambda: from_frames(moving_waves(0, frames=1)[..., :12], None), "width 12 does not fit"),
        (lambda: from_frames(moving_waves(0, frames=1), None, clip=replace(CLIP, frames=4)), "4 frames does not fit"),
        (lambda: from_frames(moving_waves(0, frames=1), "a", "b"), "2 prompts for 1"),
        (
            lambda: from_frames(moving_waves(0, frames=1), None, model=micro(False)),
            "Text2World model: it takes no frames",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_network_is_called(make, message, monkeypatch):
    for model in (micro(), micro(False)):
        monkeypatch.setattr(model.denoiser, "forward", lambda *_, **__: pytest.fail("the network was called"))
    with pytest.raises(UserError, match=message):
        make()


def test_a_text2world_model_makes_worlds_from_text():
    x0 = text2world(micro(False), ["a red ball", None], CLIP, SETTINGS).x0
    assert x0.isfinite().all()
    assert (x0[0] - x0[1]).abs().max() > 1e-2


# --- devices


@pytest.mark.parametrize("given", [0, 3])
def test_everything_is_brought_to_the_device_of_the_model(given):
    """On the meta device nothing is computed, but tensors of another device are refused as on a GPU."""
    model = micro()
    denoiser, tokenizer = (deepcopy(part).to("meta") for part in (model.denoiser, model.tokenizer))
    model = in_memory(model.config, denoiser, tokenizer, model.text_encoder)
    if given:
        video = from_frames(moving_waves(0, frames=given), None, model=model).video
    else:
        video = text2world(model, ["a red ball"], CLIP, SETTINGS).video
    assert video.device.type == "meta" and video.shape == (1, 3, 5, 16, 16)


class Stub:
    """A part that remembers where it was sent."""

    def __init__(self):
        self.places = []

    def to(self, device):
        self.places.append(str(device))
        return self


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_while_one_part_is_used_the_others_are_where_offload_says(offload):
    made = {"text_encoder": [], "denoiser": [], "tokenizer": []}

    def loader(part):
        return lambda: made[part].append(Stub()) or made[part][-1]

    model = WorldModel(CONFIG, {part: loader(part) for part in made}, "meta", offload)
    model.load_all()
    loaded_before = 1 if offload == "none" else 0
    assert [len(stubs) for stubs in made.values()] == [loaded_before] * 3
    for part in ("text_encoder", "denoiser", "tokenizer", "denoiser"):
        used = model.use(part)
        assert used is made[part][-1] and used.places[-1] == "meta"
        others = [stub for other, stubs in made.items() if other != part for stub in stubs[-1:]]
        if offload == "cpu":
            assert all(stub.places[-1] == "cpu" for stub in others)
    assert len(made["denoiser"]) == (2 if offload == "disk" else 1)
    if offload == "disk":
        forgotten = [weakref.ref(stub) for stub in made["denoiser"]]
        made["denoiser"].clear()
        del used, others
        model.use("tokenizer")
        gc.collect()
        assert not any(ref() for ref in forgotten)


# --- checkpoints


@pytest.mark.parametrize("kind", [True, False], ids=["video2world", "text2world"])
def test_a_saved_model_makes_the_same_world_with_its_averaged_weights(kind, tmp_path):
    model = micro(kind)
    noise = {name: torch.randn_like(value) for name, value in model.denoiser.state_dict().items()}
    tensors = {
        "model": noise,  # what training left; sampling must take the average
        "ema": model.denoiser.state_dict(),
        "tokenizer": model.tokenizer.state_dict(),
        "optimizer": {},
    }
    loaded = load_world_model(save_checkpoint(tmp_path / "saved", model.config, tensors, {"step": 1}))
    assert loaded.config == model.config
    assert not any(p.requires_grad for p in loaded.denoiser.parameters())
    ours, theirs = (text2world(each, ["a red ball"], CLIP, SETTINGS) for each in (model, loaded))
    assert torch.equal(ours.video, theirs.video)
