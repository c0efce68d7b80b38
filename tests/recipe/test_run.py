"""A recipe in its smallest size: stages follow each other, finished ones stay, and the page tells the truth."""

import dataclasses
import json
import math
from html.parser import HTMLParser

import pytest
import torch

from cosmos_ref import worlds
from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint
from cosmos_ref.config import PRESETS, ClipConfig, DataConfig, ParallelConfig
from cosmos_ref.errors import UserError
from cosmos_ref.recipe.run import MEASURES, levels, run_recipe
from cosmos_ref.training.sources import WorldSource, open_source
from cosmos_ref.training.stages import Stage, grown
from cosmos_ref.video_io import write_video
from tests.ranks import run_ranks

MICRO = PRESETS["micro"]
STEPS = 6


def small_stages():
    train = dataclasses.replace(
        MICRO.train, num_steps=STEPS, checkpoint_every=3, warmup_steps=1, given_latents=(1.0,), video_noise_shift=True
    )
    first = dataclasses.replace(
        MICRO,
        name="small/first",
        model=dataclasses.replace(MICRO.model, video2world=False),
        data=DataConfig(world="single", image_share=0.5),
        train=train,
    )
    larger = ClipConfig(frames=9, height=24, width=24)
    model = grown(MICRO.model, larger, first.clip, MICRO.tokenizer.temporal_factor)
    second = dataclasses.replace(
        first,
        name="small/second",
        model=model,
        clip=larger,
        train=dataclasses.replace(train, given_latents=(0.5, 0.5)),
    )
    return (Stage("first", first), Stage("second", second))


def world(stage):
    config = stage.config
    return WorldSource(config.clip, config.data.world, config.train.seed, config.data.buckets)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("recipe")
    run_recipe(small_stages(), out, world, held_out=4, progress=False)
    return out


def weights(folder, group):
    return read_checkpoint(find_checkpoint(folder), [group]).tensors[group]


def recipe_on_two(out):
    from cosmos_ref.distributed.layout import ManyProcesses

    layout = ManyProcesses(ParallelConfig(cp=2), MICRO.model.num_heads, torch.device("cpu"))
    run_recipe(small_stages(), out, world, layout=layout, held_out=0, progress=False)


def test_two_processes_that_share_clips_train_the_same_stages(finished, tmp_path):
    run_ranks(recipe_on_two, 2, tmp_path, timeout=300)
    for stage in ("1-first", "2-second"):
        for name, tensor in weights(finished / stage, "ema").items():
            # Twelve updates of AdamW, which divides small gradients by their own size: 1e-4 of weights of about one.
            torch.testing.assert_close(weights(tmp_path / stage, "ema")[name], tensor, rtol=0, atol=1e-4)


def test_each_stage_starts_from_the_average_of_the_one_before(finished):
    before = weights(finished / "1-first", "ema")
    records = [json.loads(line) for line in (finished / "2-second" / "train.jsonl").read_text().splitlines()]
    after = weights(finished / "2-second", "model")
    moved = {name: (after[name] - tensor).abs().max().item() for name, tensor in before.items()
             if after[name].shape == tensor.shape}  # fmt: skip
    # AdamW moves a weight by at most about the learning rate an update (1.1: its first moments overshoot a little).
    assert max(moved.values()) <= 1.1 * sum(record["lr"] for record in records)
    assert len(moved) == len(before) - 1, "only the patch embedding grew, by the channel that marks given frames"


def test_stages_share_the_tokenizer_whose_latents_the_weights_know(finished):
    first, second = (weights(finished / folder, "tokenizer") for folder in ("1-first", "2-second"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


def test_what_is_finished_is_not_trained_or_measured_again(finished):
    files = [path for path in finished.rglob("*") if path.is_file() and path.name != "report.html"]
    before = {path: path.stat().st_mtime_ns for path in files}
    run_recipe(small_stages(), finished, world, held_out=4, progress=False)
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_a_stage_that_was_trained_otherwise_is_refused(finished):
    first, second = small_stages()
    other = dataclasses.replace(first.config, train=dataclasses.replace(first.config.train, learning_rate=1e-9))
    with pytest.raises(UserError, match=r"1-first.*other settings"):
        run_recipe((Stage("first", other), second), finished, world, held_out=4, progress=False)


def test_a_stage_that_was_trained_on_other_clips_is_refused(finished):
    def other(stage):
        return WorldSource(stage.config.clip, "mixed", stage.config.train.seed)

    with pytest.raises(UserError, match=r"1-first: .*\n.*data: world single"):
        run_recipe(small_stages(), finished, other, held_out=4, progress=False)


def test_both_domains_are_measured_on_the_same_noise_before_and_after(finished):
    for stage in small_stages():
        folder = next(finished.glob(f"*-{stage.name}"))
        measures = json.loads((folder / MEASURES).read_text())
        assert {"video", "image"} <= measures.keys()
        for domain in ("video", "image"):
            rows = measures[domain]
            assert rows["sigma"] == pytest.approx(levels(stage.config, domain))
            assert all(math.isfinite(value) for key in ("before", "after", "uncertainty") for value in rows[key])
            assert rows["before"] != rows["after"]


def test_videos_are_measured_at_noise_raised_by_the_root_of_their_latent_frames():
    config = small_stages()[1].config  # 9 frames are 5 latent frames
    ratios = [v / i for v, i in zip(levels(config, "video"), levels(config, "image"), strict=True)]
    assert ratios == pytest.approx([math.sqrt(5)] * len(ratios))


class Text(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.words, self.videos = [], 0
        self.feed(page)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        self.videos += tag == "video"


def test_the_page_shows_every_stage_with_its_own_numbers_and_clips(finished):
    page = Text((finished / "report.html").read_text())
    text = "".join(page.words)
    for stage in small_stages():
        measures = json.loads((next(finished.glob(f"*-{stage.name}")) / MEASURES).read_text())
        for when in ("before", "after"):
            values = measures["video"][when]
            assert f"{sum(values) / len(values):.3f}" in text, (stage.name, when)
    assert page.videos == 2 * 3


def test_only_clips_that_were_not_trained_on_are_called_held_out(finished, tmp_path):
    """Of a folder every file is trained on."""
    stage, *_ = small_stages()
    config = dataclasses.replace(stage.config, train=dataclasses.replace(stage.config.train, num_steps=1))
    video = worlds.simulate([1], frames=9, height=16, width=16, kind="single").video[0]
    write_video(tmp_path / "files" / "clip.mp4", video, 24)
    stages = (Stage("first", config),)
    run_recipe(stages, tmp_path, lambda stage: open_source(tmp_path / "files", config), held_out=2, progress=False)
    pages = ["".join(Text((folder / "report.html").read_text()).words).lower() for folder in (finished, tmp_path)]
    assert ["held-out" in page or "reservado" in page for page in pages] == [True, False]


def test_a_clip_too_short_for_a_later_stage_is_left_out_of_it_alone(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, frames in (("long", 9), ("short", 5)):
        noise = torch.rand(3, frames, 32, 40, generator=torch.Generator().manual_seed(frames)) * 2 - 1
        write_video(videos / f"{name}.mp4", noise, 24)
    left_out = {}

    def files(stage):
        source = open_source(videos, stage.config, resize=True, skip=True)
        left_out[stage.name] = [out.path.name for out in source.left_out]
        return source

    run_recipe(small_stages(), tmp_path / "run", files, held_out=0, progress=False)
    assert left_out == {"first": [], "second": ["short.mp4"]}
