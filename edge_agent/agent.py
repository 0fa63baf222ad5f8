"""The agent: bundle, heads, compute thread and uplink put together. Applications use it through `client`.

    config = AgentConfig(bundle=Path("bundle"), gateway="tcp://127.0.0.1:7447")
    with Agent(config) as agent:
        future = agent.submit({"image": frame}, deadline_s=0.5)
        outcome = future.result()            # an Answer or a Refusal, always within the deadline (plus scheduling)

If the process is killed, requests that were not answered yet are gone with it: nothing is stored on disk.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_agent.compute import Compute, Rehearsal
from edge_agent.errands import Ending, Found, Look, Stop, Submit, Withdraw
from edge_agent.heads import Heads, Prepared
from edge_agent.outcomes import Answer, Outcome, Refusal, StageTimings
from edge_agent.references import References
from edge_agent.resolver import Asking, Resolver, Source, ask_srv, parse, require_private
from edge_agent.rows import Rows
from edge_agent.uplink import Uplink
from edge_agent.view import AgentView
from edge_agent.ways import Ways
from protocol import __version__, wire
from protocol import messages as m
from protocol.bundle import Bundle, PlacementEntry
from protocol.control.flights import RefusalCode, Row
from protocol.control.ladder import Ladder
from protocol.control.objectives import LATENCY, Objective
from protocol.control.planner import Candidate, Planner
from protocol.control.session import State
from protocol.errors import BundleError, InputError, IsthmusError, NetworkError
from protocol.messages import MAX_TEXT_LENGTH, PlacementKind
from protocol.signing import Trust
from protocol.sockets import Endpoint, parse_endpoint
from protocol.tensors import Array, Tensors, check_inputs


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent needs to know. One line of documentation per field."""

    bundle: Path  # directory written by `partitioner split`
    # tcp://HOST:PORT or srv://NAME of a DNS SRV record, or several of them; None or none serves edge-only
    gateway: str | Sequence[str] | None = None
    name: str = "edge-agent"  # how the gateway's logs call this device
    threads: int = 1  # intra-op threads of the heads
    edge_slowdown: float = 1.0  # declared: the device is this many times slower than this machine
    fault_file: Path | None = None  # drill: while this file exists, the head of every cut fails
    insecure: bool = False  # allow a gateway off this machine in plain text
    keys: Path | None = None  # folder with agent.key and server.pub; None speaks plain text
    server_key: str = ""  # the gateway's public key, or a file of such, instead of server.pub
    placements: tuple[str, ...] = ()  # only these placement ids may be used; empty allows all
    providers: tuple[str, ...] = ("cpu",)  # what may run heads, the preferred first: see `device/providers.py`
    plans: Path | None = None  # folder of plans that tensorrt-native built
    objective: Objective = LATENCY  # what the best placement is the best in
    hedge: bool = False  # start edge-only beside a request that is out when its budget gets tight; the first one wins
    name_servers: tuple[str, ...] = ()  # ADDRESS:PORT to ask for SRV records; empty asks the system's
    seed: int | None = None  # of the draws among several gateways; None is a new one every time
    trust: Trust | None = None  # whose signature the bundle must bear; None takes it as it is


@dataclass(slots=True)
class _Pending:
    future: Future[Outcome]
    submitted: float
    deadline: float
    name: m.RequestId


