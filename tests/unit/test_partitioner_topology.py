"""What may be computed on both sides: shapes, masks, decoded activations, and nothing that weighs anything.

ids  -> embed -> h0 ----> mix -> h1 ----> mix -> h2 -> out
mask -> cast -> sub -> bias --^------------^
"""

from __future__ import annotations

from partitioner.graph.cuts import prefix_candidates, separate
from partitioner.graph.topology import Step, TensorInfo, Topology

HIDDEN = TensorInfo("float32", (1, 64, 512))
MASK = TensorInfo("int64", (1, 64))
BIAS = TensorInfo("float32", (1, 1, 1, 64))
CODES = TensorInfo("uint8", (1, 64, 512))
WEIGHT = TensorInfo("float32", (512, 512))


def masked(**more: TensorInfo) -> Topology:
    steps = (
        Step("embed", "Gather", ("table", "ids"), ("h0",)),
        Step("cast", "Cast", ("mask",), ("mask_float",)),
        Step("sub", "Sub", ("one", "mask_float"), ("bias",)),
        Step("mix1", "MatMul", ("h0", "w"), ("g1",)),
        Step("add1", "Attention", ("g1", "bias"), ("h1",)),
        Step("mix2", "MatMul", ("h1", "w"), ("g2",)),
        Step("add2", "Attention", ("g2", "bias"), ("h2",)),
        Step("last", "MatMul", ("h2", "w"), ("out",)),
    )
    hidden = dict.fromkeys(("h0", "g1", "h1", "g2", "h2", "out"), HIDDEN)
    tensors = {
        "ids": MASK,
        "mask": MASK,
        "mask_float": BIAS,
        "bias": BIAS,
        "table": TensorInfo("float32", (30000, 512)),
    }
    one = TensorInfo("float32", ())
    return Topology(("ids", "mask"), ("out",), steps, {**tensors, **hidden, "w": WEIGHT, "one": one, **more})


def names_of(topology: Topology) -> set[str]:
    return {topology.steps[i].name for i in topology.recomputed}


def test_mask_arithmetic_is_recomputed_and_rests_on_the_mask() -> None:
    topology = masked()
    assert names_of(topology) == {"cast", "sub"}
    assert topology.bases["bias"] == {"mask"}


def test_an_embedding_table_is_not_copied_to_both_sides() -> None:
    assert "h0" not in masked().bases
    assert "h0" in masked(table=TensorInfo("float32", (100, 512))).bases


def test_a_mask_that_costs_real_work_is_sent() -> None:
    wide = TensorInfo("float32", (1, 64, 64, 64))
    assert names_of(masked(mask_float=wide, bias=wide)) == set()


def test_an_input_may_cross_and_what_follows_from_it_is_on_both_sides() -> None:
    topology = masked()
    sides = separate(topology, ["h1", "mask"])
    both = {topology.steps[i].name for i in sides.head_steps & sides.tail_steps}
    assert both == {"cast", "sub"}
    assert {topology.steps[i].name for i in sides.tail_steps} == {"cast", "sub", "mix2", "add2", "last"}


def test_a_small_input_crosses_rather_than_what_follows_from_it() -> None:
    cuts = [("mask", "h0"), ("mask", "g1"), ("mask", "h1"), ("mask", "g2"), ("h2",)]
    assert [c.cut for c in prefix_candidates(masked())] == cuts


def test_of_a_large_input_and_what_follows_from_it_the_smaller_crosses() -> None:
    large, row = TensorInfo("int64", (1, 4096)), TensorInfo("float32", (1, 4096))
    assert prefix_candidates(masked(mask=large, mask_float=row, bias=row))[0].cut == ("h0", "bias")
    square = TensorInfo("float32", (1, 8, 32, 64))
    assert prefix_candidates(masked(mask=large, mask_float=row, bias=square))[0].cut == ("mask", "h0")


def test_a_mask_is_never_sent_as_eight_bit_codes() -> None:
    topology = masked()
    assert topology.crosses_as_codes("h1")
    assert not topology.crosses_as_codes("bias")


