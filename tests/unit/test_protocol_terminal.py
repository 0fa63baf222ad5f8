"""How command lines end: an interrupt is one sentence and 130, wherever it strikes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from protocol import terminal


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        terminal.run(lambda: signal.raise_signal(signal.SIGINT))
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted: nothing is left half written\n"


def test_an_interrupt_that_a_library_turns_into_an_error_of_its_own_is_still_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    with pytest.raises(SystemExit) as ended:
        terminal.run(load)
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ImportError("initialization failed")

    with pytest.raises(SystemExit) as ended:
        terminal.run(broken)
    assert ended.value.code == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("room", ["edge_agent", "cloud_gateway", "partitioner"])
def test_an_interrupt_while_a_command_line_loads_finds_somebody_who_catches_it(room: str) -> None:
    code = f"import sys, {room}.__main__; sys.exit('typer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
