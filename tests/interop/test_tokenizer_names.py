import pytest

from cosmos_ref.config import TOKENIZERS
from cosmos_ref.errors import UserError
from cosmos_ref.interop.tokenizer_names import (
    nvidia_constants,
    recognise_tokenizer,
    recognise_tokenizer_layout,
    tokenizer_names,
    tokenizer_shapes,
    tokenizer_to_ours,
)
from tests.interop.files import DISCRETE, MICRO, jit_files
from tests.tokenizer.small import SMALL


@pytest.fixture(scope="module", params=SMALL)
def config(request):
    return SMALL[request.param]


def diffusers_shapes(config):
    ours = tokenizer_shapes(config)
    return {theirs: ours[name] for name, theirs in tokenizer_names(config, "diffusers").items()}


def test_to_diffusers_and_back_every_weight_has_its_own_name(config):
    names = tokenizer_names(config, "diffusers")
    back = tokenizer_to_ours(diffusers_shapes(config), "diffusers", config)
    assert {ours: theirs for theirs, ours in back.items()} == names
    assert tokenizer_shapes(config).keys() - names.keys() == {"mean", "std"}


def test_missing_and_unknown_names_are_all_listed(config):
    shapes = diffusers_shapes(config)
    spoilt = {f"loss.{name}" if name.startswith("quant_conv") else name: shape for name, shape in shapes.items()}
    with pytest.raises(UserError) as raised:
        tokenizer_to_ours(spoilt, "diffusers", config)
    assert str(raised.value).splitlines()[1:] == [
        "  missing: quant_conv.bias",
        "  missing: quant_conv.weight",
        "  unknown: loss.quant_conv.bias",
        "  unknown: loss.quant_conv.weight",
    ]


def test_weights_of_the_other_tokenizer_are_refused():
    with pytest.raises(UserError, match=r"missing: decoder\.up_blocks\.0\.resnets\.2(?s:.*)and \d+ more"):
        tokenizer_to_ours(diffusers_shapes(SMALL["CV4x8x8"]), "diffusers", SMALL["CV8x8x8"])


# NVIDIA's names -------------------------------------------------------------------------------------------

