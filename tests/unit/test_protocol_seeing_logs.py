"""The log: one event a line, never a payload or a key, never a daemon that waits for a log."""

from __future__ import annotations

import io
import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import InputError
from protocol.messages import RequestId
from protocol.seeing import logs as room
from protocol.seeing.flood import BURST
from protocol.seeing.logs import MOST_CHARACTERS, Logs, Style

REQUEST = RequestId(b"\xab" * 8, 7)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(style: Style = "json", level: str = "info") -> tuple[Logs, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Logs(stream=stream, style=style, level=level, clock=clock), stream, clock


def lines(logs: Logs, stream: io.StringIO) -> list[dict[str, Any]]:
    logs.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_with_its_request() -> None:
    logs, stream, _ = make()
    logs.get(request=REQUEST).warning("refused", code="BUSY", slack_ms=3.5)
    (event,) = lines(logs, stream)
    assert event.pop("time").endswith("+00:00")
    assert event == {"level": "warning", "event": "refused", "request": str(REQUEST), "code": "BUSY", "slack_ms": 3.5}


@pytest.mark.parametrize("style", ["json", "console"])
def test_neither_a_tensor_nor_a_key_ever_reaches_the_log(style: Style) -> None:
    logs, stream, _ = make(style)
    secret = np.frombuffer(b"patient-4711", np.uint8)
    log = logs.get(request=REQUEST, tensor=secret)
    log.info("one", payload=secret.tobytes(), view=memoryview(secret), parts=[secret.tobytes(), secret])
    log.info(
        "two", nested={"authorization": "hunter2", "inner": {"api_key": "hunter2", "x": bytearray(b"patient-4711")}}
    )
    log.info("three", password="hunter2", key="hunter2", redis_token="hunter2", thing=Clock())
    logs.close()
    written = stream.getvalue()
    assert written.count("\n") == 3
    for told in ("hunter2", "patient", "4711", "112, 97", "112 97", "0x"):
        assert told not in written
    assert "<12 bytes>" in written
    assert "<ndarray [12]>" in written


def test_the_level_changes_at_once_for_every_logger() -> None:
    logs, stream, _ = make()
    log = logs.get()
    log.debug("unseen")
    logs.level = "debug"
    log.debug("seen")
    logs.level = "error"
    log.warning("unseen either")
    assert [event["event"] for event in lines(logs, stream)] == ["seen"]


def test_a_level_that_does_not_exist_is_refused_with_those_that_do() -> None:
    logs, _, _ = make()
    with pytest.raises(InputError, match="'loud'; choose one of debug, info, warning, error"):
        logs.level = "loud"
    assert logs.level == "info"
    logs.close()


def test_a_flood_of_bad_frames_is_a_few_lines_and_a_count() -> None:
    logs, stream, clock = make()
    for i in range(1000):
        logs.get(peer=f"10.0.0.{i}").warning("bad_frame", reason=f"garbage {i}")
    clock.now = 60.0
    logs.get().info("something else")
    events = lines(logs, stream)
    assert [e["event"] for e in events] == ["bad_frame"] * BURST + ["held_back", "something else"]
    assert (events[BURST]["of"], events[BURST]["count"]) == ("bad_frame", 1000 - BURST)


def test_an_interval_of_nothing_writes_every_event() -> None:
    logs, stream, _ = make()
    logs.repeat_interval_s = 0.0
    for _ in range(50):
        logs.get().warning("bad_frame")
    assert logs.repeat_interval_s == 0.0
    assert len(lines(logs, stream)) == 50


def test_the_life_of_many_models_is_no_flood() -> None:
    logs, stream, _ = make()
    for version in range(9):
        for state in ("LOADING", "WARMING", "AVAILABLE"):
            logs.get().info("model", model="digits", version=version, state=state)
    assert len(lines(logs, stream)) == 27


def test_closing_tells_what_was_held_back() -> None:
    logs, stream, _ = make()
    for _ in range(9):
        logs.get().warning("bad_frame")
    assert lines(logs, stream)[-1]["count"] == 9 - BURST


@pytest.mark.parametrize("style", ["json", "console"])
def test_what_a_peer_sent_cannot_forge_a_line(style: Style) -> None:
    logs, stream, _ = make(style)
    logs.get().info("refused\nfake", reason="x\n2026-01-01 error  forged\r\x1b[2J\u2028")
    logs.close()
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_long_values_are_shortened_and_infinity_is_still_json() -> None:
    logs, stream, _ = make()
    logs.get().info("long", reason="x" * 10**6, many=list(range(10**5)), budget_s=float("inf"), path=Path("/a/b"))
    (event,) = lines(logs, stream)
    assert len(event["reason"]) <= MOST_CHARACTERS + 3
    assert event["many"][-1] == "and 99968 more"
    assert (event["budget_s"], event["path"]) == ("inf", "/a/b")


def test_a_traceback_stays_in_its_event() -> None:
    logs, stream, _ = make()
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        logs.get().exception("crashed")
    (event,) = lines(logs, stream)
    assert event["exception"].endswith("ZeroDivisionError: integer division or modulo by zero")
    assert event["level"] == "error"


def test_what_libraries_log_comes_to_the_same_stream() -> None:
    logs, stream, _ = make()
    library = logging.getLogger("some.package")
    library.addHandler(logs.bridge())
    library.propagate = False
    library.warning("lost %s of %d", "one", 3)
    library.info("chatter")
    (event,) = lines(logs, stream)
    assert (event["library"], event["message"]) == ("some.package", "lost one of 3")


class Stuck(io.StringIO):
    """A pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(10)
        return super().write(text)


def test_a_log_that_nobody_reads_holds_nobody_up_and_says_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_LINES", 50)
    stream = Stuck()
    logs = Logs(stream=stream)
    for i in range(500):
        logs.get().info(f"event-{i}")
    stream.released.set()
    logs.close()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    lost = sum(e.get("count", 0) for e in events if e["event"] == "log_lines_lost")
    written = sum(e["event"].startswith("event-") for e in events)
    assert lost > 0
    assert written + lost == 500


class Full(io.StringIO):
    """A disk that is full at first."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = threading.Event()

    def write(self, text: str) -> int:
        if not self.refused.is_set():
            self.refused.set()
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_loses_lines_and_the_next_one_says_how_many() -> None:
    stream = Full()
    logs = Logs(stream=stream)
    logs.get().info("one")
    assert stream.refused.wait(10)
    logs.get().info("two")
    events = lines(logs, stream)
    assert [e["event"] for e in events] == ["two", "log_lines_lost"]
    assert events[1]["count"] == 1
