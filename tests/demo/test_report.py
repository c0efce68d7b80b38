"""The report stands alone, shows everything it was given, and says it in both languages."""

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import av
import pytest

from cosmos_ref.demo.report import page
from cosmos_ref.page.html import write_page
from tests.demo.conftest import FRAMES

VOID = {"meta", "link", "img", "br", "use"}


class Parsed(HTMLParser):
    """Elements with their attributes, and whether they close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def films(report):
    return [report.world, report.reconstruction, *report.video2world, *report.text2world, *report.exported]


def embedded(text: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r'src="data:video/mp4;base64,([^"]*)"', text)]


def test_nothing_is_fetched_from_elsewhere(report):
    text = page(report)
    assert not re.search(r"https?:|//[a-z0-9.-]+\.[a-z]{2}|@import|url\((?!#)", re.sub(r'base64,[^"]*', "", text))
    for tag, attributes in Parsed(text).elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert attributes.get("src", "data:").startswith("data:")
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")


def test_every_clip_is_there_once_and_plays_by_itself(report):
    text = page(report)
    assert Counter(embedded(text)) == Counter(film.path.read_bytes() for film in films(report))
    for tag, attributes in Parsed(text).elements:
        if tag == "video":
            assert {"autoplay", "loop", "muted", "playsinline", "controls"} <= attributes.keys()


def test_embedded_clips_decode_to_all_their_frames(report):
    for data in embedded(page(report)):
        with av.open(io.BytesIO(data)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert sum(1 for _ in container.decode(video=0)) == FRAMES


def test_elements_close_in_order_and_no_name_is_given_twice(report):
    parsed = Parsed(page(report))
    assert parsed.open == []
    names = Counter(attributes["id"] for _, attributes in parsed.elements if "id" in attributes)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_text_has_its_twin_in_the_other_language(report):
    languages = [a["lang"] for tag, a in Parsed(page(report)).elements if tag == "span" and "lang" in a]
    assert len(languages) > 40
    assert languages == ["en", "pt"] * (len(languages) // 2)


def test_captions_are_shown_as_they_are_written(report):
    shown = "".join(Parsed(page(report)).text)
    for film in films(report):
        assert film.caption in shown


def test_the_numbers_shown_are_those_measured(report):
    numbers = report.metrics | {"total_seconds": 123.4, "peak_memory_gib": 1.87}
    shown = "".join(Parsed(page(replace(report, metrics=numbers))).text)
    for text in ("90 %", "1.0 px", "4.0×", "123 s", "1.87 GiB", "2.00 → 0.50", "30.0 dB"):
        assert text in shown


def test_plots_take_their_ink_from_the_page(report):
    for plot in (report.loss_curve, report.error_over_sigma, report.error_over_frames):
        assert plot.startswith("<svg viewBox=")
        assert "currentColor" in plot
        assert "#0a0b0c" not in plot


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "half a page \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
