"""What a daemon writes down: one JSON object or one line for people per event, with the request's id, no payloads.

    log event -> level -> flood -> redacted, shortened -> line -> spool -> writer's thread -> stream

Whoever logs is never held up: a stream that nobody reads, or a full disk, loses lines, and the next line that gets
through says how many. Whatever is not text, number or a short list is told by its type and size, never by its content;
names that sound like secrets are starred.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Literal, TextIO

from protocol.errors import InputError
from protocol.messages import RequestId
from protocol.seeing.flood import INTERVAL_S, Flood

# Where structlog finds rich it loads it, to colour tracebacks that nobody is shown here: a fifth of a daemon's start.
_FOUND = "rich" in sys.modules
if not _FOUND:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if not _FOUND:
    del sys.modules["rich"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
Style = Literal["json", "console"]
MOST_CHARACTERS = 1000  # of one value: a reason is a sentence, a traceback is shortened at its beginning
MOST_ENTRIES = 32
MOST_LINES = 10_000  # that wait for the stream
SECRETS = ("password", "secret", "token", "credential", "authorization", "api_key", "private")

Event = MutableMapping[str, Any]
Log = structlog.typing.FilteringBoundLogger


class Logs:
    """One for a daemon. `get(...)` gives a logger with bound fields; all of them follow the level at once."""

    def __init__(
        self,
        *,
        level: str = "info",
        style: Style = "json",
        stream: TextIO | None = None,
        repeat_interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._flood = Flood(interval_s=repeat_interval_s)
        self._lock = threading.Lock()
        self._spool = Spool(sys.stderr if stream is None else stream)
        self._render = structlog.processors.JSONRenderer() if style == "json" else _for_people
        self.level = level

    @property
    def level(self) -> str:
        return self._level

    @level.setter
    def level(self, level: str) -> None:
        """From the next event on. Raises InputError for a level that does not exist."""
        if level not in LEVELS:
            raise InputError(f"the log level is {level!r}", f"choose one of {', '.join(LEVELS)}")
        self._level = level
        self._least = LEVELS[level]

    @property
    def repeat_interval_s(self) -> float:
        """A repeated event is written once in this time, with a count; 0 writes every one."""
        return self._flood.interval_s

    @repeat_interval_s.setter
    def repeat_interval_s(self, interval_s: float) -> None:
        self._flood.interval_s = interval_s

    def get(self, **bound: object) -> Log:
        """A logger whose events all carry `bound`: `logs.get(request=str(id)).warning("bad_frame", reason=...)`."""
        log: Log = structlog.wrap_logger(
            self._spool,
            processors=[self._admit, structlog.processors.format_exc_info, _stamped, _cleaned, self._render],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            context_class=dict,
            cache_logger_on_first_use=True,
        )
        return log.bind(**bound)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, what was held back by a flood included."""
        self._tell_overdue(float("inf"))
        self._spool.close(timeout_s)

    # ---- the way of an event ------------------------------------------------------------------------------------

    def _admit(self, _: Any, method: str, event: Event) -> Event:
        if LEVELS.get(method, logging.ERROR) < self._least:
            raise structlog.DropEvent
        now = self._clock()
        with self._lock:
            held_back = self._flood.offer(_kind(event), now=now)
        if held_back is None:
            raise structlog.DropEvent
        self._tell_overdue(now)
        if held_back:
            event["held_back"] = held_back
        return event

    def _tell_overdue(self, now: float) -> None:
        with self._lock:
            overdue = self._flood.overdue(now=now)
        for name, count in overdue:
            event = _stamped(None, "info", {"event": "held_back", "of": name, "count": count})
            self._spool.msg(str(self._render(None, "info", event)))

    def bridge(self) -> logging.Handler:
        """For libraries that log by the standard way: their warnings and errors come to the same stream."""
        return _Bridge(self.get())


class _Bridge(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """The unformatted message names the event: a library that repeats itself is one flood, whatever it inserts."""
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        say(str(record.msg), library=record.name, message=record.getMessage(), exc_info=record.exc_info)


class Spool:
    """Lines on their way to a stream, written by a thread of its own that begins with the first line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: deque[str] = deque()
        self._lost = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._main, name="isthmus-log", daemon=True)

    def msg(self, line: str) -> None:
        with self._wake:
            if self._closing or len(self._lines) >= MOST_LINES:
                self._lost += 1
                return
            self._lines.append(line)
            if self._thread.ident is None:
                self._thread.start()
            self._wake.notify()

    debug = info = warning = error = critical = msg

    def close(self, timeout_s: float) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _main(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._lines or self._closing)
                if not self._lines and self._closing:
                    return
                lines, self._lines = self._lines, deque()
                lost, self._lost = self._lost, 0
            if lost:
                lines.append(f'{{"level":"warning","event":"log_lines_lost","count":{lost}}}')
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # a full disk, a closed pipe or file: the daemon goes on
                with self._wake:
                    self._lost += len(lines) + lost - bool(lost)


def _kind(event: Event) -> str:
    """What counts as the same event: its name, and for a step of a life cycle whose it is and which."""
    if "state" not in event:
        return str(event["event"])
    return " ".join(str(event[field]) for field in ("event", "model", "version", "state") if field in event)


def _stamped(_: Any, method: str, event: Event) -> Event:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"time": at, "level": method, "event": event.pop("event"), **event}


def _cleaned(_: Any, __: str, event: Event) -> Event:
    return {name: _clean(name, value) for name, value in event.items()}


def _for_people(_: Any, __: str, event: Event) -> str:
    """One line, whatever a peer put into it: control characters and line ends are escaped."""
    rest = dict(event)
    head = f"{rest.pop('time')} {rest.pop('level'):<7} {_printable(str(rest.pop('event')))}"
    return " ".join([head, *(f"{name}={_printable(str(value))}" for name, value in rest.items())])


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _clean(name: str, value: object) -> object:
    """What may be written of a value: itself if it is short and plain, else its type and size."""
    lowered = name.lower()
    if lowered == "key" or any(word in lowered for word in SECRETS):
        return "***"
    if isinstance(value, Mapping):
        return {str(k): _clean(str(k), v) for k, v in list(value.items())[:MOST_ENTRIES]}
    if isinstance(value, list | tuple | set | frozenset):
        shown = [_clean("", v) for v in list(value)[:MOST_ENTRIES]]
        return [*shown, f"and {len(value) - MOST_ENTRIES} more"] if len(value) > MOST_ENTRIES else shown
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON knows no infinity
    if isinstance(value, str | PurePath | RequestId):
        text = str(value)
        return text if len(text) <= MOST_CHARACTERS else f"...{text[-MOST_CHARACTERS:]}"
    return _described(value)


def _described(value: object) -> str:
    """An array, a payload, an object that might hold one."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{memoryview(value).nbytes} bytes>"
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"[:MOST_CHARACTERS]
    shape = getattr(value, "shape", None)
    return f"<{type(value).__name__} {list(shape)}>" if isinstance(shape, tuple) else f"<{type(value).__name__}>"
