"""What `serve` sets up around a gateway: whatever libraries complain of stands in the gateway's own log."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from cloud_gateway.cli import LIBRARIES, _bridge
from protocol.seeing.logs import Logs


@pytest.fixture
def logs() -> Iterator[tuple[Logs, io.StringIO]]:
    """A gateway's log and what it has written; the libraries' loggers are as before afterwards."""
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in LIBRARIES}
    stream = io.StringIO()
    logs = Logs(stream=stream)
    _bridge(logs)
    yield logs, stream
    for name, (handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate


@pytest.mark.parametrize(
    "library", ["isthmus.http", "isthmus.grpc", "uvicorn.error", "watchfiles.main", "asyncio", "opentelemetry.sdk"]
)
def test_trouble_of_a_library_comes_to_the_gateways_log_once(
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