# How diffusers' published converter turns NVIDIA's names into its own: these strings, in this order.
CONVERTER = [
    ("down.0", "down_blocks.0"),
    ("down.1", "down_blocks.1"),
    ("down.2", "down_blocks.2"),
    ("up.0", "up_blocks.2"),
    ("up.1", "up_blocks.1"),
    ("up.2", "up_blocks.0"),
    (".block.", ".resnets."),
    ("downsample", "downsamplers.0"),
    ("upsample", "upsamplers.0"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.attn_1.0", "mid_block.attentions.0"),
    ("mid.attn_1.1", "mid_block.temp_attentions.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    (".q.conv3d", ".to_q"),
    (".k.conv3d", ".to_k"),
    (".v.conv3d", ".to_v"),
    (".proj_out.conv3d", ".to_out.0"),
    (".0.conv3d", ".conv_s"),
    (".1.conv3d", ".conv_t"),
    ("conv1.conv3d", "conv1"),
    ("conv2.conv3d", "conv2"),
    ("conv3.conv3d", "conv3"),
    ("nin_shortcut.conv3d", "conv_shortcut"),
    ("quant_conv.conv3d", "quant_conv"),
]


def shapes_of(config):
    return {name: tuple(t.shape) for name, t in jit_files(config)[1].items()}


@pytest.mark.parametrize("name", ["CV8x8x8", "CV4x8x8"])
def test_by_way_of_nvidia_every_tensor_arrives_where_diffusers_converter_puts_it(name):
    theirs = dict(tokenizer_names(TOKENIZERS[name], "nvidia"))
    for ours, expected in tokenizer_names(TOKENIZERS[name], "diffusers").items():
        for old, new in CONVERTER:
            theirs[ours] = theirs[ours].replace(old, new)
        assert theirs[ours] == expected


@pytest.mark.parametrize("config", [*SMALL.values(), DISCRETE], ids=[*SMALL, "discrete"])
def test_every_tensor_of_nvidias_modules_is_ours_or_a_constant(config):
    shapes = shapes_of(config)
    names = tokenizer_to_ours(shapes, "nvidia", config)
    weights = {name: shape for name, shape in tokenizer_shapes(config).items() if name not in ("mean", "std")}
    assert {ours: shapes[theirs] for theirs, ours in names.items()} == weights
    assert shapes.keys() - names.keys() == {name for name in nvidia_constants(config) if "inv_quant" not in name}


def test_time_is_not_taken_for_space_nor_the_first_level_for_the_last():
    names = tokenizer_names(TOKENIZERS["CV4x8x8"], "nvidia")
    expected = {
        "encoder.levels.0.resample.space.conv.weight": "encoder.down.0.downsample.conv1.conv3d.weight",
        "encoder.levels.0.resample.time.conv.weight": "encoder.down.0.downsample.conv2.conv3d.weight",
        "decoder.levels.1.resample.time.conv.weight": "decoder.up.1.upsample.conv1.conv3d.weight",
        "decoder.levels.1.resample.space.conv.weight": "decoder.up.1.upsample.conv2.conv3d.weight",
        "decoder.levels.0.resnets.2.conv1.time.bias": "decoder.up.2.block.2.conv1.1.conv3d.bias",
        "decoder.mid.temporal_attention.to_out.bias": "decoder.mid.attn_1.1.proj_out.conv3d.bias",
        "encoder.norm_out.weight": "encoder.norm_out.norm.weight",
        "post_quant_conv.weight": "post_quant_conv.conv3d.weight",
    }
    assert {ours: names.get(ours) for ours in expected} == expected


def test_only_the_constants_known_by_name_are_left_out():
    config = SMALL["CV8x8x8"]
    shapes = shapes_of(config)
    for stranger in ("encoder.wavelets", "encoder.patcher3d.scale", "quantizer._levels", "loss.wavelets"):
        with pytest.raises(UserError, match=f"unknown: {stranger}"):
            tokenizer_to_ours(shapes | {stranger: (2,)}, "nvidia", config)


def test_what_does_not_fit_is_listed_up_to_ten_and_counted():
    config = SMALL["CV8x8x8"]
    shapes = shapes_of(config)
    del shapes["quant_conv.conv3d.bias"]
    shapes["post_quant_conv.conv3d.weight"] = (1, 2)
    with pytest.raises(UserError) as raised:
        tokenizer_to_ours(shapes, "nvidia", config)
    assert str(raised.value).splitlines()[1:] == [
        "  missing: quant_conv.conv3d.bias",
        "  of another shape: post_quant_conv.conv3d.weight is (1, 2), should be (5, 5, 1, 1, 1)",
    ]
    with pytest.raises(UserError, match=r"and \d\d\d more$"):
        tokenizer_to_ours({}, "nvidia", config)


@pytest.mark.parametrize("layout", ["ours", "nvidia", "diffusers"])
def test_layout_and_tokenizer_are_recognised_by_names_and_shapes(layout):
    for name, config in TOKENIZERS.items():
        if layout == "diffusers" and config.fsq_levels:
            continue
        ours = tokenizer_shapes(config)
        shapes = {theirs: ours[name] for name, theirs in tokenizer_names(config, layout).items()}
        assert recognise_tokenizer_layout(shapes) == layout
        assert recognise_tokenizer(shapes, layout) == name
        other = TOKENIZERS["CV8x8x8" if name == "CV4x8x8" else "CV4x8x8"]
        with pytest.raises(UserError, match=f"but of {name}"):
            tokenizer_to_ours(shapes, layout, other)


def test_the_wavelet_tokenizer_has_no_names_elsewhere():
    with pytest.raises(UserError, match="ours alone"):
        tokenizer_names(MICRO.tokenizer, "nvidia")
