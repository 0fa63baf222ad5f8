"""The link emulator as a process: its command line, and the handle by which another process drives it.

Law: one JSON object a line on standard input is a control; only `{"stats": true}` is answered, with one line. End of
input or SIGTERM ends the process, so that it never outlives whoever started it.

    python -m benchmarks.link --target 127.0.0.1:5555 --rate-mbit 100 --rtt-ms 10
    ready tcp://127.0.0.1:40001

Controls: rate_mbit, uplink_mbit, downlink_mbit (number or null), rtt_ms, blackhole, refuse (bool), reset, stats (true).
Exit codes: 0 asked to end, 1 the listening port is taken, 2 the command line makes no sense or leaves loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from benchmarks.link import Address, LinkEmulator, parse_address

ANSWER_TIMEOUT_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the emulator until standard input ends or SIGTERM comes; return the exit code."""
    asked = _parser().parse_args(argv)
    try:
        link = LinkEmulator(
            parse_address(asked.target),
            listen=parse_address(asked.listen),
            uplink_mbit_per_s=asked.rate_mbit if asked.uplink_mbit is None else asked.uplink_mbit,
            downlink_mbit_per_s=asked.rate_mbit if asked.downlink_mbit is None else asked.downlink_mbit,
            rtt_ms=asked.rtt_ms,
        )
    except ValueError as error:
        return _complain(str(error), 2)
    signal.signal(signal.SIGTERM, _end)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(link)
        except OSError as error:
            return _complain(f"cannot listen on {asked.listen}: {error.strerror}; choose another --listen", 1)
        print(f"ready {link.endpoint}", flush=True)
        for line in sys.stdin:
            _obey(link, line)
    return 0


class LinkProcess:
    """A link in a process of its own, for as long as the `with` block lasts.

    Args:
        target: loopback address (host, port) of the server.
        rate_mbit_per_s: rate of both directions in Mbit/s; None is unlimited.
        rtt_ms: round-trip time in ms.
    """

    def __init__(self, target: Address, *, rate_mbit_per_s: float | None = None, rtt_ms: float = 0.0) -> None:
        host, port = target
        self._command = [sys.executable, "-m", "benchmarks.link", "--target", f"{host}:{port}", "--rtt-ms", str(rtt_ms)]
        self._command += [] if rate_mbit_per_s is None else ["--rate-mbit", str(rate_mbit_per_s)]

    def __enter__(self) -> Self:
        root = Path(__file__).parent.parent  # so that it starts from any working directory
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=root
        )
        try:
            self.endpoint = self._answer().removeprefix("ready ").strip()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def address(self) -> Address:
        """The (host, port) to connect to."""
        return parse_address(self.endpoint.removeprefix("tcp://"))

    @property
    def pid(self) -> int:
        return self._process.pid

    def control(self, **controls: Any) -> None:
        """Send one control line, for example `control(rate_mbit=2)`; returns before it has taken effect.

        Raises:
            BrokenPipeError: if the process has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(controls) + "\n")

    def stats(self) -> dict[str, Any]:
        """Return the emulator's counters; every control sent before has taken effect by then.

        Raises:
            TimeoutError: if no answer came within 10 s.
        """
        self.control(stats=True)
        answer: dict[str, Any] = json.loads(self._answer())
        return answer

    def _answer(self) -> str:
        # Line by line, and only one line is ever outstanding: nothing can hide in the text layer's buffer.
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], ANSWER_TIMEOUT_S)[0]:
            raise TimeoutError(f"the link process did not answer within {ANSWER_TIMEOUT_S:g} s")
        if not (line := output.readline()):
            raise ConnectionError("the link process ended; its reason is on standard error")
        return line

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it may have ended already
            self._process.stdin.close()
        try:
            self._process.wait(ANSWER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _obey(link: LinkEmulator, line: str) -> None:
    """Carry out one line of control; what is wrong with it goes to standard error, and the link goes on."""
    try:
        controls = _controls(line)
        # In the table's order: {"stats": true, "rate_mbit": 2} answers with the new rate in force.
        for name, carry_out in CONTROLS.items():
            if name in controls:
                carry_out(link, controls[name])
    except (TypeError, ValueError, OSError) as error:
        _complain(f"control line {line.strip()!r} is not carried out: {error}", 0)


def _controls(line: str) -> Mapping[str, Any]:
    controls = json.loads(line)
    if not isinstance(controls, dict):
        raise TypeError("it is not a JSON object")
    if unknown := controls.keys() - CONTROLS.keys():
        raise TypeError(f"unknown {', '.join(sorted(unknown))}; the controls are {', '.join(CONTROLS)}")
    return controls


def _rate(value: object) -> float | None:
    return None if value is None else _number(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _reset(link: LinkEmulator, value: object) -> None:
    if _flag(value):
        link.reset_all()


def _print_stats(link: LinkEmulator, value: object) -> None:
    if _flag(value):
        print(json.dumps(link.stats()), flush=True)


CONTROLS: dict[str, Callable[[LinkEmulator, object], None]] = {
    "rate_mbit": lambda link, value: link.set_rate(_rate(value)),
    "uplink_mbit": lambda link, value: link.set_rate(_rate(value), side="up"),
    "downlink_mbit": lambda link, value: link.set_rate(_rate(value), side="down"),
    "rtt_ms": lambda link, value: link.set_delay_ms(_number(value) / 2),
    "blackhole": lambda link, value: link.blackhole(_flag(value)),
    "refuse": lambda link, value: link.refuse(_flag(value)),
    "reset": _reset,
    "stats": _print_stats,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description="Emulate an access link.")
    parser.add_argument("--target", required=True, metavar="HOST:PORT", help="the server, on loopback")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where clients connect")
    parser.add_argument("--rate-mbit", type=float, metavar="R", help="both directions, Mbit/s (default unlimited)")
    parser.add_argument("--uplink-mbit", type=float, metavar="R", help="client to target, if it differs")
    parser.add_argument("--downlink-mbit", type=float, metavar="R", help="target to client, if it differs")
    parser.add_argument("--rtt-ms", type=float, default=0.0, metavar="T", help="round-trip time (default 0)")
    return parser


def _complain(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return code


def _end(signal_number: int, frame: object) -> NoReturn:
    raise SystemExit(0)
