"""What the next frame may refer to: the latest answer of the same placement from the same gateway, and no other."""

from __future__ import annotations

import numpy as np

from edge_agent.references import References


def test_the_latest_answered_request_of_each_gateway_and_placement_is_referred_to() -> None:
    held = References()
    old, new = {"r1": np.zeros(3, np.uint8)}, {"r1": np.ones(3, np.uint8)}
    held.answered("a", "cut-1", 8, new)
    held.answered("a", "cut-1", 7, old)  # answers come in any order
    assert held.of("a", "cut-1")["r1"].sequence == 8
    np.testing.assert_array_equal(held.of("a", "cut-1")["r1"].codes, new["r1"])
    assert held.of("b", "cut-1") == {}, "another gateway has never seen it"
    assert held.of("a", "cut-2") == {}


def test_what_carries_no_codes_is_no_reference() -> None:
    held = References()
    held.answered("a", "cut-1", 1, {})
    assert held.of("a", "cut-1") == {}


def test_a_gateway_that_forgets_a_frame_or_everything_takes_nothing_from_the_others() -> None:
    held = References()
    codes = {"r1": np.zeros(3, np.uint8)}
    for gateway, placement in (("a", "cut-1"), ("a", "cut-2"), ("b", "cut-1")):
        held.answered(gateway, placement, 1, codes)
    held.forget("a", "cut-1")
    assert (held.of("a", "cut-1"), len(held.of("a", "cut-2"))) == ({}, 1)
    held.forget_all("a")
    assert (held.of("a", "cut-2"), len(held.of("b", "cut-1"))) == ({}, 1)
