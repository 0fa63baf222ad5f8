"""Declared inputs: the grammar, what it refuses, and graphs that compute what numpy and Pillow compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from partitioner.graph.canvas import short_side
from partitioner.graph.inputs import InputSpec, Size, parse
from partitioner.graph.preprocess import compile_input, front, least_opset
from protocol.engines.ort import OrtEngine
from protocol.errors import InputError, ModelError
from tests import models

IMAGENET = "scale=1/255,mean=0.485/0.456/0.406,std=0.229:0.224:0.225"


# ---- the grammar ----------------------------------------------------------------------------------------------------


def one(text: str) -> InputSpec:
    (spec,) = parse([text])
    return spec


def test_a_name_alone_declares_an_image_in_rows_of_pixels() -> None:
    assert one("image") == InputSpec("image")
    assert one("image").layout == "nhwc"


def test_every_key_is_read() -> None:
    spec = one(
        "x,kind=image,layout=nchw,model=nhwc,colour=bgr,channels=3,size=480x640,resize=256,crop=224x192,"
        "interpolation=linear,scale=1/255,mean=0.485/0.456/0.406,std=0.229:0.224:0.225"
    )
    assert spec == InputSpec(
        "x",
        layout="nchw",
        model_layout="nhwc",
        colour="bgr",
        channels=3,
        size=Size(480, 640),
        resize=256,
        crop=Size(224, 192),
        interpolation="linear",
        scale=(1 / 255,),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def test_a_crop_is_pixels_or_with_a_point_a_fraction() -> None:
    assert one("x,crop=224").crop == Size(224, 224)
    assert one("x,crop=0.875").crop == 0.875
    assert one("x,resize=100x200").resize == Size(100, 200)


def test_several_inputs_are_declared_by_several_flags() -> None:
    assert [spec.name for spec in parse(["left", "right,mean=1"])] == ["left", "right"]
    assert parse([]) == ()


def test_what_is_printed_reads_back() -> None:
    spec = one("x,layout=nchw,crop=0.875,resize=224x256,size=480x640,mean=1/2/3,std=127.5")
    assert one(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no input is named"),
        ("mean=1", "no input is named"),
        ("x,mean", "'mean' has no value; write KEY=VALUE"),
        ("x,means=1", "unknown key 'means'; keys are kind, layout, model, colour"),
        ("x,mean=1,mean=2", "mean is given twice"),
        ("x,mean=a", "mean=a is not understood; mean is a number, or one per channel"),
        ("x,mean=1/2/3/4/5", "mean=1/2/3/4/5 is not understood"),
        ("x,mean=nan", "mean=nan is not understood"),
        ("x,std=0", "std=0 is not understood; std is a number, or one per channel such as 0.485/0.456/0.406; not 0"),
        ("x,std=1/0/1", "not 0"),
        ("x,scale=1/0", "not 0"),
        ("x,layout=hwc", "layout=hwc is not understood; layout is nhwc or nchw"),
        ("x,kind=text", "kind is image"),
        ("x,colour=hsv", "colour is rgb or bgr"),
        ("x,interpolation=area", "interpolation is antialias or linear or cubic"),
        ("x,size=480", "size is HEIGHTxWIDTH in pixels"),
        ("x,size=0x4", "size is HEIGHTxWIDTH in pixels"),
        ("x,size=99999x4", "size is HEIGHTxWIDTH in pixels"),
        ("x,resize=0.5", "resize is the short side's pixels"),
        ("x,resize=-3", "resize is the short side's pixels"),
        ("x,crop=1.5", "or a fraction such as 0.875"),
        ("x,crop=0.0", "or a fraction such as 0.875"),
        ("x,channels=2", "channels is 1, 3 or 4"),
        ("x,resize=200,crop=224", "crop=224x224 does not fit into what resize=200 leaves; resize to at least 224"),
        ("x,resize=200x300,crop=100x301", "crop=100x301 does not fit into what resize=200x300 leaves"),
        ("x,channels=1,colour=bgr", "colour=bgr with one channel"),
    ],
)
def test_wrong_declarations_are_answered_with_what_is_known(text: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        parse([text])
    assert what in str(caught.value)


def test_an_input_is_declared_once() -> None:
    with pytest.raises(InputError, match="'x' is declared twice"):
        parse(["x", "x,mean=1"])


@settings(max_examples=300)
@given(st.text(alphabet="x,=./:@0123456789meanstdcropsiz", max_size=40))
def test_any_text_is_a_declaration_or_an_input_error(text: str) -> None:
    try:
        specs = parse([text])
    except InputError:
        return
    assert all(isinstance(spec, InputSpec) for spec in specs)


def in_file(folder: Path, document: Any) -> str:
    path = folder / "spec.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def test_a_json_file_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    document = {"name": "x", "scale": "1/255", "mean": [0.485, 0.456, 0.406], "resize": 256, "crop": [224, 224]}
    spec = one("x,scale=1/255,mean=0.485/0.456/0.406,resize=256,crop=224")
    path = in_file(tmp_path, document)
    assert parse([path]) == parse([f"@{path}"]) == (spec,)
    assert parse([in_file(tmp_path, [{"name": "a"}, {"name": "b", "size": "4x5"}])]) == (one("a"), one("b,size=4x5"))


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ("{", "is no JSON document"),
        ("[" * 100_000, "is no JSON document"),
        ([], "declares no input"),
        ([3], "declares no input"),
        ({"mean": 1}, "no input is named"),
        ({"name": 3}, "no input is named"),
        ({"name": "x", "mean": True}, "mean is true; give a number"),
        ({"name": "x", "mean": {"r": 1}}, "give a number, a text, or a list of numbers"),
        ({"name": "x", "mean": []}, "mean is []"),
        ({"name": "x", "means": 1}, "unknown key 'means'"),
        ('{"name": "x", "mean": 1, "mean": 2}', "mean is given twice"),
        ({"name": "x", "std": [1, 0, 1]}, "not 0"),
        ({"name": "x", "size": [1, 2, 3]}, "size=1x2x3 is not understood"),
    ],
)
def test_wrong_json_is_answered_with_what_is_known(tmp_path: Path, document: Any, what: str) -> None:
    with pytest.raises(InputError) as caught:
        parse([in_file(tmp_path, document)])
    assert what in str(caught.value)


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        parse([str(tmp_path / "none.json")])
    with pytest.raises(InputError, match="cannot be read"):
        parse([f"@{tmp_path}"])


# ---- graphs ---------------------------------------------------------------------------------------------------------


def through(shape: tuple[Any, ...], *, dtype: int = TensorProto.FLOAT, opset: int = 18) -> ir.Model:
    """image -> Identity -> seen; what the model would see is what it answers."""
    net = models.Net()
    net.add("Identity", ["image"], "seen")
    graph = helper.make_graph(
        net.nodes,
        "through",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info("seen", dtype, shape)],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def bytes_of(model: ir.Model) -> bytes:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def seen(text: str, pictures: Any, shape: tuple[Any, ...] = ("N", 3, "H", "W"), **options: Any) -> Any:
    """What a model with an input of `shape` sees of uint8 pictures that are declared by `text`."""
    model = compile_input(through(shape, **options), parse([f"image,{text}".rstrip(",")]))
    with OrtEngine(bytes_of(model), label="through") as engine:
        return engine.infer({"image": pictures})["seen"]


def noise(*shape: int) -> Any:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def planes(pictures: Any) -> Any:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32)


def pillow(picture: Any, size: tuple[int, int], how: Image.Resampling) -> Any:
    return np.asarray(Image.fromarray(picture).resize(size[::-1], how)).astype(np.float32).transpose(2, 0, 1)


def test_the_arithmetic_is_numpys_bit_for_bit() -> None:
    image = noise(2, 5, 7, 3)
    scale, mean, std = (
        np.array(v, np.float32).reshape(-1, 1, 1) for v in ([1 / 255], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    assert np.array_equal(seen(IMAGENET, image), (planes(image) * scale - mean) / std)
    assert np.array_equal(seen("mean=127.5,std=127.5", image), (planes(image) - np.float32(127.5)) / np.float32(127.5))
    assert np.array_equal(seen("", image), planes(image))


@pytest.mark.parametrize("theirs", ["nhwc", "nchw"])
@pytest.mark.parametrize("models_own", ["nhwc", "nchw"])
def test_every_pair_of_layouts_meets(theirs: str, models_own: str) -> None:
    image = noise(2, 5, 7, 3)
    given = image if theirs == "nhwc" else np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    shape = (2, 5, 7, 3) if models_own == "nhwc" else (2, 3, 5, 7)
    wanted = (image if models_own == "nhwc" else planes(image)) - np.array([1, 2, 3], np.float32).reshape(
        (3,) if models_own == "nhwc" else (3, 1, 1)
    )
    assert np.array_equal(seen(f"layout={theirs},mean=1/2/3", given, shape), wanted)


def test_the_channel_order_is_turned_before_the_arithmetic() -> None:
    image = noise(1, 4, 4, 3)
    wanted = planes(image)[:, ::-1] - np.array([1, 2, 3], np.float32).reshape(3, 1, 1)
    assert np.array_equal(seen("colour=bgr,mean=1/2/3", image), wanted)


@pytest.mark.parametrize("size", ["size=9x12,", ""])
@pytest.mark.parametrize(
    ("crop", "rows", "columns"),
    [("4x5", slice(2, 6), slice(3, 8)), ("0.5", slice(2, 6), slice(3, 9)), ("0.9", slice(0, 8), slice(1, 11))],
)
def test_crops_are_central_whether_the_size_is_known_or_not(size: str, crop: str, rows: slice, columns: slice) -> None:
    image = noise(2, 9, 12, 3)
    assert np.array_equal(seen(f"{size}crop={crop}", image), planes(image)[:, :, rows, columns])


@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize(
    ("interpolation", "how"), [("antialias", Image.Resampling.BILINEAR), ("cubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize("target", [(24, 31), (33, 90), (64, 80)])
def test_filtered_resizing_is_pillows_within_its_rounding(
    interpolation: str, how: Image.Resampling, size: bool, target: tuple[int, int]
) -> None:
    # Far from black and white: Pillow clips between its two passes, the graph after both.
    image = noise(2, 48, 64, 3) // 2 + 64
    text = f"resize={target[0]}x{target[1]},interpolation={interpolation}" + (",size=48x64" if size else "")
    got = seen(text, image)
    for mine, picture in zip(got, image, strict=True):
        difference = np.abs(mine - pillow(picture, target, how))
        assert difference.max() <= 1.5
        assert difference.mean() < 0.35  # two roundings to 8 bits


@pytest.mark.parametrize("size", [True, False])
def test_linear_resizing_takes_the_nearest_four_pixels(size: bool) -> None:
    image = noise(1, 6, 8, 3)
    # Halving with half-pixel centres is the mean of each two by two block.
    wanted = planes(image).reshape(1, 3, 3, 2, 4, 2).mean((3, 5))
    text = "resize=3x4,interpolation=linear" + (",size=6x8" if size else "")
    assert np.allclose(seen(text, image, opset=13), wanted, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(50, 67), (67, 50), (40, 40)])
def test_the_short_side_is_resized_and_the_long_one_follows_whether_the_size_is_known_or_not(
    height: int, width: int
) -> None:
    image = noise(1, height, width, 3)
    to = short_side(Size(height, width), 32)
    assert min(to.height, to.width) == 32
    free = seen("resize=32", image)
    fixed = seen(f"resize=32,size={height}x{width}", image)
    assert free.shape == fixed.shape == (1, 3, to.height, to.width)
    assert np.abs(free - fixed).max() < 0.01
    assert np.abs(free[0] - pillow(image[0], (to.height, to.width), Image.Resampling.BILINEAR)).max() <= 1.01


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.integers(1, 600))
def test_the_resized_size_is_exact_for_every_size(height: int, width: int, to_height: int, to_width: int) -> None:
    spec = parse([f"image,size={height}x{width},resize={to_height}x{to_width},interpolation=linear"])
    model = compile_input(through(("N", 1, "H", "W")), spec)
    values = {i.name: np.asarray(i.const_value) for i in model.graph.initializers.values()}
    if "image/scales" in values:
        for precision in (np.float32, np.float64):  # ONNX Runtime's kernel and ONNX's shape inference
            scaled = np.array([1, 1, height, width], precision) * values["image/scales"].astype(precision)
            assert np.floor(scaled).astype(int).tolist() == [1, 1, to_height, to_width]


def test_a_fraction_is_cropped_before_and_pixels_after_the_resize() -> None:
    image = noise(1, 64, 64, 3)
    before = image[0, 8:56, 8:56]
    got = seen("crop=0.75,resize=24x24", image)
    assert np.abs(got[0] - pillow(before, (24, 24), Image.Resampling.BILINEAR)).max() <= 1.01
    after = pillow(image[0], (32, 32), Image.Resampling.BILINEAR)[:, 4:28, 4:28]
    assert np.abs(seen("resize=32,crop=24", image)[0] - after).max() <= 1.01


def test_half_precision_models_get_half_precision() -> None:
    got = seen("mean=127.5,std=127.5", noise(1, 4, 4, 3), ("N", 3, 4, 4), dtype=TensorProto.FLOAT16)
    assert got.dtype == np.float16


def test_a_model_that_takes_images_itself_gets_another_layout_only() -> None:
    image = noise(1, 4, 5, 3)
    got = seen("", image, (1, 3, 4, 5), dtype=TensorProto.UINT8)
    assert np.array_equal(got, image.transpose(0, 3, 1, 2))
    unchanged = compile_input(through((1, 4, 5, 3), dtype=TensorProto.UINT8), parse(["image"]))
    assert [node.op_type for node in unchanged.graph] == ["Identity"]
    with pytest.raises(ModelError, match="takes 8-bit images"):
        seen("mean=1", image, (1, 3, 4, 5), dtype=TensorProto.UINT8)


def signature(model: ir.Model) -> tuple[Any, ...]:
    (value,) = model.graph.inputs
    return value.name, value.dtype.name, tuple(str(d) for d in value.shape)


def test_the_input_keeps_its_name_and_its_batch_dimension() -> None:
    free = compile_input(through(("batch", 3, 8, 9)), parse(["image"]))
    assert signature(free) == ("image", "UINT8", ("batch", "8", "9", "3"))
    fixed = compile_input(through((4, 3, 8, 9)), parse(["image,layout=nchw,resize=8x9"]))
    assert signature(fixed) == ("image", "UINT8", ("4", "3", "image.height", "image.width"))
    sized = compile_input(through((1, 3, 8, 9)), parse(["image,resize=8x9,size=30x40"]))
    assert signature(sized) == ("image", "UINT8", ("1", "30", "40", "3"))


def test_cast_comes_first_since_tensorrt_takes_bytes_nowhere_else() -> None:
    text = "image,size=30x40,crop=0.9,resize=20x30,colour=bgr,mean=1,scale=2,std=3"
    model = compile_input(through(("N", 3, 20, 30)), parse([text]))
    assert [node.op_type for node in model.graph] == [
        "Cast", "Slice", "Transpose", "Resize", "Gather", "Mul", "Sub", "Div", "Identity",
    ]  # fmt: skip
    assert model.graph.inputs[0].uses()[0].node.op_type == "Cast"


def test_steps_that_change_nothing_are_left_out() -> None:
    model = compile_input(through(("N", 3, 8, 8)), parse(["image,size=8x8,crop=8,resize=8x8,layout=nchw,std=1"]))
    assert [node.op_type for node in model.graph] == ["Cast", "Identity"]


def test_a_body_that_captures_the_input_sees_what_was_prepared() -> None:
    bodies = [
        helper.make_graph([helper.make_node(op, ["image"], [f"{op}.out"])], op, [], [_float(f"{op}.out", 1, 1, 2, 2)])
        for op in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["bright"]),
        helper.make_node("If", ["bright"], ["seen"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    limit = onnx.numpy_helper.from_array(np.array(0, np.float32), "limit")
    graph = helper.make_graph(nodes, "branches", [_float("image", 1, 1, 2, 2)], [_float("seen", 1, 1, 2, 2)], [limit])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = compile_input(ir.from_proto(proto), parse(["image,mean=100"]))
    with OrtEngine(bytes_of(model), label="branches") as engine:
        dark = engine.infer({"image": np.full((1, 2, 2, 1), 30, np.uint8)})["seen"]
        light = engine.infer({"image": np.full((1, 2, 2, 1), 130, np.uint8)})["seen"]
    assert dark.ravel().tolist() == [70.0] * 4
    assert light.ravel().tolist() == [30.0] * 4


def _float(name: str, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_the_front_alone_computes_what_the_model_used_to_take() -> None:
    specs = parse([f"image,{IMAGENET},size=20x24,resize=16,crop=16"])
    image = noise(2, 20, 24, 3)
    with OrtEngine(bytes_of(front(through(("N", 3, 16, 16)), specs)), label="front") as engine:
        prepared = engine.infer({"image/given": image})["image"]
    whole = compile_input(through(("N", 3, 16, 16)), specs)
    with OrtEngine(bytes_of(whole), label="whole", optimise=False) as engine:
        assert np.array_equal(engine.infer({"image": image})["seen"], prepared)


def test_antialiasing_needs_opset_18_and_nothing_else_does() -> None:
    assert least_opset(parse(["image,resize=4x4"])) == 18
    assert least_opset(parse(["image,resize=4x4,interpolation=linear", "b,crop=4"])) == 13
    with pytest.raises(
        ModelError, match="needs opset 18 but the model has 17; export it with opset 18 or newer, or de"
    ):
        seen("resize=4x4", noise(1, 8, 8, 3), opset=17)


@pytest.mark.parametrize(
    ("text", "shape", "what"),
    [
        ("y", ("N", 3, 8, 8), "the model has no input 'y'; declare one of its own: image"),
        ("image", ("N", 3), "image: float [N, 3] is no image"),
        ("image", ("N", 3, 8, 3), "does not say which of its dimensions holds the channels; declare model=nchw"),
        ("image", ("N", 5, 8, 8), "does not say which of its dimensions holds the channels"),
        ("image,model=nchw", ("N", "C", 8, 8), "free number of channels; declare channels=3"),
        ("image,model=nchw,channels=1", ("N", 3, 8, 8), "has 3 channels; it cannot take channels=1"),
        ("image,colour=bgr", ("N", 1, 8, 8), "has 1 channels; colour=bgr needs three"),
        ("image,mean=1/2/3", ("N", 1, 8, 8), "mean of input 'image' has 3 numbers but the image has 1 channels"),
        ("image,size=9x9", ("N", 3, 8, 8), "end in pictures of 9x9; the model takes 8x8"),
        ("image,resize=9x9", ("N", 3, 8, 8), "end in pictures of 9x9; the model takes 8x8"),
        ("image,size=16x24,resize=8", ("N", 3, 8, 8), "end in pictures of 8x12; the model takes 8x8"),
        ("image,resize=8", ("N", 3, 8, 8), "leave the picture's size open; the model takes 8x8: declare size="),
        ("image,crop=0.5", ("N", 3, 8, 8), "leave the picture's size open"),
        ("image,size=6x20,crop=8", ("N", 3, 8, 8), "crop=8x8 of pictures of 6x20; crop less"),
    ],
)
def test_declarations_that_do_not_fit_the_model_are_refused(text: str, shape: tuple[Any, ...], what: str) -> None:
    with pytest.raises(ModelError) as caught:
        compile_input(through(shape), parse([text]))
    assert what in str(caught.value)


def test_an_input_of_tokens_is_no_image() -> None:
    with pytest.raises(ModelError, match="is no image"):
        compile_input(through(("N", 3, 8, 8), dtype=TensorProto.INT64), parse(["image"]))


def test_an_input_that_is_an_output_as_well_stays_what_it_is() -> None:
    model = through(("N", 3, 8, 8))
    model.graph.outputs.append(model.graph.inputs[0])
    with pytest.raises(ModelError, match="is an output of the model as well"):
        compile_input(model, parse(["image"]))
