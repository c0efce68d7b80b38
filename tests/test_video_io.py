"""Clips survive the trip through a file, and every bad file is named before work starts."""

import re
import struct
from contextlib import contextmanager

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from cosmos_ref import video_io
from cosmos_ref.errors import UserError
from cosmos_ref.video_io import caption_of, check_output, find_videos, probe, read_clip, write_video

LEVEL = 2 / 255  # one of 256 grey levels, in units of a video in [-1, 1]


BETWEEN = "scenecut=0:b-adapt=0"  # three of four frames are coded after a later one they depend on


def smooth_clip(frames=9, height=32, width=48):
    """Slow colour waves: without edges, so that halved chroma resolution costs next to nothing."""
    t, y, x = torch.meshgrid(
        torch.arange(frames) / frames,
        torch.linspace(0, 1, height),
        torch.linspace(0, 1, width),
        indexing="ij",
    )
    return torch.stack([0.8 * torch.sin(3 * (y + t) + k) * torch.cos(3 * (x - t) - k) for k in range(3)])


def numbered_clip(frames=30, size=32):
    """Frame n is grey with the 8-bit value 8 n."""
    grey = 8 * torch.arange(frames) / 127.5 - 1
    return grey.reshape(1, frames, 1, 1).expand(3, frames, size, size)


def numbers(video):
    """Read the numbers back; a codec's error of up to 4 grey levels in 8 is rounded away."""
    return ((video.mean(dim=(0, 2, 3)) + 1) * 127.5 / 8).round().int().tolist()


def encode(path, video, **options):
    """Write H.264 in any container with any option, independently of `write_video`."""
    with av.open(str(path), "w", options=options.pop("container_options", {})) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width = video.shape[2:]
        stream.pix_fmt, stream.codec_context.max_b_frames = "yuv420p", 3
        stream.options = {"crf": "12", "g": "8", "x264-params": BETWEEN} | options
        for frame in ((rearrange(video, "C T H W -> T H W C") + 1) * 127.5).round().to(torch.uint8).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def numbered(folder):
    return write_video(folder / "numbered.mp4", numbered_clip(), 24)


def test_mp4_comes_back_within_a_few_grey_levels(tmp_path):
    video = smooth_clip()
    clip = read_clip(write_video(tmp_path / "a.mp4", video, 24))
    assert clip.video.shape == video.shape and clip.path == tmp_path / "a.mp4"
    # Peak signal to noise over the range 2: 38 dB with x264's loss and chroma at half resolution.
    assert 10 * torch.log10(4 / (clip.video - video).square().mean()) > 35


def test_mp4_keeps_the_mean_colour_of_flat_frames(tmp_path):
    colour = torch.tensor([0.6, -0.7, 0.1])
    video = colour.reshape(3, 1, 1, 1).expand(3, 9, 32, 32)
    read = read_clip(write_video(tmp_path / "a.mp4", video, 24)).video.mean(dim=(1, 2, 3))
    # 8-bit Y'CbCr of 219 levels costs up to about two levels; BT.601 read as BT.709 would cost over twenty.
    torch.testing.assert_close(read, colour, atol=4 * LEVEL, rtol=0)


def test_pixels_are_scaled_by_127_5(tmp_path):
    Image.fromarray(np.array([[[0, 255, 51]]], np.uint8)).save(tmp_path / "a.png")
    assert read_clip(tmp_path / "a.png").video.flatten().tolist() == pytest.approx([-1, 1, -0.6], abs=1e-6)


def test_values_outside_the_range_are_clamped(tmp_path):
    clip = read_clip(write_video(tmp_path / "a.png", torch.tensor([1.7, -3.0, 0.0]).reshape(3, 1, 1, 1), 24))
    assert clip.video.flatten().tolist() == pytest.approx([1, -1, 0], abs=LEVEL)


def test_png_is_the_frames_side_by_side(tmp_path):
    video = smooth_clip(frames=5)
    strip = read_clip(write_video(tmp_path / "a.png", video, 24)).video
    # Lossless: half a level of rounding only.
    torch.testing.assert_close(strip, rearrange(video, "C T H W -> C 1 H (T W)"), atol=0.51 * LEVEL, rtol=0)


def test_gif_keeps_frames_and_colours(tmp_path):
    video = smooth_clip()
    clip = read_clip(write_video(tmp_path / "a.gif", video, 25))
    assert clip.video.shape == video.shape
    assert clip.fps == pytest.approx(25)
    # 256 colours per frame of 1536 pixels: a few levels each.
    assert (clip.video - video).abs().mean() < 4 * LEVEL


