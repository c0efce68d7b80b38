"""Laws of the benchmark: what is counted, what is compared with what, and what a failure may cost."""

import json
from dataclasses import asdict, replace
from functools import partial

import pytest
from cosmos_export import benchmark as measuring
from cosmos_export.benchmark import Request, cases, main, open_peak, operations
from cosmos_export.manifest import read_manifest
from cosmos_export.speed_table import HEADINGS, failures, figures, text
from cosmos_export.turns import Entry, Measured, measure

from cosmos_ref.checkpoint import save_checkpoint
from cosmos_ref.cli import main as cosmos_ref
from cosmos_ref.config import ClipConfig, preset
from cosmos_ref.model.sizes import flops, token_count
from tests.export.calls import breaks_later, broken, holds, killed, opened, slow
from tests.test_cli import refused


@pytest.mark.parametrize("name", ["micro", "tiny", "7b", "7b-video2world", "14b"])
def test_operations_are_those_of_the_costs(name):
    config = preset(name)
    numbers = json.loads(json.dumps(asdict(config)))
    for clip in (config.clip, ClipConfig(frames=1, height=config.clip.height, width=config.clip.width)):
        expected = sum(flops(config, clip).values())
        assert operations(numbers, token_count(config, clip)) == expected


def test_a_call_for_a_batch_counts_every_sample_of_it(exported):
    manifest = read_manifest(exported.path, files=())
    sizes = ("5x16x16", "1x32x16")
    one, two = (cases(Request(exported.path, sizes=sizes, batch=batch), manifest) for batch in (1, 2))
    for single, double, size in zip(one, two, sizes, strict=True):
        clip = ClipConfig(*map(int, size.split("x")))
        assert single.tokens == token_count(exported.config, clip)
        assert single.operations == sum(flops(exported.config, clip).values())
        assert (double.tokens, double.operations) == (2 * single.tokens, 2 * single.operations)
        assert double.inputs["x"].shape == (2, *single.inputs["x"].shape[1:])


def test_what_fails_is_a_row_with_its_reason_and_takes_no_other_with_it():
    entries = [
        Entry("broken", broken),
        Entry("sound", opened),
        Entry("killed", killed),
        Entry("later", breaks_later),
        Entry("sound too", opened, "a_library_that_is_not_there"),
    ]
    rows = {row.name: row for row in measure(entries, 2)}
    assert "RuntimeError: no such kernel" in rows["broken"].failure
    assert "killed" in rows["killed"].failure
    assert "StopIteration" in rows["later"].failure
    for name in ("broken", "killed", "later"):
        assert rows[name].seconds is None
    for name in ("sound", "sound too"):
        assert rows[name].failure == "" and len(rows[name].turns) == 2 and rows[name].engine == "an engine"
    table = dict(clip=[5, 16, 16], batch=1, tokens=10, operations=1000, peak=None, peak_of="nothing")
    shown = text(table | {"rows": figures(list(rows.values()), 10, 1000, None)})
    assert "broken failed: RuntimeError: no such kernel" in shown and "of peak" not in shown


def test_what_hangs_is_ended_and_says_so():
    (row,) = measure([Entry("hanging", partial(slow, 3600.0))], 2, limit=2)
    assert row.failure == "not done in 2 s" and row.seconds is None


def test_seconds_are_those_of_a_call_and_memory_is_that_of_the_process():
    slept, held, little = measure([Entry("slow", partial(slow, 0.2)), Entry("large", partial(holds, 200)),
                                   Entry("small", partial(holds, 1))], 2, warm=0)  # fmt: skip
    assert slept.seconds is not None and 0.2 <= slept.seconds < 1  # sleeping ends late on a busy machine
    if held.memory_mib is not None:  # the system tells
        assert 200 <= held.memory_mib < 230 and little.memory_mib is not None and little.memory_mib < 30


def test_ratios_are_to_the_first_row_that_ran_of_the_same_run():
    rows = [
        Measured("failed", turns=[1.0], failure="why"),
        Measured("first", turns=[4.0, 1.0, 2.0]),
        Measured("second", turns=[0.5]),
    ]
    failed, first, second = figures(rows, tokens=10, operations=4 * 10**12, peak=4e12)
    assert failed["seconds"] is None and "ratio" not in failed
    assert (first["seconds"], first["ratio"]) == (2.0, 1.0)
    assert (second["ratio"], second["tokens_per_second"], second["teraflops"]) == (4.0, 20.0, 8.0)
    assert first["share_of_peak"] == 0.5 and second["share_of_peak"] == 2.0
    assert failures([{"rows": [failed]}]) and not failures([{"rows": [failed, first]}])


