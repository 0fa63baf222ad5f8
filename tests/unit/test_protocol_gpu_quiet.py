"""Captures and what waits for a whole device exclude one another; nobody waits for ever."""

from __future__ import annotations

import threading

import pytest

from protocol.engines import gpu_quiet
from protocol.engines.gpu_quiet import Quiet
from tests.waiting import until


def test_any_number_of_loud_calls_run_at_once_and_a_capture_does_without() -> None:
    quiet = Quiet()
    with quiet.loud(), quiet.loud(), quiet.capture(0.0) as is_quiet:
        assert not is_quiet
    with quiet.capture(0.0) as is_quiet, quiet.capture(0.0) as also:
        assert is_quiet
        assert also


def test_what_is_loud_waits_for_a_capture_to_end() -> None:
    quiet = Quiet()
    order: list[str] = []

    def call() -> None:
        with quiet.loud():
            order.append("loud")

    with quiet.capture(0.0):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(0.05)
        order.append("captured")
    thread.join(20)
    assert order == ["captured", "loud"]


def test_a_capture_that_waits_goes_before_what_becomes_loud_later() -> None:
    """Else lanes that are always busy would leave no time for one."""
    quiet = Quiet()
    order: list[str] = []

    def capture() -> None:
        with quiet.capture(20.0) as is_quiet:
            order.append(f"captured {is_quiet}")

    def call() -> None:
        with quiet.loud():
            order.append("loud")

    with quiet.loud():
        capturing = threading.Thread(target=capture)
        capturing.start()
        until(lambda: quiet._captures == 1, "a capture waits", within_s=20)
        later = threading.Thread(target=call)
        later.start()
        later.join(0.05)
        assert order == []
    for thread in (capturing, later):
        thread.join(20)
    assert order == ["captured True", "loud"]


def test_a_capture_that_hangs_holds_nobody_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_quiet, "CAPTURE_AT_MOST_S", 0.01)
    quiet = Quiet()
    with quiet.capture(0.0), quiet.loud():
        pass
    with quiet.capture(0.0) as is_quiet:
        assert is_quiet
