"""The front as a process of its own: killed, starved and flooded, it costs time and never a request."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cloud_gateway.doors.supervision import Policy
from cloud_gateway.gateway import Gateway, GatewayConfig
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from protocol import messages as m
from protocol.bundle import Bundle
from tests.wire_client import WireClient, placement

Array = npt.NDArray[Any]
QUICK = Policy(pause_s=0.0)


@contextmanager
def fronted(bundle: Path, **more: Any) -> Iterator[Gateway]:
    options = {"bind": "tcp://127.0.0.1:0", "drain_s": 2.0, "front_policy": QUICK} | more
    with Gateway(GatewayConfig(bundles=[bundle], front="process", **options)) as gateway:
        yield gateway


def test_a_front_that_is_a_process_serves_like_one_that_is_a_thread(
    toy_bundle: Path, toy_samples: Array, toy_reference: Array
) -> None:
    entry = placement(Bundle.open(toy_bundle), "full-cloud")
    with fronted(toy_bundle) as gateway, WireClient(str(gateway.endpoint)) as client:
        welcome = client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1))
        result, _ = client.receive_all()
    assert welcome.credit_requests > 0
    assert isinstance(result, m.Result)
