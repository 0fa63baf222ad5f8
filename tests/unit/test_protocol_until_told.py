"""A daemon around which everything is real but the daemon: signals end it in order, a bug ends it with 1, libraries
complain in its log."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from protocol.seeing.logs import Logs
from protocol.until_told import LIBRARIES, bridge, end_with, run_until_told, tell_stopped


@pytest.fixture
def logs() -> Iterator[tuple[Logs, io.StringIO]]:
    """A daemon's log and what it has written; the libraries' loggers are as before afterwards."""
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in LIBRARIES}
    stream = io.StringIO()
    logs = Logs(stream=stream)
    bridge(logs)
    yield logs, stream
    for name, (handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate


@pytest.mark.parametrize(
    "library", ["isthmus.http", "isthmus.grpc", "uvicorn.error", "watchfiles.main", "asyncio", "opentelemetry.sdk"]
)
def test_trouble_of_a_library_comes_to_the_daemons_log_once(
    logs: tuple[Logs, io.StringIO], capsys: pytest.CaptureFixture[str], library: str
) -> None:
    level = logging.getLogger(library).level
    logging.getLogger(library).setLevel(logging.DEBUG)
    logging.getLogger(library).error("it broke: %s", "here")
    logging.getLogger(library).debug("not this")
    logging.getLogger(library).setLevel(level)
    logs[0].close()
    (line,) = logs[1].getvalue().splitlines()
    told = json.loads(line)
    assert (told["level"], told["library"], told["message"]) == ("error", library, "it broke: here")
    assert capsys.readouterr().err == ""


class Kettle:
    """A daemon that notes what is done to it; its own steering."""

    def __init__(self, at_start: Callable[[], None] = lambda: None) -> None:
        self.done: list[str] = []
        self.fatal: BaseException | None = None
        self._at_start = at_start

    def start(self) -> None:
        self.done.append("start")
        if self.done.count("start") == 1:
            self._at_start()

    def close(self) -> None:
        self.done.append("close")

    def now(self) -> None:
        self.done.append("now")

    def stop(self) -> None:
        self.done.append("stop")


@pytest.fixture
def handlers() -> Iterator[None]:
    kinds = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)
    gc.unfreeze()


def run(kettle: Kettle, logs: Logs, ready: Callable[[Kettle], bool]) -> None:
    run_until_told(lambda: (kettle, kettle), logs=logs, ready=ready, stopped=lambda k: k.done.append("told"))


def sent(kind: signal.Signals) -> None:
    os.kill(os.getpid(), kind)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order_and_another_one_changes_settings(
    logs: tuple[Logs, io.StringIO], kind: signal.Signals
) -> None:
    kettle = Kettle()

    def ready(_: Kettle) -> bool:
        sent(signal.SIGHUP)
        sent(kind)
        return True

    run(kettle, logs[0], ready)
    assert kettle.done == ["start", "start", "now", "stop", "close", "told"], "the daemon's start, then the steering's"


@pytest.mark.usefixtures("handlers")
def test_who_is_told_to_end_while_starting_serves_nobody(
    logs: tuple[Logs, io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    kettle = Kettle(lambda: sent(signal.SIGTERM))
    run(kettle, logs[0], lambda _: pytest.fail("it never serves"))
    assert kettle.done == ["start", "close"]
    assert "ended before it was ready" in capsys.readouterr().err


@pytest.mark.usefixtures("handlers")
def test_a_bug_ends_it_with_1_after_all_is_closed_and_told(logs: tuple[Logs, io.StringIO]) -> None:
    kettle = Kettle()

    def ready(serving: Kettle) -> bool:
        serving.fatal = AssertionError("boiled dry")
        return True

    with pytest.raises(SystemExit) as ended:
        run(kettle, logs[0], ready)
    assert ended.value.code == 1
    assert kettle.done[-3:] == ["stop", "close", "told"]


@pytest.mark.usefixtures("handlers")
def test_who_serves_only_later_is_asked_again(logs: tuple[Logs, io.StringIO]) -> None:
    asked: list[bool] = []

    def ready(_: Kettle) -> bool:
        asked.append(True)
        if len(asked) == 2:
            sent(signal.SIGTERM)
        return len(asked) == 2

    run(Kettle(), logs[0], ready)
    assert len(asked) == 2


def test_the_last_word_is_a_sentence_or_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    tell_stopped({"results": 2, "rejects": 1}, name="stats", json=False)
    tell_stopped({}, name="stats", json=False)
    assert capsys.readouterr().err == "stopped: rejects 1, results 2\nstopped: no requests\n"
    tell_stopped({"results": 2}, name="stats", json=True)
    assert json.loads(capsys.readouterr().out) == {"event": "stopped", "stats": {"results": 2}}


STUCK = """
import atexit, sys, threading
from protocol.until_told import end_with

def run():
    threading.Thread(target=threading.Event().wait, name=sys.argv[1], daemon=True).start()
    print("all is said")
    if sys.argv[2] != "0":
        raise SystemExit(int(sys.argv[2]))

atexit.register(print, "the libraries give back")
end_with(run, held=("a-load",))
"""


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize(("name", "is_held"), [("isthmus-gpu-0", True), ("a-load", True), ("a-door", False)])
def test_a_process_with_a_lost_gpu_ends_before_libraries_give_back_what_is_on_it(
    name: str, is_held: bool, code: int
) -> None:  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", STUCK, name, str(code)], capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.splitlines() == ["all is said"] + ["the libraries give back"] * (not is_held)


def test_what_is_raised_goes_on_where_nothing_is_stuck() -> None:
    def fail() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        end_with(fail)
