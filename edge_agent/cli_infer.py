"""`edge-agent infer`: one sample or a source of them, answered by an agent of its own or by the running daemon."""

from __future__ import annotations

import enum
import itertools
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from protocol.errors import InputError
from protocol.profile import elsewhere
from protocol.terminal import print_json
from protocol.until_told import tell_stopped

if TYPE_CHECKING:
    from edge_agent.agent import Agent
    from edge_agent.local_client import LocalClient
    from edge_agent.outcomes import Outcome
    from edge_agent.sources import Sample
    from protocol.tensors import Array, Tensors, TensorSpec


class Outputs(enum.StrEnum):
    NONE = "none"
    SUMMARY = "summary"
    VALUES = "values"


def infer(
    source: Annotated[
        str,
        typer.Argument(
            help="An image or .npy, an .npz of samples, a folder, or - (file names on stdin).", show_default=False
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Directory written by `partitioner split`.", show_default=False)
    ] = None,
    gateway: Annotated[
        str | None, typer.Option(help="tcp://HOST:PORT; without it everything runs on the device.")
    ] = None,
    socket: Annotated[
        str | None,
        typer.Option(
            help="Without --bundle a running daemon is asked: its Unix socket, or http://HOST:PORT; else the settings "
            "say it.",
            envvar="ISTHMUS_AGENT_SOCKET",
        ),
    ] = None,
    deadline_ms: Annotated[float, typer.Option(min=1, help="Budget of each request in milliseconds.")] = 1000.0,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight at most.")] = 1,
    interval_ms: Annotated[float, typer.Option(min=0, help="Least time between two submissions.")] = 0.0,
    loop: Annotated[bool, typer.Option("--loop", help="Start over when the source is exhausted.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Stop after this many requests; 0 means no limit.")] = 0,
    wait_s: Annotated[
        float, typer.Option(min=0, help="Wait this long for the gateway before the first request.")
    ] = 3.0,
    outputs: Annotated[
        Outputs | None, typer.Option(help="What of the outputs each line holds [values; of many samples summary].")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads of the heads.")] = 1,
    edge_slowdown: Annotated[float, typer.Option(min=1, help="Act as a device that is this many times slower.")] = 1.0,
    placements: Annotated[str, typer.Option(help="Use only these placement ids, separated by commas.")] = "",
    fault_file: Annotated[
        Path | None, typer.Option(help="Drill: while this file exists, the head of every cut fails.")
    ] = None,
    keys_dir: Annotated[
        Path | None, typer.Option("--keys", help="Folder with agent.key and server.pub: encrypts.")
    ] = None,
    server_key: Annotated[str, typer.Option(help="The gateway's public key, or its file, instead of server.pub.")] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a gateway off this machine in plain text.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Every line of stdout is JSON, the ready line too.")] = False,
) -> None:
    """Answer SOURCE, one JSON line a sample. One image or .npy is one answer, and exit code 9 if it was refused."""
    from edge_agent.sources import is_single

    if loop and source == "-":
        raise InputError("--loop needs a source that can be read again", "give an .npz or a folder")
    asked: _Asked
    if bundle is not None:
        asked = _Embedded(_agent(
            bundle, gateway, threads, edge_slowdown, placements, fault_file, insecure, keys_dir, server_key
        ), wait_s)  # fmt: skip
    else:
        from edge_agent.cli_ask import where
        from edge_agent.local_client import LocalClient

        asked = _Running(LocalClient(where(socket, None)), concurrency)
    deadline_s = deadline_ms / 1e3
    if is_single(source) and not loop:
        _answer_one(asked, source, deadline_s, outputs or Outputs.VALUES)
        return
    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    samples = itertools.islice(_samples(source, asked.specs, stop, loop=loop), limit or None)
    runner = _Runner(asked, deadline_s, outputs or Outputs.SUMMARY, stop)
    _answer_all(asked, runner, samples, concurrency, interval_ms / 1e3, json=json)


def _answer_one(asked: _Asked, source: str, deadline_s: float, outputs: Outputs) -> None:
    """Raises RefusedError if it was not answered."""
    from edge_agent.outcomes import Refusal, RefusedError
    from edge_agent.sources import load_sample

    loaded = load_sample(Path(source), asked.specs)
    with asked:
        asked.announce(json=None)
        outcome = asked.submit(loaded.inputs, deadline_s=deadline_s).result()
    print_json(_line(0, loaded.name, outcome, outputs))
    if isinstance(outcome, Refusal):
        raise RefusedError(outcome)


def _answer_all(
    asked: _Asked, runner: _Runner, samples: Iterator[Sample], concurrency: int, interval_s: float, *, json: bool
) -> None:
    """Raises InputError if a sample did not fit, once all that did are answered; SystemExit(1) after a bug."""
    with asked:
        asked.announce(json=json)
        runner.run(samples, concurrency, interval_s)
    tell_stopped(runner.counts | asked.counts(), name="counts", json=json)
    if asked.has_failed():
        raise SystemExit(1)
    if runner.counts["invalid"]:
        raise InputError(f"{runner.counts['invalid']} samples did not fit the model", "see their lines above")


def _samples(source: str, specs: Sequence[TensorSpec], stop: threading.Event, *, loop: bool) -> Iterator[Sample]:
    """All of the source, opened at once; with `loop`, again and again."""
    from edge_agent.sources import open_source, read_lines

    lines = read_lines(sys.stdin.fileno(), stop.is_set) if source == "-" else iter(())
    first = open_source(source, specs, lines)
    if not loop:
        return first
    again = (open_source(source, specs, lines) for _ in itertools.repeat(None))
    return itertools.chain(first, itertools.chain.from_iterable(again))


class _Asked(AbstractContextManager[Any], Protocol):
    """Who answers: an agent in this process, or the daemon."""

    @property
    def specs(self) -> Sequence[TensorSpec]: ...

    def announce(self, *, json: bool | None) -> None:
        """Say that we are ready, and with whom; None: only what is unusual. Raises NetworkError."""
        ...

    def submit(self, inputs: Tensors, *, deadline_s: float) -> Future[Outcome]: ...

    def has_failed(self) -> bool: ...

    def counts(self) -> Counter[str]: ...


class _Embedded(_Asked):
    def __init__(self, agent: Agent, wait_s: float) -> None:
        self._agent = agent
        self._wait_s = wait_s

    @property
    def specs(self) -> Sequence[TensorSpec]:
        return self._agent.bundle.manifest.model.inputs

    def announce(self, *, json: bool | None) -> None:
        _announce(self._agent, self._wait_s, json=json)

    def submit(self, inputs: Tensors, *, deadline_s: float) -> Future[Outcome]:
        return self._agent.submit(inputs, deadline_s=deadline_s)

    def has_failed(self) -> bool:
        return self._agent.fatal is not None

    def counts(self) -> Counter[str]:
        return Counter({f"uplink_{name}": count for name, count in self._agent.uplink.stats.items()})

    def __enter__(self) -> _Embedded:
        self._agent.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.close()


class _Running(_Asked):
    """The daemon, asked by as many threads as requests may be in flight."""

    def __init__(self, client: LocalClient, concurrency: int) -> None:
        self._client = client
        self._specs = client.inputs()
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="isthmus-client")

    @property
    def specs(self) -> Sequence[TensorSpec]:
        return self._specs

    def announce(self, *, json: bool | None) -> None:
        seen = self._client.document("/v2/isthmus/status")
        gateways = [gateway["name"] for gateway in seen["gateways"] if gateway["ready"]]
        _say_ready(next(iter(gateways), "edge-only"), seen["bundle"]["digest"], json=json)

    def submit(self, inputs: Tensors, *, deadline_s: float) -> Future[Outcome]:
        return self._threads.submit(self._client.infer, inputs, deadline_s=deadline_s)

    def has_failed(self) -> bool:
        return False

    def counts(self) -> Counter[str]:
        return Counter()

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()


class _Runner:
    """Keeps up to `concurrency` requests in flight and prints each outcome, in the order of submission."""

    def __init__(self, asked: _Asked, deadline_s: float, outputs: Outputs, stop: threading.Event) -> None:
        self.counts: Counter[str] = Counter()
        self._asked = asked
        self._deadline_s = deadline_s
        self._outputs = outputs
        self._stop = stop

    def run(self, samples: Iterator[Sample], concurrency: int, interval_s: float) -> None:
        waiting: deque[tuple[int, str, Future[Outcome]]] = deque()
        next_at = time.monotonic()
        for index, sample in enumerate(samples):
            if self._stop.is_set() or self._asked.has_failed():
                break
            if sample.error:
                self.counts["invalid"] += 1
                print_json({"index": index, "source": sample.name, "status": "invalid", "error": sample.error})
                continue
            waiting.append((index, sample.name, self._asked.submit(sample.inputs, deadline_s=self._deadline_s)))
            self.counts["submitted"] += 1
            if len(waiting) >= concurrency:
                self._print(*waiting.popleft())
            next_at = max(next_at + interval_s, time.monotonic())
            if interval_s and self._stop.wait(max(next_at - time.monotonic(), 0.0)):
                break
        while waiting:
            self._print(*waiting.popleft())

    def _print(self, index: int, name: str, future: Future[Outcome]) -> None:
        line = _line(index, name, future.result(), self._outputs)
        self.counts[line["status"]] += 1
        print_json(line)


def _agent(
    bundle: Path,
    gateway: str | None,
    threads: int,
    slowdown: float,
    placements: str,
    fault_file: Path | None,
    insecure: bool,
    keys_dir: Path | None,
    server_key: str,
) -> Agent:
    from edge_agent.agent import Agent, AgentConfig  # the engine library is slow to import

    return Agent(
        AgentConfig(
            bundle=bundle,
            gateway=gateway,
            threads=threads,
            edge_slowdown=slowdown,
            placements=tuple(p.strip() for p in placements.split(",") if p.strip()),
            fault_file=fault_file,
            insecure=insecure,
            keys=keys_dir,
            server_key=server_key,
        )
    )


def _announce(agent: Agent, wait_s: float, *, json: bool | None) -> None:
    """Say that we serve, and with whom. Raises NetworkError if neither a gateway nor the device can answer anything."""
    gateway = agent.config.gateway
    ready = agent.wait_ready(wait_s)
    if not ready:
        if not agent.serves_alone:
            from edge_agent.agent import nobody_answers  # the engine library is slow to import

            raise nobody_answers(gateway, agent.heads.failed)
        if gateway:
            print(f"no gateway answers at {gateway} yet; answering on the device until one does", file=sys.stderr)
    from protocol import sensors  # the engine library is slow to import

    device = agent.bundle.manifest.conditions.device
    if device is not None and (difference := elsewhere(device, sensors.machine())):
        print(f"{difference}: until each placement was used here, predictions are that machine's", file=sys.stderr)
    endpoint = agent.gateway if ready else "edge-only"
    _say_ready(endpoint, agent.bundle.digest, json=json)


def _say_ready(endpoint: str, bundle: str, *, json: bool | None) -> None:
    """`endpoint` is the gateway's; edge-only where none is there."""
    if json is None:
        return
    if json:
        print_json({"event": "ready", "endpoint": endpoint, "bundle": bundle})
    else:
        print(f"ready {endpoint}", flush=True)


def _line(index: int, name: str, outcome: Outcome, outputs: Outputs) -> dict[str, Any]:
    from edge_agent.outcomes import Refusal

    head: dict[str, Any] = {"index": index, "source": name, "request": outcome.request}
    if isinstance(outcome, Refusal):
        return head | {
            "status": "refused",
            "code": outcome.code,
            "reason": outcome.reason,
            "slack_ms": round(outcome.slack_s * 1e3, 3),
            "degraded": outcome.degraded,
            "causes": outcome.causes,
        }
    t = outcome.timings
    return head | {
        "status": "answered",
        "placement": outcome.placement,
        "kind": outcome.kind,
        "degraded": outcome.degraded,
        "causes": outcome.causes,
        "latency_ms": round(t.total_s * 1e3, 3),
        "predicted_ms": None if outcome.predicted_s is None else round(outcome.predicted_s * 1e3, 3),
        "timings_ms": {
            name.removesuffix("_s"): round(getattr(t, name) * 1e3, 3)
            for name in ("edge_s", "encode_s", "network_s", "queue_s", "decode_s", "compute_s")
        },
        "up_bytes": outcome.up_nbytes,
        "down_bytes": outcome.down_nbytes,
        "attempts": outcome.attempts,
        "batch_size": outcome.batch_size,
        "precision": outcome.precision,
        "engine": outcome.engine,
        "bundle": outcome.bundle,
        "outputs": {name: _shown(array, outputs) for name, array in outcome.outputs.items()},
    }


def _shown(array: Array, outputs: Outputs) -> dict[str, Any]:
    shown: dict[str, Any] = {"dtype": array.dtype.name, "shape": array.shape}
    if outputs is not Outputs.NONE and array.size and array.ndim:
        shown["argmax"] = array.reshape(len(array), -1).argmax(axis=1).tolist()
    if outputs is Outputs.VALUES:
        shown["values"] = array.tolist()
    return shown