@pytest.mark.parametrize("fps", [8.0, 24.0, 29.97002997, 30.0])
def test_rate_is_kept(tmp_path, fps):
    path = write_video(tmp_path / "a.mp4", numbered_clip(9), fps)
    assert read_clip(path, frames=1).fps == pytest.approx(fps, rel=1e-6) == probe(path).fps


def test_odd_sides_grow_to_even_ones_by_their_last_row_and_column(tmp_path):
    video = smooth_clip(height=31, width=45)
    read = read_clip(write_video(tmp_path / "a.mp4", video, 24)).video
    grown = torch.nn.functional.pad(video, (0, 1, 0, 1), mode="replicate")
    assert read.shape == grown.shape and (read - grown).abs().mean() < 3 * LEVEL  # as for even sides


def test_scale_makes_every_pixel_a_square(tmp_path):
    video = smooth_clip(frames=2, height=3, width=5)
    strip = read_clip(write_video(tmp_path / "a.png", video, 24, scale=4)).video
    squares = video.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(strip, rearrange(squares, "C T H W -> C 1 H (T W)"), atol=0.51 * LEVEL, rtol=0)


def test_a_large_mp4_can_start_before_it_is_whole(tmp_path):
    data = write_video(tmp_path / "a.mp4", smooth_clip(), 24).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_frames_come_from_the_start_by_default_and_from_the_end_on_request(numbered):
    assert numbers(read_clip(numbered, frames=9).video) == list(range(9))
    assert numbers(read_clip(numbered, frames=9, from_end=True).video) == list(range(21, 30))
    assert numbers(read_clip(numbered, frames=1, from_end=True).video) == [29]
    assert numbers(read_clip(numbered, start=25).video) == list(range(25, 30))
    assert probe(numbered).frames == 30


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.avi", {}),
        ("a.mov", {"g": "3"}),
        ("open.mp4", {"x264-params": BETWEEN + ":open-gop=1"}),
    ],
)
def test_every_start_finds_its_frame_in_every_container(tmp_path, name, options):
    path = encode(tmp_path / name, numbered_clip(), **options)
    assert probe(path).frames == 30
    for start in range(0, 28):  # keyframes, the frames before them and B-frames alike
        assert numbers(read_clip(path, start=start, frames=2).video) == [start, start + 1]


def test_frames_of_a_gif_from_the_end_are_whole_pictures(tmp_path):
    path = write_video(tmp_path / "a.gif", numbered_clip(), 25)  # GIF frames are differences to earlier ones
    assert numbers(read_clip(path, frames=5, from_end=True).video) == list(range(25, 30))


def test_a_seek_that_lands_too_late_falls_back_to_decoding_everything(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", numbered_clip())
    last = video_io._frame_times(path)[0][-1]

    class Late:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, target, *, stream):
            self.container.seek(last, stream=stream)

    @contextmanager
    def late(path, real=video_io._open):
        with real(path) as (container, stream):
            yield Late(container), stream

    monkeypatch.setattr(video_io, "_open", late)
    assert numbers(read_clip(path, start=5, frames=3).video) == [5, 6, 7]


