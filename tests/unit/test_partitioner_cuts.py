"""Cuts over toy graphs drawn in names alone; no ONNX here.

x -> a -> b -> c -> out        and a diamond:  x -> a -> b -> sum -> out
                                                     `--------^
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.graph.cuts import prefix_candidates, resolve, separate
from partitioner.graph.topology import Step, TensorInfo, Topology
from protocol.errors import InputError, ModelError


def topology(*steps: str, outputs: str = "out", inputs: str = "x") -> Topology:
    """Steps written as "name: in1 in2 -> out1 out2"."""
    parsed = []
    for text in steps:
        name, _, rest = text.partition(":")
        reads, _, writes = rest.partition("->")
        parsed.append(Step(name.strip(), "Relu", tuple(reads.split()), tuple(writes.split())))
    names = {n for s in parsed for n in (*s.inputs, *s.outputs)} | set(inputs.split())
    tensors = {n: TensorInfo("float32", (1, 4)) for n in names}
    return Topology(tuple(inputs.split()), tuple(outputs.split()), tuple(parsed), tensors)


CHAIN = topology("n1: x -> a", "n2: a -> b", "n3: b -> c", "n4: c -> out")
DIAMOND = topology("n1: x -> a", "n2: a -> b", "n3: a b -> sum", "n4: sum -> out")


def test_a_chain_is_cut_into_what_lies_before_and_behind() -> None:
    sides = separate(CHAIN, ["b"])
    assert sides.head_steps == {0, 1}
    assert sides.tail_steps == {2, 3}
    assert sides.head_outputs == ()
    assert sides.tail_outputs == ("out",)


def test_a_skip_connection_that_also_crosses_is_named() -> None:
    with pytest.raises(ModelError, match=r"'b' does not separate .*: 'a' also crosses; use --cut b,a"):
        separate(DIAMOND, ["b"])
    assert separate(DIAMOND, ["b", "a"]).tail_steps == {2, 3}


def test_a_model_input_that_goes_around_the_cut_is_named() -> None:
    around = topology("n1: x -> a", "n2: a mask -> out", inputs="x mask")
    with pytest.raises(ModelError, match="'mask' also crosses"):
        separate(around, ["a"])
    assert separate(around, ["a", "mask"]).cut == ("a", "mask")


def test_a_branch_beside_the_head_leaks_where_both_meet() -> None:
    parallel = topology("n1: x -> a", "n2: a -> b", "n3: a -> side", "n4: b side -> out")
    with pytest.raises(ModelError, match="'a' also crosses"):
        separate(parallel, ["b"])


def test_outputs_made_before_the_cut_stay_with_the_head() -> None:
    early = topology("n1: x -> a", "n2: a -> early", "n3: a -> b", "n4: b -> out", outputs="early out")
    sides = separate(early, ["a"])
    assert sides.tail_outputs == ("early", "out")
    sides = separate(early, ["b"])
    assert sides.head_outputs == ("early",)
    assert sides.tail_outputs == ("out",)
    assert 1 in sides.head_steps


def test_a_crossing_tensor_that_is_an_output_is_returned_by_the_head() -> None:
    both = topology("n1: x -> a", "n2: a -> out", outputs="a out")
    assert separate(both, ["a"]).head_outputs == ("a",)
    assert not both.crosses_as_codes("a")


def test_steps_that_depend_on_no_input_are_on_both_sides() -> None:
    shared = topology("k: -> k", "n1: x k -> a", "n2: a k -> out")
    sides = separate(shared, ["a"])
    assert 0 in sides.head_steps
    assert 0 in sides.tail_steps
    with pytest.raises(ModelError, match="does not depend on the model's input"):
        separate(shared, ["a", "k"])


def test_chance_is_never_computed_twice() -> None:
    steps = (
        Step("r", "RandomNormal", (), ("r",)),
        Step("n1", "Add", ("x", "r"), ("a",)),
        Step("n2", "Add", ("a", "r"), ("out",)),
    )
    random = Topology(("x",), ("out",), steps, {})
    with pytest.raises(ModelError, match="'r' also crosses"):
        separate(random, ["a"])


def test_a_tensor_that_the_tail_does_not_use_is_refused() -> None:
    with pytest.raises(ModelError, match="the tail does not use 'a'"):
        separate(CHAIN, ["b", "a"])


def test_an_early_output_that_needs_more_than_what_crosses_is_finished_by_the_head() -> None:
    early = topology(
        "n1: x -> a", "n2: a -> b", "n3: a b -> early", *(f"m{i}: b{i or ''} -> b{i + 1}" for i in range(300)),
        "n4: b300 -> out", outputs="early out",
    )  # fmt: skip
    sides = separate(early, ["b"])
    assert sides.head_outputs == ("early",)
    assert sides.head_steps == {0, 1, 2}
    assert not sides.head_steps & sides.tail_steps
    assert separate(early, ["b", "a"]).tail_outputs == ("early", "out")
    costly = topology("n1: x -> a", "n2: a -> b", "n3: a b -> early", "n4: b -> out", outputs="early out")
    with pytest.raises(ModelError, match="'a' also crosses"):
        separate(costly, ["b"])


def test_steps_that_must_stay_on_the_device_keep_their_outputs_there() -> None:
    early = topology("n1: x -> a", "n2: a -> early", "n3: a -> b", "n4: b -> out", outputs="early out")
    sides = separate(early, ["a"], on_device={1})
    assert sides.head_outputs == ("early",)
    assert sides.tail_outputs == ("out",)
    assert sides.head_steps == {0, 1}


def test_what_is_no_tensor_is_refused_with_the_node_that_makes_it() -> None:
    tensors = {**CHAIN.tensors, "b": TensorInfo(None, None, "a sequence")}
    chain = Topology(CHAIN.inputs, CHAIN.outputs, CHAIN.steps, tensors)
    with pytest.raises(ModelError, match=r"'b', made by node 'n2' \(Relu\), is a sequence and cannot cross"):
        separate(chain, ["b"])
    assert [c.cut for c in prefix_candidates(chain)] == [("a",), ("c",)]


def test_a_long_chain_is_searched_in_one_pass() -> None:
    steps = [f"n{i}: t{i} -> t{i + 1}" for i in range(20_000)]
    chain = topology(*steps, inputs="t0", outputs="t20000")
    assert len(prefix_candidates(chain)) == 19_999
    with pytest.raises(InputError, match="did you mean 't77'"):
        resolve(chain, ["t77x"])


def test_the_two_ends_are_refused_with_their_names() -> None:
    with pytest.raises(ModelError, match="full-cloud"):
        separate(CHAIN, ["x"])
    with pytest.raises(ModelError, match="edge-only"):
        separate(CHAIN, ["out"])
    with pytest.raises(InputError, match="names no tensor"):
        separate(CHAIN, [])


def test_names_mean_tensors_first_and_nodes_second() -> None:
    clash = topology("b: x -> a", "n2: a -> b", "n3: b -> out")
    assert resolve(clash, ["b"]) == ("b",)
    assert resolve(clash, [" n2 ", "b"]) == ("b",)
    assert resolve(DIAMOND, ["n1", "n2"]) == ("a", "b")


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match="no tensor or node 'summ'; did you mean 'sum'"):
        resolve(DIAMOND, ["summ"])


def test_prefix_candidates_are_distinct_cuts_without_the_two_ends() -> None:
    assert [c.cut for c in prefix_candidates(CHAIN)] == [("a",), ("b",), ("c",)]
    assert [c.cut for c in prefix_candidates(DIAMOND)] == [("a",), ("a", "b"), ("sum",)]
    shares = [c.share for c in prefix_candidates(DIAMOND)]
    assert shares == sorted(shares)
    assert [c.wire_nbytes for c in prefix_candidates(DIAMOND)] == [4, 8, 4]


def test_cuts_of_too_many_tensors_are_left_out() -> None:
    wide = topology("s: x -> a b c d e", "m: a b c d e -> m", "o: m -> out")
    assert [c.cut for c in prefix_candidates(wide)] == [("m",)]
    assert [c.cut for c in prefix_candidates(wide, max_crossing=5)] == [("a", "b", "c", "d", "e"), ("m",)]


@st.composite
def graphs(draw: st.DrawFn) -> Topology:
    """Random graphs where each step reads one to three earlier tensors; all unread ones are outputs."""
    count = draw(st.integers(2, 12))
    steps, names = [], ["x"]
    for i in range(count):
        reads = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        steps.append(f"n{i}: {' '.join(reads)} -> t{i}")
        names.append(f"t{i}")
    read = {n for s in steps for n in s.partition(":")[2].partition("->")[0].split()}
    return topology(*steps, outputs=" ".join(n for n in names[1:] if n not in read))


@given(graphs())
def test_every_candidate_separates_and_computes_every_output_once(graph: Topology) -> None:
    for candidate in prefix_candidates(graph, max_crossing=99):
        sides = separate(graph, candidate.cut)
        assert sorted((*sides.head_outputs, *sides.tail_outputs)) == sorted(graph.outputs)
        made = {n for i in sides.tail_steps for n in graph.steps[i].outputs}
        read = {n for i in sides.tail_steps for n in graph.steps[i].inputs}
        assert read <= made | set(sides.cut)
        assert set(sides.cut) <= {n for i in sides.head_steps for n in graph.steps[i].outputs} | set(graph.inputs)
        assert not sides.head_steps & sides.tail_steps
