"""Keeps what is served in step with the model folder: one thread that looks, decides (LifeCycle) and acts on a host.

    mode       looks at the folder                                       versions come and go
    explicit   at the start and when somebody asks                       when somebody asks
    poll       every `poll_s`                                            as the folder and the policies say, or asked
    watch      when the system reports a change, and every minute        the same

Nothing but this thread calls the host. Everything else (`load`, `unload`, `index`, `is_ready`) may be called from any
thread: requests wait for their answer, the rest reads what the thread published last.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from cloud_gateway.models.lifecycle import LifeCycle
from cloud_gateway.models.repository import Glance, Repository
from cloud_gateway.models.served import ServedVersion
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import (
    Event,
    Failed,
    Idle,
    Load,
    LoadAsked,
    Loaded,
    Publish,
    Ref,
    Reply,
    Same,
    Scanned,
    Standing,
    State,
    Tick,
    Unload,
    UnloadAsked,
    Warmed,
    WarmUp,
    Withdraw,
)
from protocol.errors import InputError, IsthmusError

if TYPE_CHECKING:
    from cloud_gateway.models.watching import Watcher

Mode = Literal["explicit", "poll", "watch"]

DRAIN_POLL_S = 0.02  # how often a host is asked what is in flight, while something drains
BACKSTOP_S = 60.0  # watch mode looks this often without being told
INF = float("inf")
THREAD = "model-keeper"  # its thread's name: in a load that hangs, it outlives the rest
STOP_S = 10.0  # how long `stop` waits for a load that is under way


class Host(Protocol):
    """Who serves. Called from one thread; versions are told apart by `ServedVersion.identity`.

    Two builds of one version may be published for a moment; the one published last answers.
    """

    def load(self, version: ServedVersion) -> None:
        """Make its engines. Raises IsthmusError, and nothing is left behind then."""

    def warm_up(self, version: ServedVersion) -> None:
        """Run every declared shape. Raises IsthmusError; `unload` follows then."""

    def publish(self, version: ServedVersion) -> None:
        """Requests may find it from now on."""

    def withdraw(self, version: ServedVersion) -> None:
        """No new request finds it. It may be published again."""

    def in_flight(self, version: ServedVersion) -> int:
        """Requests that were admitted to it and have no result yet."""

    def unload(self, version: ServedVersion) -> None:
        """Give everything back."""


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """Where one version stands. `since` is monotonic seconds, `reason` empty where the state is a matter of course."""

    name: str
    version: int
    state: State
    reason: str = ""
    since: float = 0.0
    digest: str = ""  # of the bundle or the model, hex; "" before it was opened
    format: str = ""  # "bundle", "onnx", "triton"; "" before it was opened
    cause: Exception | None = field(default=None, compare=False)  # of an ERROR


def _ignore(_: object) -> None:
    pass


class Keeper:
    """Start it, ask it, stop it. `stop` leaves what is served to its host, which drains it in its own way.

    `load_at_start` names the models that explicit mode loads at once; "*" stands for all. `preserve` off unloads an old
    version before its replacement is loaded. Three listeners are called from the thread and must return soon: `changed`
    is told of every new state, `warn` of what lies in the folder and cannot be served, `crashed` of the bug that ended
    the thread.
    """

    def __init__(
        self,
        host: Host,
        repository: Repository,
        *,
        mode: Mode = "explicit",
        poll_s: float = 5.0,
        load_at_start: Sequence[str] = ("*",),
        preserve: bool = True,
        changed: Callable[[VersionStatus], None] = _ignore,
        warn: Callable[[str], None] = _ignore,
        crashed: Callable[[BaseException], None] = _ignore,
    ) -> None:
        self._host = host
        self._repository = repository
        self._mode = mode
        self._poll_s = poll_s
        self._load_at_start = load_at_start
        self._life = LifeCycle(automatic=mode != "explicit", preserve=preserve)
        self._changed, self._warn, self._crashed = changed, warn, crashed
        self._condition = threading.Condition()
        self._inbox: deque[LoadAsked | UnloadAsked] = deque()
        self._answers: dict[int, str | None] = {}  # by ticket; None while it is waited for
        self._tickets = itertools.count(1)
        self._look_at = INF
        self._look_asked = False
        self._wake: float | None = None
        self._stopping = False
        self._todo: Load | WarmUp | None = None
        self._served: dict[Ref, ServedVersion] = {}
        self._causes: dict[Ref, Exception] = {}
        self._index: tuple[VersionStatus, ...] = ()
        self._settled = False
        self._warned: frozenset[str] = frozenset()
        self._watcher: Watcher | None = None
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    # ---- for everybody ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look at the folder once and begin. Raises InputError or BundleError if there is nothing to look at."""
        glance = self._look_now()
        if self._mode == "explicit":
            for name in self._at_start(glance):
                self._tell(LoadAsked(name, None, next(self._tickets)))
        if self._mode == "watch" and self._repository.root is not None:
            from cloud_gateway.models.watching import Watcher

            self._watcher = Watcher([self._repository.root], self.look_soon, self._unwatched)
            self._watcher.start()
        self._thread.start()

    def stop(self) -> bool:
        """End the thread; whoever still waits is told so. What is served goes on being served.

        False if a load was still under way after `STOP_S`: the host is then still in use.
        """
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._watcher is not None:
            self._watcher.stop()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)
        return not self._thread.is_alive()

    def index(self) -> list[VersionStatus]:
        """Every version that lies in the repository or is held, by name and number."""
        return list(self._index)

    def is_ready(self) -> bool:
        """Whether something is served, and every model serves something or has failed to."""
        return self._settled and any(status.state is State.AVAILABLE for status in self._index)

    def wait_settled(self, wait_s: float) -> bool:
        """Wait until every model serves something or has failed to; False when the time is over first."""
        with self._condition:
            return self._condition.wait_for(lambda: self._settled or self._stopping, wait_s) and self._settled

    def load(self, name: str, version: int | None = None, *, wait_s: float = 60.0) -> str:
        """Serve a model (the versions that its policy names) or one version. "" when it is done, else why it is not."""
        return self._ask(LoadAsked(name, version, next(self._tickets)), wait_s)

    def unload(self, name: str, version: int | None = None, *, wait_s: float = 60.0) -> str:
        """Serve it no longer; done when the last request on it is. "" when it is done, else why it is not."""
        return self._ask(UnloadAsked(name, version, next(self._tickets)), wait_s)

    def look_soon(self) -> None:
        """Look at the folder again, now."""
        with self._condition:
            self._look_asked = True
            self._condition.notify_all()

    def retune(self, *, poll_s: float, policy: VersionPolicy) -> None:
        """Change what may change while serving: the interval, and the policy of models that state none."""
        self._poll_s, self._repository.policy = poll_s, policy
        if self._mode != "explicit":
            self.look_soon()

    def _unwatched(self, problem: str) -> None:
        self._warn(f"changes of the model folder are not reported ({problem}); it is looked at every {BACKSTOP_S:g} s")

    def _ask(self, request: LoadAsked | UnloadAsked, wait_s: float) -> str:
        ticket = request.ticket
        with self._condition:
            if not self._stopping:
                self._answers[ticket] = None
                self._inbox.append(request)
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._answers[ticket] is not None or self._stopping, wait_s)
            answer = self._answers.pop(ticket, None)
            if answer is not None:
                return answer
            return "the gateway is shutting down" if self._stopping else f"not done after {wait_s:g} s; it goes on"

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:  # the top of a thread
            self._crashed(error)
        finally:
            with self._condition:
                self._stopping = True
                self._condition.notify_all()

    def _turn(self) -> None:
        """Everything that is due, then one step of what takes long, or a wait."""
        with self._condition:
            requests = [*self._inbox]
            self._inbox.clear()
        for request in requests:
            if isinstance(request, LoadAsked):
                self._look()
            self._tell(request)
        if self._look_asked or time.monotonic() >= self._look_at:
            self._look_asked = False
            self._look()
        for ref in self._life.draining():
            if not self._host.in_flight(self._served[ref]):
                self._tell(Idle(ref))
        if self._wake is not None and time.monotonic() >= self._wake:
            self._tell(Tick())
        todo, self._todo = self._todo, None
        if todo is not None:
            self._tell(self._carry_out(todo))
            return
        with self._condition:
            if not (self._inbox or self._look_asked or self._stopping):
                self._condition.wait(self._rest_s())

    def _rest_s(self) -> float | None:
        """How long there is nothing to do; None is for ever."""
        now = time.monotonic()
        due = min(self._look_at, self._wake or INF, now + DRAIN_POLL_S if self._life.draining() else INF)
        return None if due == INF else max(due - now, 0.0)

    def _look(self) -> None:
        try:
            self._look_now()
        except (IsthmusError, OSError) as error:  # the folder is gone for the moment: what is served stays
            self._look_at = self._next_look(quiet=True)
            self._tell_warnings((str(error),))

    def _look_now(self) -> Glance:
        glance = self._repository.look(now=time.monotonic(), trusting=self._mode == "explicit")
        self._look_at = self._next_look(quiet=glance.quiet)
        self._tell_warnings(glance.warnings)
        self._tell(Scanned(glance.models))
        return glance

    def _next_look(self, *, quiet: bool) -> float:
        if self._mode == "explicit":
            return INF
        pause_s = self._poll_s if self._mode == "poll" else BACKSTOP_S
        return time.monotonic() + (pause_s if quiet else min(pause_s, self._repository.quiet_s))

    def _tell_warnings(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            if warning not in self._warned:
                self._warn(warning)
        self._warned = frozenset(warnings)

    def _at_start(self, glance: Glance) -> list[str]:
        named = [name for name in self._load_at_start if name != "*"]
        unknown = [name for name in named if name not in glance.models]
        if unknown:
            there = ", ".join(glance.models) or "no model"
            raise InputError(f"the model {unknown[0]!r} is to be loaded at the start", f"the repository has {there}")
        everything = glance.models if "*" in self._load_at_start else {}
        return list(dict.fromkeys([*self._repository.bundles, *named, *everything]))

    def _tell(self, event: Event) -> None:
        """Let the life cycle decide, carry out what is quick, and publish where things stand."""
        for instruction in self._life.handle(event, now=time.monotonic()):
            if isinstance(instruction, Load | WarmUp):
                self._todo = instruction
            elif isinstance(instruction, Publish):
                self._host.publish(self._served[instruction.ref])
            elif isinstance(instruction, Withdraw):
                self._host.withdraw(self._served[instruction.ref])
            elif isinstance(instruction, Unload):
                self._host.unload(self._served.pop(instruction.ref))
            else:
                self._answer(instruction)
        self._show()

    def _carry_out(self, todo: Load | WarmUp) -> Event:
        ref = todo.ref
        try:
            if isinstance(todo, WarmUp):
                self._host.warm_up(self._served[ref])
                return Warmed(ref)
            opened = self._repository.open(ref.name, ref.version, build=ref.build)
            serving = self._serving(ref)
            if serving is not None and self._served[serving].same_content(opened):
                return Same(ref)
            self._host.load(opened)
            self._served[ref] = opened
            return Loaded(ref)
        except (IsthmusError, OSError, MemoryError) as error:
            self._causes[ref] = error
            return Failed(ref, str(error) or type(error).__name__)

    def _serving(self, ref: Ref) -> Ref | None:
        """The build that serves the same version, if one does."""
        for standing in self._life.standings():
            if (standing.name, standing.version, standing.state) == (ref.name, ref.version, State.AVAILABLE):
                return standing.ref
        return None

    def _answer(self, reply: Reply) -> None:
        with self._condition:
            if reply.ticket in self._answers:
                self._answers[reply.ticket] = reply.problem
                self._condition.notify_all()

    def _show(self) -> None:
        self._wake = self._life.next_wake(now=time.monotonic())
        standings = self._life.standings()
        held = {standing.ref for standing in standings}
        self._causes = {ref: cause for ref, cause in self._causes.items() if ref in held}
        before = {(s.name, s.version): s for s in self._index}
        index = tuple(self._status(standing) for standing in standings)
        with self._condition:
            self._index, self._settled = index, self._life.is_settled()
            self._condition.notify_all()
        for status in index:
            if before.pop((status.name, status.version), None) != status:
                self._changed(status)
        for gone in before.values():
            self._changed(VersionStatus(gone.name, gone.version, State.UNLOADED, "removed", time.monotonic()))

    def _status(self, standing: Standing) -> VersionStatus:
        ref = standing.ref
        served = self._served.get(ref) if ref else None
        return VersionStatus(
            name=standing.name,
            version=standing.version,
            state=standing.state,
            reason=standing.reason,
            since=standing.since,
            digest=served.digest if served else "",
            format=served.format if served else "",
            cause=self._causes.get(ref) if ref and standing.state is State.ERROR else None,
        )