def patched(path, box, offset, layout, *values):
    """Overwrite fields of the first `box` of an MP4 file, `offset` bytes behind its name."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.index(box) + 4 + offset, *values)
    path.write_bytes(data)
    return path


def test_frames_cut_away_by_an_edit_list_are_not_seen_and_not_taken_for_truncation(tmp_path):
    # What a telephone's trim does: all frames stay in the file, the edit list shows half of them (1250 of 2500 ms).
    path = encode(tmp_path / "a.mp4", numbered_clip())
    path = patched(path, b"elst", 8, ">I", 625)
    assert probe(path).frames == 15
    assert numbers(read_clip(path, frames=3, from_end=True).video) == [12, 13, 14]


def test_a_rotated_video_is_turned_upright(tmp_path):
    video = -torch.ones(3, 4, 32, 64)
    video[:, :, :16, :16] = 1  # upper left
    path = encode(tmp_path / "a.mp4", video)
    one = 1 << 16
    # x' = -y, y' = x with y downwards: a quarter turn clockwise, as a telephone held upright writes it.
    path = patched(path, b"tkhd", 40, ">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    clip = read_clip(path)
    assert clip.video.shape == (3, 4, 64, 32) and (probe(path).height, probe(path).width) == (64, 32)
    assert clip.video[:, :, :12, -12:].mean() > 0.9  # now upper right
    assert clip.video[:, :, 20:].mean() < -0.9


def test_an_image_is_one_frame_at_24_per_second(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (48, 32), (200, 30, 60)).save(tmp_path / name)
        clip = read_clip(tmp_path / name, frames=1, from_end=True)
        assert clip.video.shape == (3, 1, 32, 48) and clip.fps == 24
        assert probe(tmp_path / name) == video_io.Probe(1, 32, 48, 24.0)


@pytest.mark.parametrize("found", [(80, 160), (160, 80), (12, 20)])
def test_resize_keeps_a_centred_disc_round_and_centred(tmp_path, found):
    height, width = found
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = torch.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    disc = ((0.3 * min(found) + 0.5 - distance).clamp(0, 1) * 2 - 1).expand(3, 1, height, width)
    path = write_video(tmp_path / "a.png", disc, 24)
    seen = (read_clip(path, height=32, width=32, resize=True).video[0, 0].double() + 1) / 2
    at = torch.arange(32.0, dtype=torch.float64) - 15.5
    mass = seen.sum()
    rows, columns = seen.sum(1) / mass, seen.sum(0) / mass
    # 8-bit rounding and bicubic overshoot move centre and spread by far less than a twentieth of a pixel.
    assert (rows @ at).abs() < 0.05 and (columns @ at).abs() < 0.05
    spread_y, spread_x = (rows @ at**2).sqrt(), (columns @ at**2).sqrt()
    assert (spread_y - spread_x).abs() < 0.05
    assert (2 * spread_x - 0.3 * 32).abs() < 0.5  # a disc of radius R has standard deviation R / 2 along an axis


def test_resize_averages_fine_detail_away(tmp_path):
    stripes = torch.ones(3, 1, 256, 256)
    stripes[..., ::2] = -1  # finer than the result can show: without antialiasing it would come out black or white
    path = write_video(tmp_path / "a.png", stripes, 24)
    assert read_clip(path, height=32, width=32, resize=True).video.abs().max() < 0.1


def test_resize_leaves_frames_of_the_right_size_alone(numbered):
    asked = read_clip(numbered, frames=3, height=32, width=32, resize=True).video
    assert torch.equal(asked, read_clip(numbered, frames=3).video)


# Bad input ------------------------------------------------------------------------------------------------


def test_wrong_size_names_both_sizes_and_offers_resize(tmp_path):
    path = write_video(tmp_path / "a.mp4", smooth_clip(height=32, width=48), 24)
    with pytest.raises(UserError, match=r"a\.mp4.*48x32.*64x16.*--resize"):
        read_clip(path, height=16, width=64)


@pytest.mark.parametrize("asked", [{"frames": 31}, {"frames": 31, "from_end": True}, {"start": 30}])
def test_too_short_names_what_is_there_and_what_is_needed(numbered, asked):
    with pytest.raises(UserError, match=rf"numbered\.mp4 holds 30 .*{asked.get('frames', 'from frame 30')}"):
        read_clip(numbered, **asked)


@pytest.mark.parametrize("asked", [{"frames": 0}, {"start": -1}])
def test_frames_and_start_that_mean_nothing_are_refused(numbered, asked):
    with pytest.raises(UserError, match="frames >= 1 and start >= 0"):
        read_clip(numbered, **asked)


def test_an_image_is_too_short_for_a_clip(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png holds 1 frame\(s\), but 9"):
        read_clip(tmp_path / "a.png", frames=9)


@pytest.mark.parametrize("read", [read_clip, probe])
def test_missing_folder_and_empty_file_are_named(tmp_path, read):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, reason in [
        ("gone.mp4", "does not exist"),
        ("folder.mp4", "is not a file"),
        ("empty.mp4", "is empty"),
    ]:
        with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / name))} {reason}"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.gif", "a.png", "a.m3u8"])
def test_text_is_not_a_video(tmp_path, name):
    (tmp_path / name).write_text("#EXTM3U\n" + "Not a video at all.\n" * 100)
    with pytest.raises(UserError, match=f"{re.escape(name)} cannot be read"):
        read_clip(tmp_path / name)


def test_sound_alone_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UserError, match=r"a\.mp4 holds no video"):
        read_clip(tmp_path / "a.mp4")


def test_an_unreadable_file_is_named(numbered, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(video_io.av, "open", refuse)  # tests may run as root, who may read everything
    with pytest.raises(UserError, match=r"numbered\.mp4 cannot be read.*Permission denied"):
        read_clip(numbered)


@pytest.mark.parametrize("kept", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    "name, options",
    [
        ("end.mp4", {}),
        ("front.mp4", {"movflags": "faststart"}),
        ("a.mov", {"movflags": "faststart"}),
        ("a.mkv", {}),
    ],
)
def test_a_cut_file_is_found_out_even_where_the_first_frames_are_whole(tmp_path, name, options, kept):
    path = encode(tmp_path / name, smooth_clip(frames=48, height=64, width=64), container_options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=f"{re.escape(name)}.*truncated"):
        read_clip(path, frames=1)


def test_a_file_that_lacks_its_last_bytes_is_found_out(tmp_path):
    path = encode(tmp_path / "a.mp4", smooth_clip(), container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-5])  # every frame has a packet, the last one is not whole
    with pytest.raises(UserError, match=r"a\.mp4 is truncated"):
        read_clip(path, frames=1)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.jpg"])
def test_a_cut_picture_is_found_out(tmp_path, name):
    if name == "a.jpg":
        Image.effect_noise((64, 64), 50).save(tmp_path / name)
    else:
        write_video(tmp_path / name, smooth_clip(), 24)
    data = (tmp_path / name).read_bytes()
    for kept in (0.3, 0.6, 0.95):
        (tmp_path / name).write_bytes(data[: int(kept * len(data))])
        with pytest.raises(UserError, match=f"{re.escape(name)}.*truncated"):
            read_clip(tmp_path / name)


def test_a_clip_whose_sound_is_longer_than_its_picture_is_whole(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        video, audio = (
            container.add_stream("libx264", rate=24),
            container.add_stream("aac", rate=48000, layout="mono"),
        )
        video.height, video.width, video.pix_fmt = 32, 32, "yuv420p"
        for _ in range(9):
            container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    assert probe(tmp_path / "a.mp4").frames == 9


# Writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, suffix):
    path = write_video(tmp_path / f"a{suffix}", smooth_clip(), 24)
    before = path.read_bytes()
    writer = f"_write_{suffix[1:]}"
    real = getattr(video_io, writer)

    def half(beside, pixels, fps):
        real(beside, pixels, fps)
        assert beside.parent == tmp_path and beside.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_io, writer, half)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*No space left"):
        write_video(path, -smooth_clip(), 24)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(beside, pixels, fps):
        beside.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(video_io, "_write_mp4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", smooth_clip(), 24)
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_but_not_by_the_check(tmp_path):
    path = tmp_path / "new" / "folder" / "a.png"
    assert check_output(path) == path and not path.parent.exists()
    assert write_video(path, smooth_clip(), 24) == path and path.exists()


def test_a_video_that_is_not_finite_is_not_written(tmp_path):
    video = smooth_clip()
    video[0, 3, 5, 5] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        write_video(tmp_path / "a.mp4", video, 24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.webm", "a", "a.mp4.txt"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(UserError, match=r"unknown suffix.*\.mp4, \.gif, \.png"):
        check_output(tmp_path / name)


def test_places_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match=r"folder\.mp4: it is a folder"):
        check_output(tmp_path / "folder.mp4")
    with pytest.raises(UserError, match="file is not a writable folder"):
        check_output(tmp_path / "file" / "a.mp4")
    monkeypatch.setattr(video_io.os, "access", lambda *args: False)  # tests may run as root, who may write anywhere
    with pytest.raises(UserError, match=r"a\.mp4: .* is not a writable folder"):
        check_output(tmp_path / "a.mp4")


# Folders and captions -------------------------------------------------------------------------------------


def test_videos_of_a_folder_come_sorted_without_anything_else(tmp_path):
    for name in ("b.MP4", "a.webm", "c.gif", "a.txt", ".hidden.mp4", "d.png"):
        (tmp_path / name).touch()
    (tmp_path / "e.mp4").mkdir()
    assert [path.name for path in find_videos(tmp_path)] == ["a.webm", "b.MP4", "c.gif"]


def test_a_folder_without_videos_or_none_at_all_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} holds no video"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="gone is not a folder"):
        find_videos(tmp_path / "gone")


def test_a_caption_is_the_text_beside_the_clip(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa marble falls, não sobe\r\n".encode())
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"n\xe3o")
    assert caption_of(tmp_path / "a.mp4") == "a marble falls, não sobe"
    assert caption_of(tmp_path / "blank.mp4") is None
    assert caption_of(tmp_path / "none.mp4") is None
    with pytest.raises(UserError, match=r"latin\.txt"):
        caption_of(tmp_path / "latin.mp4")