def test_the_shape_of_what_crosses_is_taken_where_it_arrives() -> None:
    steps = (
        Step("conv", "Conv", ("x", "w"), ("a",)),
        Step("shape", "Shape", ("a",), ("size",)),
        Step("work", "Relu", ("a",), ("b",)),
        Step("resize", "Resize", ("b", "size"), ("out",)),
    )
    image = TensorInfo("float32", (1, 3, 32, 32))
    tensors = {"x": image, "a": image, "b": image, "out": image, "size": TensorInfo("int64", (4,))}
    topology = Topology(("x",), ("out",), steps, tensors)
    assert topology.bases == {"size": {"a"}}
    assert separate(topology, ["a"]).tail_steps == {1, 2, 3}
    # Behind the Relu the shape crosses, not the tensor it is the shape of.
    assert [c.cut for c in prefix_candidates(topology)] == [("a",), ("size", "b")]
    assert separate(topology, ["size", "b"]).tail_steps == {3}


def quantised() -> Topology:
    steps = (
        Step("conv", "Conv", ("x", "w"), ("a",)),
        Step("quantise", "QuantizeLinear", ("a", "scale", "zero"), ("q",)),
        Step("decode1", "DequantizeLinear", ("q", "scale", "zero"), ("d1",)),
        Step("branch1", "Relu", ("d1",), ("b1",)),
        Step("decode2", "DequantizeLinear", ("q", "scale", "zero"), ("d2",)),
        Step("branch2", "Add", ("d2", "b1"), ("out",)),
    )
    tensors = {**dict.fromkeys(("x", "a", "d1", "d2", "b1", "out"), HIDDEN), "q": CODES}
    return Topology(("x",), ("out",), steps, tensors)


def test_quantised_models_are_cut_at_the_codes() -> None:
    topology = quantised()
    cuts = [c.cut for c in prefix_candidates(topology)]
    assert cuts == [("a",), ("q",), ("q", "b1")]
    sides = separate(topology, ["q"])
    assert {topology.steps[i].name for i in sides.tail_steps} == {"decode1", "branch1", "decode2", "branch2"}
    assert {topology.steps[i].name for i in sides.head_steps} == {"conv", "quantise"}
    assert not topology.crosses_as_codes("q")
    assert topology.wire_nbytes("q") == 64 * 512


def test_images_in_whole_numbers_are_recomputed_only_while_that_is_cheap() -> None:
    steps = (
        Step("cast", "Cast", ("x",), ("f",)),
        Step("scale", "Mul", ("f", "k"), ("n",)),
        Step("conv", "Conv", ("n", "w"), ("a",)),
        Step("skip", "Add", ("a", "n"), ("out",)),
    )
    image = TensorInfo("float32", (1, 3, 64, 64))
    kernel = TensorInfo("float32", (3, 3, 3, 3))
    tensors = {"x": TensorInfo("uint8", (1, 3, 64, 64)), "w": kernel, **dict.fromkeys(("f", "n", "a", "out"), image)}
    small = Topology(("x",), ("out",), steps, tensors)
    assert small.recomputed == frozenset()
    large = Topology(("x",), ("out",), steps, {**tensors, "w": TensorInfo("float32", (3, 512, 3, 3))})
    assert names_of(large) == {"cast", "scale"}


def test_the_only_float_input_is_no_side_input() -> None:
    steps = (Step("norm", "Sub", ("x", "mean"), ("n",)), Step("fc", "MatMul", ("n", "w"), ("out",)))
    tensors = dict.fromkeys(("x", "n", "out"), HIDDEN)
    topology = Topology(("x",), ("out",), steps, {**tensors, "w": TensorInfo("float32", (512, 4096))})
    assert topology.recomputed == frozenset()
    assert [c.cut for c in prefix_candidates(topology)] == [("n",)]


def test_what_a_body_draws_by_chance_is_live() -> None:
    steps = (Step("if", "If", ("k",), ("r",), True), Step("add", "Add", ("x", "r"), ("out",)))
    assert "r" in Topology(("x",), ("out",), steps, {}).live
