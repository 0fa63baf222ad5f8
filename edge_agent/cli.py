"""The device side: runs heads, sends activations, and falls back to what still works. One JSON line per answer."""

from __future__ import annotations

import enum
import itertools
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import InputError, NetworkError
from protocol.profile import elsewhere
from protocol.terminal import print_json

if TYPE_CHECKING:
    from edge_agent.agent import Agent
    from edge_agent.outcomes import Outcome
    from edge_agent.sources import Sample
    from protocol.tensors import Array

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Outputs(enum.StrEnum):
    NONE = "none"
    SUMMARY = "summary"
    VALUES = "values"


Bundle = Annotated[Path, typer.Option(help="Directory written by `partitioner split`.", show_default=False)]
Gateway = Annotated[str | None, typer.Option(help="tcp://HOST:PORT; without it everything runs on the device.")]
Deadline = Annotated[float, typer.Option(min=1, help="Budget of each request in milliseconds.")]
OutputsOption = Annotated[Outputs, typer.Option(help="What of the model's outputs each JSON line holds.")]
Threads = Annotated[int, typer.Option(min=1, help="Intra-op threads of the heads.")]
Slowdown = Annotated[float, typer.Option(min=1, help="Act as a device that is this many times slower.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow a gateway off this machine in plain text.")]
Keys = Annotated[Path | None, typer.Option("--keys", help="Folder with agent.key and server.pub: encrypts.")]
ServerKey = Annotated[str, typer.Option(help="The gateway's public key, or its file, instead of server.pub.")]
FaultFile = Annotated[Path | None, typer.Option(help="Drill: while this file exists, the head of every cut fails.")]
Placements = Annotated[str, typer.Option(help="Use only these placement ids, separated by commas.")]


@app.callback()
def _root() -> None:
    """The device side of split inference."""


@app.command()
def run(
    bundle: Bundle,
    source: Annotated[str, typer.Option(help="Samples: an .npz, a folder, or - (file names on stdin).")],
    gateway: Gateway = None,
    deadline_ms: Deadline = 1000.0,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight at most.")] = 1,
    interval_ms: Annotated[float, typer.Option(min=0, help="Least time between two submissions.")] = 0.0,
    loop: Annotated[bool, typer.Option("--loop", help="Start over when the source is exhausted.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Stop after this many requests; 0 means no limit.")] = 0,
    wait_s: Annotated[
        float, typer.Option(min=0, help="Wait this long for the gateway before the first request.")
    ] = 3.0,
    outputs: OutputsOption = Outputs.SUMMARY,
    threads: Threads = 1,
    edge_slowdown: Slowdown = 1.0,
    placements: Placements = "",
    fault_file: FaultFile = None,
    keys_dir: Keys = None,
    server_key: ServerKey = "",
    insecure: Insecure = False,
    json: Annotated[bool, typer.Option("--json", help="Every line of stdout is JSON, the ready line too.")] = False,
) -> None:
    """Answer every sample of SOURCE; one JSON line each. Serves on the device alone while the gateway is away."""
    from edge_agent.sources import open_source, read_lines

    if loop and source == "-":
        raise InputError("--loop needs a source that can be read again", "give an .npz or a folder")
    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    lines = read_lines(sys.stdin.fileno(), stop.is_set) if source == "-" else iter(())

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    agent = _agent(bundle, gateway, threads, edge_slowdown, placements, fault_file, insecure, keys_dir, server_key)
    specs = agent.bundle.manifest.model.inputs
    first = open_source(source, specs, lines)
    again: Iterator[Sample] = itertools.chain.from_iterable(
        open_source(source, specs, lines) for _ in itertools.repeat(None)
    )
    samples = itertools.chain(first, again) if loop else first
    with agent:
        _announce(agent, wait_s, json=json)
        runner = _Runner(agent, deadline_ms / 1e3, outputs, stop)
        runner.run(itertools.islice(samples, limit or None), concurrency, interval_ms / 1e3)
    counts = runner.counts | Counter({f"uplink_{k}": v for k, v in agent.uplink.stats.items()})
    if json:
        print_json({"event": "stopped", "counts": dict(counts)})
    else:
        print("stopped: " + ", ".join(f"{k} {v}" for k, v in sorted(counts.items())), file=sys.stderr)
    if agent.fatal is not None:
        raise SystemExit(1)
    if runner.counts["invalid"]:
        raise InputError(f"{runner.counts['invalid']} samples did not fit the model", "see their lines above")


