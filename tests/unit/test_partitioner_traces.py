"""Traces: exact integration, what is built in, and what text is understood or refused, with the line's number."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.people import traces
from partitioner.people.traces import BYTES_PER_MBIT, parse, steps
from protocol.errors import InputError

MBIT = BYTES_PER_MBIT
HILLY = steps("hilly", [(2.0, 8.0), (1.0, 0.0), (3.0, 16.0), (1.0, 0.0)])


def chance(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def refused(text: str, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        parse("t.csv", text)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.remedy


def test_a_transfer_takes_the_area_under_the_steps() -> None:
    assert HILLY.arrival_s(0.0, 8 * MBIT) == pytest.approx(1.0)
    assert HILLY.arrival_s(1.5, 8 * MBIT) == pytest.approx(3.25), (
        "4 Mbit, a second of nothing, 4 Mbit at twice the rate"
    )


def test_a_transfer_that_ends_with_a_step_does_not_wait_through_the_outage_behind_it() -> None:
    assert HILLY.arrival_s(1.0, 8 * MBIT) == pytest.approx(2.0)
    assert HILLY.arrival_s(3.0, 48 * MBIT) == pytest.approx(6.0)


def test_a_transfer_that_outlasts_the_trace_goes_on_at_its_beginning() -> None:
    assert HILLY.arrival_s(5.0, 24 * MBIT) == pytest.approx(8.0)
    assert HILLY.arrival_s(0.0, 3 * 64 * MBIT) == pytest.approx(2 * 7 + 6)


def test_a_rate_and_its_changes_are_found() -> None:
    assert [HILLY.rate_at(t) / MBIT for t in (0, 2, 2.9, 3, 6.5, 7, 13.9)] == [8, 0, 0, 16, 0, 8, 0]
    assert HILLY.changes_s() == (2.0, 3.0, 6.0)
    assert HILLY.mean_mbit == pytest.approx(64 / 7)


def test_nothing_arrives_at_once_and_a_dead_link_is_no_trace() -> None:
    assert HILLY.arrival_s(2.5, 0) == 2.5
    with pytest.raises(InputError, match="never lets a byte pass"):
        steps("dead", [(3.0, 0.0)])


pieces = st.lists(
    st.tuples(st.floats(0.01, 5), st.one_of(st.just(0.0), st.floats(0.01, 500))), min_size=1, max_size=8
).filter(lambda p: any(rate for _, rate in p))


@given(pieces, st.floats(0, 60), st.floats(1, 1e7))
def test_what_passes_until_the_arrival_is_what_was_sent(
    made: list[tuple[float, float]], at: float, nbytes: float
) -> None:
    trace = steps("any", made)
    arrival = trace.arrival_s(at, nbytes)
    assert arrival >= at
    slack = 1e-6 * (nbytes + trace.passed_at(arrival)) + 1e-6
    assert trace.passed_at(arrival) - trace.passed_at(at) == pytest.approx(nbytes, abs=slack)


@given(pieces, st.floats(0, 30), st.floats(1, 1e6), st.floats(1, 1e6))
def test_two_transfers_in_a_row_take_as_long_as_one_of_both(
    made: list[tuple[float, float]], at: float, first: float, second: float
) -> None:
    trace = steps("any", made)
    together = trace.arrival_s(at, first + second)
    in_a_row = trace.arrival_s(trace.arrival_s(at, first), second)
    assert trace.passed_at(in_a_row) == pytest.approx(trace.passed_at(together), rel=1e-9, abs=1e-3)


@pytest.mark.parametrize("name", sorted(traces.BUILT_IN))
def test_a_built_in_trace_is_the_same_for_the_same_seed(name: str) -> None:
    make = traces.BUILT_IN[name]
    assert make(chance()) == make(chance())
    assert make(chance()).name == name


def test_the_lte_like_trace_varies_fades_and_differs_by_seed() -> None:
    trace = traces.lte(chance())
    mbit = np.array(trace.bytes_per_s) / MBIT
    assert trace != traces.lte(chance(6))
    assert mbit.min() >= traces.LEAST_MBIT * (1 - 1e-12)
    assert mbit.min() < 2 < 6 < np.median(mbit) < 24 < mbit.max()
    steady = np.abs(np.diff(np.log(mbit)))
    assert np.median(steady) < 0.15, "neighbours are alike"


def test_a_table_is_read_with_or_without_header_and_comments() -> None:
    plain = parse("t.csv", "0,10\n5,2.5\n7,0\n")
    assert plain == parse("t.csv", "t_s,mbit\n# a drive\n0 , 10\n\n5,2.5  # slower\n7,0\n")
    assert list(plain.starts_s) == [0, 5, 7]
    assert plain.length_s == 9, "the last rate holds as long as the one before it"
    assert [r / MBIT for r in plain.bytes_per_s] == [10, 2.5, 0]


def test_a_table_may_begin_at_any_time_and_have_one_row() -> None:
    assert parse("t.csv", "1700000000,10\n1700000004,5\n").starts_s == (0, 4)
    assert parse("t.csv", "3,8\n").length_s == traces.SINGLE_ROW_S


def test_a_mahimahi_file_is_known_by_its_content() -> None:
    trace = parse("t.down", "\n".join(str(ms) for ms in [0, 0, 50, 120, 350]))
    assert [round(r * traces.PACKET_BIN_S / traces.PACKET_NBYTES) for r in trace.bytes_per_s] == [3, 1, 0, 1]
    assert trace.length_s == pytest.approx(0.4)


def test_wrong_text_names_its_line_and_the_remedy() -> None:
    refused("", "holds no line")
    refused("# nothing\n", "holds no line")
    refused("t_s,mbit\n", "header and nothing below")
    refused("t_s,mbit\n0,10\n1\n", "line 3", "'1' has 1 columns", "seconds and Mbit/s")
    refused("0,10\n1,2,3\n", "line 2", "3 columns")
    refused("0,10\n1,fast\n", "line 2", "no two numbers")
    refused("0,10\n1,nan\n", "line 2", "no two numbers")
    refused("0,10\n1,1e300\n", "line 2", "no two numbers")
    refused("0,10\n1,-2\n", "line 2", "negative rate", "written as 0")
    refused("0,10\n2,5\n2,6\n", "line 3", "does not come after 2 s")
    refused("0,10\n2,5\n1,6\n", "line 3", "sort the lines")
    refused("0,0\n2,0\n", "never lets a byte pass")
    refused("mbit,t_s\n0,1\n", "line 1", "no two numbers")


def test_a_wrong_mahimahi_file_names_its_line() -> None:
    refused("10\n5\n", "line 2", "comes before the line above")
    refused("10\n99999999999999999999\n", "line 2", "no millisecond")
    refused("10\n99999999999\n", "line 2", "more than a day")


def test_a_long_line_is_shown_shortened() -> None:
    refused("0,1\n" + "x" * 500, "line 2", "xxx...")


def test_text_of_too_many_lines_is_refused() -> None:
    refused("1\n" * (traces.MOST_LINES + 1), "more than 1,000,000 lines")


@given(st.text(max_size=200))
def test_any_text_becomes_a_trace_or_one_refusal(text: str) -> None:
    with contextlib.suppress(InputError):
        assert math.isfinite(parse("t.csv", text).arrival_s(0.0, 1e6))