class Agent:
    """Answers inference requests, each exactly once, wherever that is best right now. Thread-safe."""

    def __init__(self, config: AgentConfig, *, readied: Callable[[], None] = lambda: None) -> None:
        """Check everything that can be checked without starting. `readied` is called, on the socket thread, when there
        is a gateway where there was none: keep it short. Raises BundleError or InputError."""
        self.config = config
        self.bundle = Bundle.open(config.bundle, config.trust)
        self._entries = _chosen(self.bundle, config.placements)
        self._sources = _sources(config)
        ways_of = partial(Ways, keys_dir=config.keys, server_key=config.server_key)
        if self._sources:
            ways_of(Endpoint("127.0.0.1", 1))  # keys that cannot be read are refused now
        if len(config.name) > MAX_TEXT_LENGTH:
            raise InputError(f"an agent name of {len(config.name)} characters", f"use at most {MAX_TEXT_LENGTH}")
        if not 1.0 <= config.edge_slowdown < math.inf:
            raise InputError(f"edge slow-down {config.edge_slowdown}", "give a factor of 1 or more")
        self.heads = Heads(
            self.bundle, threads=config.threads, slowdown=config.edge_slowdown, fault_file=config.fault_file,
            order=config.providers,
            plans=config.plans,
        )  # fmt: skip
        self._rows = Rows(self.bundle.manifest)
        self._boot = os.urandom(8)
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._names: set[m.RequestId] = set()  # of what is pending
        self._lock = threading.Lock()
        self._closed = False
        self._started_in: int | None = None
        self.fatal: BaseException | None = None
        rows = [Row(e.id, e.kind, _segment(e), e.head, e.tail) for e in self._entries.values()]
        candidates = [Candidate(e.id, e.cost, e.head or "", e.tail or "") for e in self._entries.values()]
        self.planner = Planner(candidates, config.objective)
        self._ladder = Ladder(
            rows,
            self.planner,
            expects_gateway=bool(self._sources),
            gateways=(),
            chance=random.Random(config.seed),
            hedge=config.hedge,
        )
        references = References()
        self.uplink = Uplink(
            gateways=[Found(s.text, (s.literal,) if s.literal else ()) for s in self._sources if not s.is_srv],
            ways_of=ways_of,
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
            readied=readied,
        )
        self._compute = Compute(self.heads, references, self.uplink.post, self.uplink.wanted)
        named = [source for source in self._sources if source.literal is None]
        self._resolver = Resolver(named, self.uplink.post, _asking(config)) if named else None

    def start(self) -> None:
        """Load the heads and start the threads. Raises BundleError for a damaged file."""
        sys.setswitchinterval(0.0005)  # a busy Python caller in this process otherwise costs the I/O thread 5 ms a turn
        self.heads.activate()
        for id_, reason in self.heads.failed.items():
            self._ladder.disable(id_, reason)
        self._compute.start()
        self.uplink.start()
        if self._resolver is not None:
            self._resolver.start()
        self._started_in = os.getpid()

    def submit(
        self, inputs: Tensors, *, deadline_s: float, priority: int = 4, identity: m.RequestId | None = None
    ) -> Future[Outcome]:
        """Ask for an answer within `deadline_s` seconds; the future resolves to an Answer or a Refusal.

        `inputs` maps ONNX input names to arrays of the model's element types and shapes. They are not copied: leave
        them alone until the future is done. Callbacks of the future run on the socket thread: keep them short.
        `priority` is 0 (first) to 9. `identity` names a request that outlives this process: gateways take it for the
        same one as before and answer it without doing it again; its boot id is not this agent's. Raises InputError for
        tensors that the model does not take, and for an identity that is pending.

        Who cancels the future wants no answer any more: a head that has not begun is not run, and a gateway that may be
        at work on it is told.
        """
        check_inputs(self.bundle.manifest.model.inputs, inputs)
        if not 0 < deadline_s < math.inf:
            raise InputError(f"deadline of {deadline_s} s", "give the seconds that you can wait, for example 0.5")
        if not 0 <= priority <= 9:
            raise InputError(f"priority {priority}", "give 0 (first) to 9 (last)")
        if self._started_in != os.getpid():
            raise InputError(
                "the agent was not started in this process", "use `with`, and after a fork an agent of its own"
            )
        now = time.monotonic()
        future: Future[Outcome] = Future()
        with self._lock:
            if self._closed:
                future.set_result(Refusal("", RefusalCode.CLOSED, "the agent was shut down", deadline_s))
                return future
            seq = next(self._numbers)
            name = identity or m.RequestId(self._boot, seq)
            if name in self._names:
                raise InputError(f"request {name} is pending already", "wait for its outcome")
            self._names.add(name)
            self._pending[seq] = _Pending(future, now, now + deadline_s, name)
            self.uplink.post(Submit(seq, inputs, now + deadline_s, name, priority, self._rows.of(inputs)))
        future.add_done_callback(partial(self._withdrawn, seq))
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

    def look(self, timeout_s: float = 1.0, *, explain: bool = False) -> AgentView:
        """How things stand now; with `explain`, also why, and what would change it (a fraction of a millisecond of the
        socket thread's time). Any thread may ask but the one that runs callbacks. Raises IsthmusError if the socket
        thread does not say so within `timeout_s`."""
        future: Future[AgentView] = Future()
        if not self.uplink.runs():
            return self.uplink.view(explain=explain)
        self.uplink.post(Look(future, explain))
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            if not self.uplink.runs():  # ended meanwhile
                return self.uplink.view(explain=explain)
            fact = f"the agent's socket thread has not answered for {timeout_s:g} s"
            raise IsthmusError(fact, "if it hangs, restart the agent; its watchdog would") from error

    @property
    def gateway(self) -> str:
        """The literal endpoint of the gateway in use, or of any that takes requests; empty while none does."""
        links = list(self.uplink.gateways.links.values())
        links.sort(key=lambda link: (link.state is not State.READY, link.name != self._ladder.fleet.in_use))
        return str(links[0].endpoint or links[0].name) if links else ""

    @property
    def serves_alone(self) -> bool:
        """Whether requests can be answered while no gateway is there."""
        return any(e.kind is PlacementKind.EDGE_ONLY and e.id not in self.heads.failed for e in self._entries.values())

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether a gateway has welcomed this agent within `timeout_s`."""
        return bool(self._sources) and self.uplink.ready.wait(timeout_s)

    def close(self) -> None:
        """Refuse what is pending and stop the threads. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._started_in is None:
            return
        if self._resolver is not None:
            self._resolver.stop()
        self.uplink.post(Stop())
        self.uplink.join()
        self._compute.stop()
        self.heads.deactivate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _withdrawn(self, seq: int, future: Future[Outcome]) -> None:
        if future.cancelled():
            self.uplink.post(Withdraw(seq))

    # ---- called by the uplink's thread ------------------------------------------------------------------------------

    def _ended(self, ending: Ending) -> None:
        with self._lock:
            pending = self._pending[ending.finish.seq]
        outcome = self._outcome(ending, pending, time.monotonic())  # a bug in here must leave the request pending
        with self._lock:
            del self._pending[ending.finish.seq]
            self._names.discard(pending.name)
        _end(pending.future, outcome)

    def _crashed(self, error: BaseException) -> None:
        """A bug: answer what is pending, say what happened, and end the process so that its supervisor restarts it."""
        self.fatal = error
        traceback.print_exception(error, file=sys.stderr)
        with self._lock:
            self._closed = True
            left, self._pending = self._pending, {}
        for pending in left.values():
            _end(pending.future, Refusal(str(pending.name), RefusalCode.CLOSED, f"internal error: {error}", 0.0))

    def _outcome(self, ending: Ending, pending: _Pending, now: float) -> Outcome:
        finish, prepared, remote = ending.finish, ending.prepared, ending.remote
        request = str(pending.name)
        if finish.code is not None or prepared is None:
            code = finish.code or RefusalCode.NO_PLACEMENT
            slack_s = max(pending.deadline - now, 0.0)
            return Refusal(request, code, finish.reason, slack_s, finish.degraded, finish.causes)
        entry = self._entries[finish.placement]
        timings = StageTimings(edge_s=prepared.edge_s, encode_s=prepared.encode_s, total_s=now - pending.submitted)
        outputs = dict(prepared.outputs)
        if remote is None:
            return self._answer(request, ending, entry, outputs, timings, prepared.engine, entry.precision)
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
        engine = " + ".join(dict.fromkeys(e for e in (prepared.engine, wire.printable(remote.result.engine)) if e))
        return self._answer(request, ending, entry, outputs, timings, engine, wire.printable(remote.result.precision))

    def _answer(
        self,
        request: str,
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
            request=request,
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
            causes=ending.finish.causes,
            gateway=ending.finish.gateway,
            hedged=ending.finish.hedged,
            predicted_s=ending.finish.predicted_s,
        )


