"""Which batch sizes a plan is built for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engines.trt_options import LEAST_FOR_SEVERAL, Span, TrtOptions
from protocol.errors import EngineError

sizes = st.integers(1, 64)


def test_single_rows_get_a_profile_of_their_own_and_all_else_is_fastest_at_the_knee() -> None:
    several, one = TrtOptions(max_batch=32, knee=8, several=True).choices()
    assert several == (Span(1, 1, 1), Span(2, 8, 32))
    assert one == (Span(1, 8, 32),)


def test_without_a_knee_the_largest_batch_is_the_one_to_be_fastest_at() -> None:
    assert TrtOptions(max_batch=8).choices() == [(Span(1, 8, 8),)]


def test_a_lane_of_small_batches_needs_one_profile() -> None:
    assert TrtOptions(max_batch=LEAST_FOR_SEVERAL - 1, several=True).choices() == [(Span(1, 3, 3),)]
    assert len(TrtOptions(max_batch=32, knee=2, several=True).choices()) == 1


def test_what_is_named_is_built_and_nothing_else() -> None:
    named = (Span(2, 4, 8), Span(1, 1, 1))
    assert TrtOptions(max_batch=8, several=True, batches=named).choices() == [(Span(1, 1, 1), Span(2, 4, 8))]


@pytest.mark.parametrize("span", [Span(0, 1, 1), Span(2, 1, 4), Span(1, 8, 4)])
def test_sizes_that_are_none_are_refused(span: Span) -> None:
    with pytest.raises(EngineError, match="least <= best <= most"):
        TrtOptions(batches=(span,)).choices()


@given(most=sizes, knee=st.none() | sizes, several=st.booleans())
def test_every_choice_takes_every_batch_and_the_last_is_one_profile(
    most: int, knee: int | None, several: bool
) -> None:  # fmt: skip
    choices = TrtOptions(max_batch=most, knee=knee, several=several).choices()
    assert len(choices[-1]) == 1
    for spans in choices:
        assert all(sum(rows in span for span in spans) == 1 for rows in range(1, most + 1))
        assert not any(most + 1 in span for span in spans)
