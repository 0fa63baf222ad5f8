"""A driver may hang or crash in its first call: whoever asks it apart is answered in one sentence, within a bound."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from protocol.engines.driver import Device, Driver, _asked_apart

FOUND = Driver(13_000, (Device(0, "GPU", "00" * 16, (9, 0), 80 << 30),))


def asked(code: str, *, within_s: float = 60.0) -> Driver | str:
    """What is known after a process that runs `code` was asked."""
    return _asked_apart([sys.executable, "-c", code], within_s)


def test_the_answer_is_the_last_line_whatever_a_driver_prints_besides() -> None:
    line = '{"cuda":13000,"devices":[{"index":0,"name":"GPU","uuid":"' + "00" * 16 + '","capability":[9,0],'
    line += '"memory_nbytes":85899345920}]}'
    assert asked(f"print('NVRM: hello'); print({line!r}); print('bye')") == FOUND
    assert asked("print('\"it has no GPU; give it one\"')") == "it has no GPU; give it one"


def test_a_driver_that_crashes_is_named_with_how() -> None:
    found = str(asked("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert "crashes when it is asked (Segmentation fault)" in found
    assert "choose an engine for the CPU" in found


def test_a_driver_that_ends_the_process_is_quoted() -> None:
    assert "(code 7: out of luck)" in str(asked("import sys; print('out of luck', file=sys.stderr); sys.exit(7)"))
    assert "it says nothing" in str(asked("raise SystemExit(0)"))


def test_a_driver_that_never_answers_is_given_up_on() -> None:
    found: list[Driver | str] = []
    asking = threading.Thread(target=lambda: found.append(asked("import signal; signal.pause()", within_s=0.2)))
    asking.start()
    asking.join(timeout=60)
    assert found, "still asking"
    assert "has not answered" in str(found[0])


def test_a_process_that_cannot_be_started_is_said(tmp_path: Path) -> None:
    assert "no process could be started" in str(_asked_apart([str(tmp_path / "nothing")], 5.0))


@pytest.mark.parametrize("hangs", [False, True], ids=["here", "hangs"])
def test_the_process_that_asks_has_a_limit_of_its_own(hangs: bool) -> None:
    """If whoever asked is killed meanwhile, nothing may hang on for ever."""
    import subprocess

    program = "from protocol.engines import driver; import signal\n"
    if hangs:
        program += "driver.ask = signal.pause\n"
    program += "driver.main()"
    root = str(Path(__file__).parents[2])
    child = subprocess.run(
        [sys.executable, "-c", program, "-0.9" if hangs else "60"], cwd=root, capture_output=True, timeout=60
    )
    assert (child.returncode < 0) == hangs
    assert bool(child.stdout) != hangs
