from dataclasses import replace

import pytest

from cosmos_ref.config import PRESETS, ModelConfig, TextConfig
from cosmos_ref.errors import UserError
from cosmos_ref.interop.names import from_ours, our_shapes, to_ours

MICRO = PRESETS["micro"]
TEXT2WORLD = replace(MICRO, model=replace(MICRO.model, video2world=False))
LAYOUTS = ["ours", "nvidia", "nvidia-training", "diffusers"]


def shapes_in(layout, config=MICRO):
    """A whole state dictionary in a layout: names and shapes."""
    shapes = our_shapes(config)
    return {theirs: shapes[ours] for ours, theirs in from_ours(layout, config).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [MICRO, TEXT2WORLD, PRESETS["tiny"]], ids=["micro", "t2w", "tiny"])
def test_there_and_back_is_nothing(layout, config):
    there = from_ours(layout, config)
    back = to_ours(shapes_in(layout, config), layout, config)
    assert {back[theirs]: theirs for theirs in back} == there
    assert len(set(there.values())) == len(there)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_the_network_has_a_name(layout):
    named = from_ours(layout, MICRO)
    assert [name for name in our_shapes(MICRO) if name.startswith("model.") and name not in named] == []


def test_the_release_has_these_names_and_shapes():
    """As read in NVIDIA's 7B Video2World checkpoint."""
    model = ModelConfig(width=4096, depth=28, num_heads=32, text_width=1024, adaln_lora_dim=256, video2world=True)
    shapes = shapes_in("nvidia", replace(MICRO, model=model, text=TextConfig("t5", 512, 1024)))
    expected = {
        "net.x_embedder.proj.1.weight": (4096, 72),
        "net.extra_pos_embedder.pos_emb_t": (128, 4096),
        "net.extra_pos_embedder.pos_emb_h": (120, 4096),
        "net.t_embedder.1.linear_2.weight": (12288, 4096),
        "net.affline_norm.weight": (4096,),
        "net.blocks.block27.blocks.0.block.attn.to_q.1.weight": (128,),
        "net.blocks.block0.blocks.1.block.attn.to_v.0.weight": (4096, 1024),
        "net.blocks.block9.blocks.2.block.layer2.weight": (4096, 16384),
        "net.blocks.block9.blocks.2.adaLN_modulation.2.weight": (12288, 256),
        "net.final_layer.adaLN_modulation.2.weight": (8192, 256),
        "net.final_layer.linear.weight": (64, 4096),
        "logvar.0.freqs": (128,),
        "logvar.0.phases": (128,),
        "logvar.1.weight": (1, 128),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert len(shapes) == 570 + 3


def test_the_release_without_its_prefix_is_the_same():
    shapes = shapes_in("nvidia")
    flat = {name.removeprefix("net."): shape for name, shape in shapes.items()}
    with_prefix, without = to_ours(shapes, "nvidia", MICRO), to_ours(flat, "nvidia", MICRO)
    assert without == {name.removeprefix("net."): ours for name, ours in with_prefix.items()}


@pytest.mark.parametrize("rename", [lambda n: n.replace("-", "."), lambda n: n.replace("net-", "")])
def test_the_average_may_be_written_with_dots_or_without_its_prefix(rename):
    shapes = shapes_in("nvidia-training")
    renamed = {rename(name) if name.startswith("ema.") else name: shape for name, shape in shapes.items()}
    assert set(to_ours(renamed, "nvidia-training", MICRO).values()) == set(our_shapes(MICRO))


def test_what_holds_no_weights_is_left_out():
    shapes = shapes_in("nvidia-training")
    more = {
        "model.net.pos_embedder.seq": (128,),
        "model.net.blocks.block0.blocks.0.block.attn.attn_op._extra_state": (0,),
        "ema.net-pos_embedder-seq": (128,),
        "ema.logvar-1-weight": (1, 128),
    }
    assert to_ours(shapes | more, "nvidia-training", MICRO) == to_ours(shapes, "nvidia-training", MICRO)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_problem_is_listed_at_once(layout):
    shapes = shapes_in(layout)
    lost, odd, *_ = shapes
    del shapes[lost]
    shapes |= {odd: (1, 2, 3), "stranger": (4,)}
    with pytest.raises(UserError) as raised:
        to_ours(shapes, layout, MICRO)
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 3
    assert any(lost in line and "missing" in line for line in lines)
    assert any(odd in line and "of another shape" in line for line in lines)
    assert any("stranger" in line and "unknown" in line for line in lines)


def test_a_text2world_model_is_not_taken_for_a_video2world_model():
    with pytest.raises(UserError, match=r"of another shape: net\.x_embedder\.proj\.1\.weight"):
        to_ours(shapes_in("nvidia", TEXT2WORLD), "nvidia", MICRO)


def test_half_an_uncertainty_is_refused():
    shapes = shapes_in("nvidia")
    del shapes["logvar.0.phases"]
    with pytest.raises(UserError, match=r"missing: logvar\.0\.phases"):
        to_ours(shapes, "nvidia", MICRO)
    without = {name: shape for name, shape in shapes.items() if not name.startswith("logvar")}
    assert len(to_ours(without, "nvidia", MICRO)) == len(without)


def test_a_tensor_that_is_there_twice_is_refused():
    shapes = shapes_in("nvidia-training")
    name = "ema.net-affline_norm-weight"
    with pytest.raises(UserError, match="there twice"):
        to_ours(shapes | {name.replace("-", "."): shapes[name]}, "nvidia-training", MICRO)


def test_a_layout_nobody_has_is_refused():
    with pytest.raises(UserError, match="nvidia-training"):
        from_ours("official", MICRO)