def test_a_bundle_is_measured_in_every_variant_and_as_a_whole(exported, tmp_path, capsys):
    out = tmp_path / "speed.json"
    arguments = ["--rounds", "1", "--threads", "1", "--variants", "fp32", "cpu", "--sampling", "--json", str(out)]
    assert main([str(exported.path), *arguments]) == 0
    shown = capsys.readouterr().out
    table = json.loads(out.read_text())["tables"][0]
    assert [row["name"] for row in table["rows"]] == ["ONNX Runtime fp32", "ONNX Runtime cpu"]
    for row in table["rows"]:
        assert row["failure"] == row["clip_failure"] == ""
        assert row["clip_seconds"] > row["seconds"] > 0  # a sampling is several calls
        assert row["teraflops"] == pytest.approx(table["operations"] / row["seconds"] / 1e12)
        assert row["share_of_peak"] == pytest.approx(1e12 * row["teraflops"] / table["peak"])
        assert row["name"] in shown
    assert all(heading in shown for heading in HEADINGS if heading != "GPU MiB")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variants", "fp12"], "'fp12'"),
        (["--variants", "bf16"], "it has: fp32, cpu, fp16"),
        (["--sizes", "9x32"], "FRAMESxHEIGHTxWIDTH"),
        (["--sizes", "4x16x16"], "1 + k * 2"),
        (["--sizes", "5x16x1600"], "width 1600 does not fit"),
        (["--batch", "0"], "--batch is 0"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--limit", "nan"], "--limit is nan"),
        (["--threads", "-1"], "--threads -1"),
        (["--device", "tpu"], "'tpu'"),
        (["--json", "no/such/folder/speed.json"], "--json no/such/folder/speed.json"),
    ],
)
def test_a_request_that_cannot_be_met_ends_with_2_before_anything_is_measured(
    exported, arguments, said, capsys, monkeypatch
):
    monkeypatch.setattr(measuring, "measure", None)
    assert main([str(exported.path), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert said in refused(capsys, "benchmark", exported.path, *arguments) or arguments[0] == "--device"


def checkpoint(exported, folder, config):
    state = {"model": exported.denoiser.state_dict(), "tokenizer": exported.tokenizer.state_dict()}
    return save_checkpoint(folder, config, state, {})


def test_pytorch_is_the_first_row_where_weights_are_given(exported, tmp_path, capsys):
    weights, out = checkpoint(exported, tmp_path / "weights", exported.config), tmp_path / "speed.json"
    arguments = ["--weights", weights, "--variants", "fp32", "--rounds", "1", "--threads", "1", "--json", out]
    cosmos_ref(["benchmark", *map(str, [exported.path, *arguments, "--sampling"])])
    eager, runtime = json.loads(out.read_text())["tables"][0]["rows"]
    assert (eager["name"], eager["ratio"], eager["failure"]) == ("torch fp32, eager", 1.0, "")
    assert runtime["ratio"] == pytest.approx(eager["seconds"] / runtime["seconds"])
    assert eager["clip_failure"] == "" and eager["clip_seconds"] > eager["seconds"]
    assert "torch fp32, eager" in capsys.readouterr().out


def test_pytorch_needs_weights_and_the_bundles_model(exported, tmp_path, capsys):
    assert "--weights" in refused(capsys, "benchmark", exported.path, "--compile")
    other = replace(exported.config, model=replace(exported.config.model, qk_norm_eps=1e-5))
    weights = checkpoint(exported, tmp_path / "other", other)
    assert "qk_norm_eps is 1e-05" in refused(capsys, "benchmark", exported.path, "--weights", weights)
    assert "tpu" in refused(capsys, "benchmark", exported.path, "--device", "tpu")
    assert "is not a bundle" in refused(capsys, "benchmark", tmp_path)


def test_the_peak_is_a_product_that_is_really_made():
    assert open_peak(8)[1]().shape == (8, 8)
