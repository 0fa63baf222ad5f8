"""The agent: bundle, heads, compute thread and uplink put together. Applications use it through `client`.

    config = AgentConfig(bundle=Path("bundle"), gateway="tcp://127.0.0.1:7447")
    with Agent(config) as agent:
        future = agent.submit({"image": frame}, deadline_s=0.5)
        outcome = future.result()            # an Answer or a Refusal, always within the deadline (plus scheduling)

If the process is killed, requests that were not answered yet are gone with it: nothing is stored on disk.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_agent.compute import Compute, Rehearsal
from edge_agent.errands import Ending, Stop, Submit
from edge_agent.heads import Heads, Prepared
from edge_agent.outcomes import Answer, Outcome, Refusal, StageTimings
from edge_agent.references import References
from edge_agent.uplink import Uplink
from edge_agent.ways import Ways
from protocol import __version__, sockets
from protocol import messages as m
from protocol.bundle import Bundle, PlacementEntry
from protocol.control.flights import RefusalCode, Row
from protocol.control.ladder import Ladder
from protocol.control.planner import Candidate, Planner
from protocol.errors import BundleError, InputError
from protocol.messages import MAX_TEXT_LENGTH, PlacementKind
from protocol.tensors import Array, Tensors, check_inputs


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent needs to know. One line of documentation per field."""

    bundle: Path  # directory written by `partitioner split`
    gateway: str | None = None  # tcp://HOST:PORT; None serves edge-only
    name: str = "edge-agent"  # how the gateway's logs call this device
    threads: int = 1  # intra-op threads of the heads
    edge_slowdown: float = 1.0  # declared: the device is this many times slower than this machine
    fault_file: Path | None = None  # drill: while this file exists, the head of every cut fails
    insecure: bool = False  # allow a gateway off this machine in plain text
    keys: Path | None = None  # folder with agent.key and server.pub; None speaks plain text
    server_key: str = ""  # the gateway's public key, or a file of such, instead of server.pub
    placements: tuple[str, ...] = ()  # only these placement ids may be used; empty allows all
    providers: tuple[str, ...] = ("cpu",)  # what may run heads, the preferred first: tensorrt, cuda, cpu


@dataclass(slots=True)
class _Pending:
    future: Future[Outcome]
    submitted: float
    deadline: float


