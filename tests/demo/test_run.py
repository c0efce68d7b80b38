"""The demo from end to end with the smallest preset, and what it does not touch."""

import json
import math

import av
import pytest
import torch

from cosmos_ref.demo import run as demo
from cosmos_ref.demo.run import framed, mosaic, run_demo, side_by_side
from cosmos_ref.errors import UserError

SECTIONS = {
    "kind", "config", "machine", "versions", "seconds", "total_seconds", "peak_memory_gib", "reconstruction",
    "training", "denoising", "video2world", "text2world", "export",
}  # fmt: skip


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, float):
        yield value


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    run_demo(out, num_steps=5, preset_name="micro", scenes=8)
    return out


@pytest.mark.slow
def test_the_demo_leaves_a_report_and_its_numbers(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics.keys() == SECTIONS
    centre_errors = metrics["video2world"].pop("centre_error_per_frame")
    # An untrained model may show no marble at all, and what is not there has no distance.
    assert all(math.isfinite(x) for name in ("copy", "linear") for x in centre_errors[name])
    metrics["video2world"]["centre_error"].pop("model")
    assert all(math.isfinite(number) for number in numbers(metrics))
    assert metrics["training"]["steps"] == 5
    assert metrics["export"]["final_relative_error"] < 1e-3
    page = (finished / "report.html").read_text()
    clips = [path for path in finished.rglob("*.mp4") if path.name != "clip.mp4"]
    assert page.count("<video ") == len(clips) == 1 + 1 + 6 + 8 + 2
    for path in clips:
        with av.open(str(path)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames == (33 if path.name == "world.mp4" else 5)


@pytest.mark.slow
def test_a_second_demo_replaces_the_first(finished, monkeypatch):
    def stand_in(self, video):
        (self.folder / "metrics.json").write_text(json.dumps({"kind": demo.KIND, "second": True}))

    before = (finished / "metrics.json").read_text()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(demo.Demo, "run", lambda self, video: (_ for _ in ()).throw(RuntimeError("broken")))
        run_demo(finished, preset_name="micro")
    assert (finished / "metrics.json").read_text() == before  # one that breaks replaces nothing
    monkeypatch.setattr(demo.Demo, "run", stand_in)
    run_demo(finished, preset_name="micro")
    assert json.loads((finished / "metrics.json").read_text())["second"]
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]


@pytest.mark.parametrize("name", ["notes.txt", "metrics.json"])
def test_a_folder_with_other_things_in_it_is_refused_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.setattr(demo.Demo, "run", lambda self, video: pytest.fail("work was begun"))
    out = tmp_path / "demo"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(UserError, match="no finished demo"):
        run_demo(out, preset_name="micro")
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", name]


def test_a_video_that_cannot_be_read_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.Demo, "run", lambda self, video: pytest.fail("work was begun"))
    with pytest.raises(UserError, match="does not exist"):
        run_demo(tmp_path / "demo", tmp_path / "missing.mp4", preset_name="micro")
    assert list(tmp_path.iterdir()) == []


def test_a_frame_goes_around_and_changes_colour_after_the_given_frames():
    video = torch.rand(3, 4, 6, 8)
    blue, orange = (0.0, 0.0, 1.0), (1.0, 0.5, 0.0)
    result = framed(video, [blue, blue, orange])
    assert torch.equal(result[:, :, 1:-1, 1:-1], video)
    for t, colour in enumerate([blue, blue, orange, orange]):
        expected = torch.tensor(colour) * 2 - 1
        for edge in (result[:, t, 0], result[:, t, -1], result[:, t, :, 0], result[:, t, :, -1]):
            assert torch.equal(edge, expected[:, None].expand_as(edge))


def test_clips_stand_where_they_should():
    videos = torch.arange(6.0)[:, None, None, None, None].expand(6, 3, 2, 4, 4) / 10
    picture = mosaic(videos, columns=3)
    for i in range(6):
        row, column = divmod(i, 3)
        assert (
            picture[:, :, row * 6 + 1 : row * 6 + 5, column * 6 + 1 : column * 6 + 5] == videos[i, 0, 0, 0, 0]
        ).all()
    pair = side_by_side([videos[1], videos[5]])
    assert (pair[..., 1:5] == videos[1]).all() and (pair[..., 7:11] == videos[5]).all()
