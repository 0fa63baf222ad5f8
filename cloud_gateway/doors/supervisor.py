"""Starts the front's process and keeps it there: a thread that carries out what `supervision` decides.

The gateway keeps the listening socket, so that the port is never free and agents that come during a restart wait in
its queue; and the folder (0700) of the Unix socket between the two, so that no other user can be the front.

    front = FrontProcess(plan)
    front.listen()                    # the port is ours: NetworkError if it is in use
    sockets.hub(context, front.hub)   # the gateway's end
    front.start()                     # ready when it returns
    ...                               # close the gateway's end, so that the last answers are on their way, then
    front.stop()
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cloud_gateway.doors.relay import Order
from cloud_gateway.doors.supervision import Event, GiveUp, Kill, Part, Policy, Spawn, State, Supervision
from protocol import children, sockets
from protocol.errors import EngineError, InputError, NetworkError
from protocol.mailbox import Mailbox
from protocol.sockets import Endpoint

MEMORY_NBYTES = 2048 << 20
CONNECTIONS = 1024
LONGEST_PATH = 100  # the kernel allows 107 bytes for the name of a Unix socket
MOST_UNREAD_NBYTES = 1 << 16  # of a line that does not end

# Threads of numpy's that a front never uses, and arenas of malloc's, cost memory that the bound counts.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True, slots=True)
class FrontPlan:
    """What the front is to be. One line of documentation per field."""

    endpoint: Endpoint  # where to listen: a literal address; port 0 picks one
    memory_nbytes: int = MEMORY_NBYTES  # bound of its data
    connections: int = CONNECTIONS  # at once
    keys: Path | None = None  # folder of keys; None takes plain text
    insecure: bool = False  # plain text from other machines too
    policy: Policy = field(default_factory=Policy)


class FrontProcess:
    """Thread-safe. Constructing has no side effects; call `listen`, `start` and `stop` in this order, once each.

    `told` is called with an event and a sentence, on the supervisor's thread; `gave_up` when the policy says so.
    """

    def __init__(
        self,
        plan: FrontPlan,
        *,
        told: Callable[[str, str], None],
        gave_up: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.endpoint = plan.endpoint
        self.pid: int | None = None  # of the process that lives now
        self._plan = plan
        self._told = told
        self._gave_up = gave_up
        self._supervision = Supervision(plan.policy)
        self._mailbox: Mailbox[Event] = Mailbox()
        self._listening: socket.socket | None = None
        self._folder: Path | None = None
        self._child: _Child | None = None
        self._counters: dict[str, int] = {}  # of the process that lives now
        self._past: dict[str, int] = {}  # of those before
        self._last_words = ""
        self._ready = threading.Event()  # or it will never be
        self._thread = threading.Thread(target=self._main, name="isthmus-front-supervisor", daemon=True)

    @property
    def hub(self) -> str:
        """Path of the Unix socket that the gateway binds."""
        if self._folder is None:
            raise InputError("the front does not listen yet", "call listen() first")
        return str(self._folder / "hub")

    @property
    def serving(self) -> bool:
        """Whether there is one, and it is ready."""
        return self._supervision.state is State.SERVING

    def listen(self) -> None:
        """Take the port and make the folder. Raises NetworkError or InputError."""
        self._listening, self.endpoint = sockets.listener(self._plan.endpoint)
        try:
            self._folder = _private_folder()
        except BaseException:
            self._listening.close()
            raise

    def start(self) -> None:
        """Start the process and wait until it serves. Raises NetworkError if the first one does not come up."""
        self._thread.start()
        self._mailbox.post(Event.START)
        self._ready.wait(self._plan.policy.start_s + 5)
        if not self.serving:
            self.stop()
            reason = self._last_words or "it said nothing"
            raise NetworkError(f"the front's process for {self.endpoint} did not come up: {reason}")

    def stats(self) -> dict[str, int]:
        """Restarts, and counters of all processes so far (those of one that died are a second old at most)."""
        names = self._past.keys() | self._counters.keys()
        counted = {name: self._past.get(name, 0) + self._counters.get(name, 0) for name in names}
        return counted | {"restarts": self._supervision.restarts}

    def stop(self) -> None:
        """Let the process bring its last answers and end; kill it if it does not. Safe to call twice."""
        if self._thread.is_alive():
            self._mailbox.post(Event.STOP)
            self._thread.join(self._plan.policy.part_s + 5)
        if self._listening is not None:
            self._listening.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while self._supervision.state is not State.ENDED:
                self._turn()
        except BaseException as error:  # the top of the thread
            self._gave_up(error)
        finally:
            if self._child is not None:
                self._child.kill()
            self._ready.set()
            self._mailbox.close()

    def _turn(self) -> None:
        child = self._child
        sources = [self._mailbox.fileno(), *(child.descriptors if child is not None else ())]
        readable = select.select(sources, (), (), self._wait_s(time.monotonic()))[0]
        for event in self._mailbox.drain():
            self._handle(event)
        if child is not None and child.out in readable:
            for line in child.lines():
                self._hear(line)
        if child is not None and child.pidfd in readable:
            self._bury(child)
        self._handle(Event.TICK)

    def _wait_s(self, now: float) -> float | None:
        due = self._supervision.next_deadline()
        return None if due is None else max(due - now, 0.0)

    def _handle(self, event: Event) -> None:
        for instruction in self._supervision.handle(event, now=time.monotonic()):
            match instruction:
                case Spawn(life):
                    self._spawn(life)
                case Kill(why):
                    self._told("front_killed", f"the front's process is killed: {why}")
                    if self._child is not None:
                        self._child.kill()
                case Part():
                    if self._child is not None:
                        self._child.part()
                case GiveUp(why):
                    self._told("front_given_up", f"the front's process is not started again: {why}")
                    self._gave_up(
                        EngineError(f"the front's process does not live: {why}", self._last_words or "it said nothing")
                    )

    def _spawn(self, life: int) -> None:
        plan, listening = self._plan, self._listening
        if listening is None:
            raise InputError("the front does not listen yet", "call listen() first")
        order = Order(
            listening=listening.fileno(), host=self.endpoint.host, port=self.endpoint.port, hub=self.hub, life=life,
            memory_nbytes=plan.memory_nbytes, connections=plan.connections,
            keys=None if plan.keys is None else str(plan.keys.absolute()), insecure=plan.insecure,
        )  # fmt: skip
        try:
            self._child = _Child(order)
        except OSError as error:  # too many processes, or no memory for one more
            self._told("front_not_started", f"the front's process could not be started: {error}")
            self._handle(Event.EXITED)
            return
        self.pid = self._child.pid

    def _hear(self, line: bytes) -> None:
        if line.startswith(b"ready "):
            self._handle(Event.READY)
            self._ready.set()
            self._told("front_ready", f"the front's process {self.pid} serves {self.endpoint}")
            return
        self._handle(Event.HEARD)
        with contextlib.suppress(ValueError):  # a line that was torn by its end
            said = json.loads(line)
            if "told" in said:
                self._last_words = str(said["text"])
                self._told(str(said["told"]), self._last_words)
            else:
                self._counters = {str(name): int(value) for name, value in said.items()}

    def _bury(self, child: _Child) -> None:
        for line in child.lines():
            self._hear(line)
        code = child.buried()
        self._child = self.pid = None
        self._past = {n: v for n, v in self.stats().items() if n not in _LEVELS and n != "restarts"}
        self._counters = {}
        before = self._supervision.state
        self._handle(Event.EXITED)
        if before in (State.STARTING, State.SERVING):
            self._told("front_ended", f"the front's process ended by itself ({_cause(code)}); it is started again")
        if before is State.STARTING and self._supervision.lives == 1:
            self._ready.set()  # whoever waits for the first one need not wait any longer


_LEVELS = frozenset({"connections", "resident_nbytes", "under_way_nbytes"})  # these do not add up


class _Child:
    """A process, its pipes and a descriptor that tells its end. Closes everything when it is buried."""

    def __init__(self, order: Order) -> None:
        """Raises OSError."""
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "cloud_gateway.doors.relay"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(order.listening,),
            env=children.environment(os.environ) | ENVIRONMENT,
            bufsize=0,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.pid = self._popen.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.out = self._popen.stdout.fileno()
        os.set_blocking(self.out, False)
        self._unread = b""
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which the descriptor tells
            self._popen.stdin.write(order.to_json().encode() + b"\n")

    @property
    def descriptors(self) -> tuple[int, int]:
        return self.out, self.pidfd

    def lines(self) -> list[bytes]:
        """The lines that have come since."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.out, 1 << 16):
                self._unread = (self._unread + data)[-MOST_UNREAD_NBYTES:]
        *lines, self._unread = self._unread.split(b"\n")
        return lines

    def part(self) -> None:
        """Close its stdin: it ends when it has brought its last answers."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def kill(self) -> None:
        self._popen.kill()

    def buried(self) -> int:
        """Its exit code (negative: the signal that ended it)."""
        code = self._popen.wait()
        os.close(self.pidfd)
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()
        return code


def _private_folder() -> Path:
    """Only this user may enter it. Raises InputError if no folder with a name that is short enough can be made."""
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()):
        if parent is None or len(parent) > LONGEST_PATH - 30:
            continue
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="isthmus-front-", dir=parent))  # mode 0700
    raise InputError("no folder for the socket between gateway and front", "set XDG_RUNTIME_DIR to one of this user's")


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