class Agent:
    """Answers inference requests, each exactly once, wherever that is best right now. Thread-safe."""

    def __init__(self, config: AgentConfig) -> None:
        """Check everything that can be checked without starting. Raises BundleError or InputError."""
        self.config = config
        self.bundle = Bundle.open(config.bundle)
        self._entries = _chosen(self.bundle, config.placements)
        self._endpoint, ways = None, None
        if config.gateway is not None:
            self._endpoint = sockets.resolve(sockets.parse_endpoint(config.gateway))
            if config.keys is None:
                sockets.require_loopback(self._endpoint, insecure=config.insecure, doing="connecting to")
            ways = Ways(self._endpoint, config.keys, config.server_key)
        if len(config.name) > MAX_TEXT_LENGTH:
            raise InputError(f"an agent name of {len(config.name)} characters", f"use at most {MAX_TEXT_LENGTH}")
        if not 1.0 <= config.edge_slowdown < math.inf:
            raise InputError(f"edge slow-down {config.edge_slowdown}", "give a factor of 1 or more")
        self.heads = Heads(
            self.bundle,
            threads=config.threads,
            slowdown=config.edge_slowdown,
            fault_file=config.fault_file,
            order=config.providers,
        )
        self._boot = os.urandom(8)
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._started_in: int | None = None
        self.fatal: BaseException | None = None
        rows = [Row(e.id, e.kind, _segment(e), e.head, e.tail) for e in self._entries.values()]
        self.planner = Planner([Candidate(e.id, e.cost, e.head or "", e.tail or "") for e in self._entries.values()])
        self._ladder = Ladder(rows, self.planner, expects_gateway=self._endpoint is not None)
        references = References()
        self.uplink = Uplink(
            ways=ways,
            hello=m.Hello(
                boot=self._boot,
                agent=config.name,
                software=f"isthmus {__version__}",
                model_digest=bytes.fromhex(self.bundle.manifest.model.digest),
            ),
            ladder=self._ladder,
            segments={row.id: row.segment for row in rows if row.segment is not None},
            outputs=frozenset(s.name for s in self.bundle.manifest.model.outputs),
            references=references,
            submit_job=lambda job: self._compute.submit(job),
            ended=self._ended,
            crashed=self._crashed,
        )
        self._compute = Compute(self.heads, references, self.uplink.post, self.uplink.wanted)

    def start(self) -> None:
        """Load the heads and start the threads. Raises BundleError for a damaged file."""
        sys.setswitchinterval(0.0005)  # a busy Python caller in this process otherwise costs the I/O thread 5 ms a turn
        self.heads.activate()
        for id_, reason in self.heads.failed.items():
            self._ladder.disable(id_, reason)
        self._compute.start()
        self.uplink.start()
        self._started_in = os.getpid()

    def submit(self, inputs: Tensors, *, deadline_s: float) -> Future[Outcome]:
        """Ask for an answer within `deadline_s` seconds; the future resolves to an Answer or a Refusal.

        `inputs` maps ONNX input names to arrays of the model's element types and shapes. They are not copied: leave
        them alone until the future is done. Callbacks of the future run on the socket thread: keep them short. Raises
        InputError for tensors that the model does not take.
        """
        check_inputs(self.bundle.manifest.model.inputs, inputs)
        if not 0 < deadline_s < math.inf:
            raise InputError(f"deadline of {deadline_s} s", "give the seconds that you can wait, for example 0.5")
        if self._started_in != os.getpid():
            raise InputError(
                "the agent was not started in this process", "use `with`, and after a fork an agent of its own"
            )
        now = time.monotonic()
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()  # it always ends by itself, within its deadline
        with self._lock:
            if self._closed:
                future.set_result(Refusal("", RefusalCode.CLOSED, "the agent was shut down", deadline_s))
                return future
            seq = next(self._numbers)
            self._pending[seq] = _Pending(future, now, now + deadline_s)
            self.uplink.post(Submit(seq, inputs, now + deadline_s))
        return future

    def rehearse(self, inputs: Tensors, *, placement: str) -> Future[Prepared]:
        """Run the head of `placement` on these inputs, along the way of a request through both threads.

        For known answers: a thread that hangs leaves the future pending, so wait with a timeout. It is no request:
        nothing is sent, planned or counted. The future raises EngineError where the head fails. Raises InputError for
        tensors that the model does not take.
        """
        check_inputs(self.bundle.manifest.model.inputs, inputs)
        future: Future[Prepared] = Future()
        future.set_running_or_notify_cancel()
        self.uplink.post(Rehearsal(placement, inputs, future))
        return future

    @property
    def gateway(self) -> str:
        """The gateway's literal endpoint; empty without one."""
        return str(self._endpoint) if self._endpoint else ""

    @property
    def serves_alone(self) -> bool:
        """Whether requests can be answered while no gateway is there."""
        return any(e.kind is PlacementKind.EDGE_ONLY and e.id not in self.heads.failed for e in self._entries.values())

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether a gateway has welcomed this agent within `timeout_s`."""
        return self._endpoint is not None and self.uplink.ready.wait(timeout_s)

    def close(self) -> None:
        """Refuse what is pending and stop the threads. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._started_in is None:
            return
        self.uplink.post(Stop())
        self.uplink.join()
        self._compute.stop()
        self.heads.deactivate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- called by the uplink's thread ------------------------------------------------------------------------------

    def _ended(self, ending: Ending) -> None:
        with self._lock:
            pending = self._pending[ending.finish.seq]
        outcome = self._outcome(ending, pending, time.monotonic())  # a bug in here must leave the request pending
        with self._lock:
            del self._pending[ending.finish.seq]
        pending.future.set_result(outcome)

    def _crashed(self, error: BaseException) -> None:
        """A bug: answer what is pending, say what happened, and end the process so that its supervisor restarts it."""
        self.fatal = error
        traceback.print_exception(error, file=sys.stderr)
        with self._lock:
            self._closed = True
            left, self._pending = self._pending, {}
        for seq, pending in left.items():
            pending.future.set_result(Refusal(self._id(seq), RefusalCode.CLOSED, f"internal error: {error}", 0.0))

    def _outcome(self, ending: Ending, pending: _Pending, now: float) -> Outcome:
        finish, prepared, remote = ending.finish, ending.prepared, ending.remote
        request = self._id(finish.seq)
        if finish.code is not None or prepared is None:
            code = finish.code or RefusalCode.NO_PLACEMENT
            slack_s = max(pending.deadline - now, 0.0)
            return Refusal(request, code, finish.reason, slack_s, finish.degraded)
        entry = self._entries[finish.placement]
        timings = StageTimings(edge_s=prepared.edge_s, encode_s=prepared.encode_s, total_s=now - pending.submitted)
        outputs = dict(prepared.outputs)
        if remote is None:
            return self._answer(ending, entry, outputs, timings, prepared.engine, entry.precision)
        outputs.update(remote.outputs)
        t = remote.result.timings
        timings = StageTimings(
            edge_s=prepared.edge_s,
            encode_s=prepared.encode_s,
            network_s=max(remote.round_trip_s - t.residence_us / 1e6, 0.0),
            queue_s=t.queue_us / 1e6,
            decode_s=t.decode_us / 1e6,
            compute_s=t.compute_us / 1e6,
            total_s=now - pending.submitted,
        )
        engine = " + ".join(dict.fromkeys(e for e in (prepared.engine, remote.result.engine) if e))
        return self._answer(ending, entry, outputs, timings, engine, remote.result.precision)

    def _answer(
        self,
        ending: Ending,
        entry: PlacementEntry,
        outputs: dict[str, Array],
        timings: StageTimings,
        engine: str,
        precision: str,
    ) -> Answer:
        remote = ending.remote
        for array in outputs.values():
            array.flags.writeable = False  # what came over the wire is a view of the message; the rest shall not differ
        order = [spec.name for spec in self.bundle.manifest.model.outputs]
        return Answer(
            request=self._id(ending.finish.seq),
            outputs={name: outputs[name] for name in order},
            placement=entry.id,
            kind=str(entry.kind),
            precision=precision,
            engine=engine,
            bundle=self.bundle.digest,
            timings=timings,
            up_nbytes=remote.up_nbytes if remote else 0,
            down_nbytes=remote.down_nbytes if remote else 0,
            attempts=ending.finish.attempts,
            batch_size=remote.result.timings.batch_size if remote else 1,
            degraded=ending.finish.degraded,
        )

    def _id(self, seq: int) -> str:
        return str(m.RequestId(self._boot, seq))


def _segment(entry: PlacementEntry) -> bytes | None:
    return bytes.fromhex(entry.segment) if entry.segment else None


def _chosen(bundle: Bundle, wanted: tuple[str, ...]) -> dict[str, PlacementEntry]:
    entries = {e.id: e for e in bundle.manifest.placements}
    unknown = [id_ for id_ in wanted if id_ not in entries]
    if unknown:
        raise InputError(f"the bundle has no placement {unknown[0]!r}", f"it has {', '.join(entries)}")
    chosen = {id_: e for id_, e in entries.items() if not wanted or id_ in wanted}
    if not chosen:
        raise BundleError(f"{bundle.root} holds no placement", "rebuild it with `partitioner split`")
    return chosen