@app.command()
def infer(
    sample: Annotated[Path, typer.Argument(help="An .npz, .npy or image file.", show_default=False)],
    bundle: Bundle,
    gateway: Gateway = None,
    deadline_ms: Deadline = 1000.0,
    outputs: OutputsOption = Outputs.VALUES,
    threads: Threads = 1,
    keys_dir: Keys = None,
    server_key: ServerKey = "",
    insecure: Insecure = False,
    json: Annotated[bool, typer.Option("--json", help="Accepted for symmetry: the output is always JSON.")] = False,
) -> None:
    """Answer one SAMPLE and print it as one JSON line. Exit code 9 if it was refused."""
    from edge_agent.outcomes import Refusal, RefusedError
    from edge_agent.sources import load_sample

    agent = _agent(bundle, gateway, threads, 1.0, "", None, insecure, keys_dir, server_key)
    loaded = load_sample(sample, agent.bundle.manifest.model.inputs)
    with agent:
        if gateway is not None and not agent.wait_ready(3.0):
            print(f"no gateway answers at {gateway}; answering on the device", file=sys.stderr)
        outcome = agent.submit(loaded.inputs, deadline_s=deadline_ms / 1e3).result()
    print_json(_line(0, loaded.name, outcome, outputs))
    if isinstance(outcome, Refusal):
        raise RefusedError(outcome)


@app.command()
def profile(
    kit: Annotated[Path, typer.Argument(help="A kit of `partitioner profile --kit`.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the profile (JSON).")],
    threads: Threads = 1,
    budget_s: Annotated[float, typer.Option(min=0, help="Seconds for timing; kernels and memory come on top.")] = 60.0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in fresh processes.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the profile too, as one JSON line.")] = False,
) -> None:
    """Measure the segments of KIT on this device, for `partitioner` to plan with."""
    from edge_agent import profiling
    from protocol.kit import KitRun

    made = profiling.profile(kit, output, KitRun(budget_s=budget_s, threads=threads, memory=memory))
    if json:
        print_json(made)
    else:
        whole = made.anchors[0].time
        print(f"{output}: {made.model} takes {whole.median_s * 1e3:.3f} ms here; {len(made.anchors) - 1} segments")


@app.command("keys")
def keys_(
    folder: Annotated[Path, typer.Argument(help="Folder for agent.key, made if it is not there.", show_default=False)],
    name: Annotated[str, typer.Option(help="What this device calls itself.")] = "edge-agent",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Make this device's key if it has none, and print the public half for `cloud-gateway keys add NAME --key`."""
    from protocol import keys

    path = folder / "agent.key"
    if path.exists():
        pair = keys.read_pair(path)
    else:
        pair = keys.make_pair(name)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made ({error.strerror})", "choose another folder") from error
        keys.write_pair(path, pair)
    if json:
        print_json({"name": pair.name, "key": pair.public.data.hex(), "fingerprint": pair.public.fingerprint})
    else:
        print(pair.public.line())


class _Runner:
    """Keeps up to `concurrency` requests in flight and prints each outcome, in the order of submission."""

    def __init__(self, agent: Agent, deadline_s: float, outputs: Outputs, stop: threading.Event) -> None:
        self.counts: Counter[str] = Counter()
        self._agent = agent
        self._deadline_s = deadline_s
        self._outputs = outputs
        self._stop = stop

    def run(self, samples: Iterator[Sample], concurrency: int, interval_s: float) -> None:
        waiting: deque[tuple[int, str, Future[Outcome]]] = deque()
        next_at = time.monotonic()
        for index, sample in enumerate(samples):
            if self._stop.is_set() or self._agent.fatal is not None:
                break
            if sample.error:
                self.counts["invalid"] += 1
                print_json({"index": index, "source": sample.name, "status": "invalid", "error": sample.error})
                continue
            waiting.append((index, sample.name, self._agent.submit(sample.inputs, deadline_s=self._deadline_s)))
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


def _announce(agent: Agent, wait_s: float, *, json: bool) -> None:
    """Say that we serve, and with whom. Raises NetworkError if neither a gateway nor the device can answer anything."""
    gateway = agent.config.gateway
    ready = agent.wait_ready(wait_s)
    if not ready:
        if not agent.serves_alone:
            where = f"no gateway answers at {gateway}" if gateway else "no gateway was named"
            raise NetworkError(
                f"{where} and none of the placements that may be used runs on the device alone",
                "start the gateway, or allow edge-only",
            )
        if gateway:
            print(f"no gateway answers at {gateway} yet; answering on the device until one does", file=sys.stderr)
    from protocol import sensors  # the engine library is slow to import

    device = agent.bundle.manifest.conditions.device
    if device is not None and (difference := elsewhere(device, sensors.machine())):
        print(f"{difference}: until each placement was used here, predictions are that machine's", file=sys.stderr)
    endpoint = agent.gateway if ready else "edge-only"
    if json:
        print_json({"event": "ready", "endpoint": endpoint, "bundle": agent.bundle.digest})
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
        }
    t = outcome.timings
    return head | {
        "status": "answered",
        "placement": outcome.placement,
        "kind": outcome.kind,
        "degraded": outcome.degraded,
        "latency_ms": round(t.total_s * 1e3, 3),
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