def nobody_answers(gateways: object, failed: Mapping[str, str]) -> NetworkError:
    """Neither the `gateways`, as they were named, nor the device can answer; `failed` says why heads do not run."""
    where = f"no gateway answers at {gateways}" if gateways else "no gateway was named"
    fact = f"{where} and none of the placements that may be used runs on the device alone"
    if reasons := "; ".join(dict.fromkeys(failed.values())):
        return NetworkError(f"{fact} ({reasons})", "start the gateway, or mend that")
    return NetworkError(fact, "start the gateway, or allow edge-only")


def _end(future: Future[Outcome], outcome: Outcome) -> None:
    with contextlib.suppress(SystemExit):  # of a caller's callback: it ends no thread of ours, and no agent
        if future.set_running_or_notify_cancel():  # else its caller has cancelled it
            future.set_result(outcome)


def _asking(config: AgentConfig) -> Asking:
    """Whom to ask for names, and which addresses may be connected to. Raises InputError."""
    servers = tuple(parse_endpoint(text) for text in config.name_servers)
    private = config.keys is None and not config.insecure
    return Asking(allowed=lambda endpoint: endpoint.is_loopback or not private, srv=partial(ask_srv, servers=servers))


def _sources(config: AgentConfig) -> tuple[Source, ...]:
    """What names the gateways. Raises InputError."""
    given = (config.gateway,) if isinstance(config.gateway, str) else tuple(config.gateway or ())
    sources = tuple(dict.fromkeys(parse(text) for text in given))
    if config.keys is None:
        for source in sources:
            require_private(source, insecure=config.insecure)
    return sources


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
