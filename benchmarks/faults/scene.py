"""One scenario as it is set up: gateway processes, a link to each, an agent, somebody who asks; and who breaks them.

with Scene(bundle, folder, Setting()) as scene:      # returns when requests are answered over the link
    scene.links[0].blackhole()
    scene.wait(6.0)
    scene.links[0].blackhole(False)
    scene.healed()                                   # returns when they are again
scene.verdict("blackhole")
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.faults.account import Account
from benchmarks.faults.credentials import Credentials
from benchmarks.faults.device import DeviceProcess, Stored
from benchmarks.faults.executions import Executions
from benchmarks.faults.gateway_process import GatewayProcess
from benchmarks.faults.load import Load
from benchmarks.faults.small_disk import SmallDisk
from benchmarks.faults.tun import GATEWAY, TunLink
from benchmarks.faults.wall_clock import WallClock
from benchmarks.link import LinkEmulator
from edge_agent.agent import Agent, AgentConfig
from protocol.errors import IsthmusError

PATIENCE_S = 60.0  # a busy machine is no failure
SLOWDOWN = 60.0  # a device that would rather ask
PLACEMENTS = ("full-cloud", "cut-1", "edge-only")  # fewer levels at the cut would blur the number
# Below the ports that the kernel gives to whoever asks for any: between two lives nobody else takes it.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scenario is played in."""

    gateways: int = 1
    per_s: float = 20.0
    deadline_s: float = 1.0
    uplink_mbit_per_s: float = 20.0
    rtt_ms: float = 2.0
    busy_s: float = 0.0  # what a gateway's engine takes longer for every request
    agent: Mapping[str, Any] = field(default_factory=dict)  # options of `AgentConfig`
    kills: int = 0  # where something is killed again and again; 0 leaves it to the seconds
    keyed: bool = False  # agent and gateway prove who they are
    apart: bool = False  # the agent is a process of its own
    store: bool = False  # and so has a store, into which requests are put besides
    stored_rows: int = 1  # each 4 KiB
    clocks: bool = False  # both live by a wall clock that can be put
    disk_mib: int = 0  # the store has a disk of its own, so small
    loss: float | None = None  # agent and gateway are apart, on two machines with a network that loses this share


@dataclass(frozen=True, slots=True)
class Verdict:
    """The counts of one scenario."""

    name: str
    asked: int
    by_gateway: int
    by_device: int
    refused: int
    late: int
    lost: int
    gone: int  # their caller was killed
    stored: int  # acknowledged by the store; they are lost, told twice or wrong as the others are
    store_refused: int
    twice: int
    wrong: int
    executed: int
    executed_twice: int  # within one life of one gateway
    executed_again: int  # by several lives or gateways
    hedged: int
    sent: int | None  # None: who counted was killed
    longest_silence_s: float
    latest_s: float  # by how much the latest was late, 0 if none was
    back_s: float | None  # from healing to the first answer of a gateway
    ready_s: tuple[float, ...]  # of every life that began after the first
    crashed: str

    @property
    def attempts(self) -> float | None:
        """Sent for each that was asked or stored; None where nobody could count."""
        return None if self.sent is None else self.sent / (self.asked + self.stored)

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept; lateness is the machine's as well, and judged elsewhere."""
        counts = {
            "lost": self.lost, "told twice": self.twice, "answered with another's answer": self.wrong,
            "executed twice in one life": self.executed_twice,
        }  # fmt: skip
        return [f"{count} {what}" for what, count in counts.items() if count] + ([self.crashed] if self.crashed else [])


class UnplayableError(Exception):
    """This machine cannot play a scenario; the sentence says why."""


class Scene:
    """Not set up before it is entered; afterwards `verdict` counts."""

    def __init__(self, bundle: Path, folder: Path, setting: Setting) -> None:
        """`folder` takes the gateways' ledgers and logs; it is made if it is not there."""
        self.account = Account()
        self.gateways: list[GatewayProcess] = []
        self.links: list[LinkEmulator] = []
        self.chance = random.Random(5)
        self.keys: Credentials | None = Credentials(folder / "keys") if setting.keyed else None
        self._bundle, self._folder, self.setting = bundle, folder, setting
        self._device: DeviceProcess | None = None
        self._back_s: float | None = None
        self._never = threading.Event()
        self._counters: Mapping[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._environment: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._set_up(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is not None:
                return
            if self._device is not None:
                self._device.stop()
                self._counters = self._device.counters
                return
            self.load.stop()
            self.account.wait(lambda: not self.account.open, self.setting.deadline_s + PATIENCE_S)
            with contextlib.suppress(IsthmusError):
                self._counters = self.agent.look(10.0).counters

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        setting = self.setting
        try:
            if setting.loss is not None:
                self.network = stack.enter_context(TunLink(loss=setting.loss, rtt_ms=setting.rtt_ms))
            if setting.disk_mib:
                self.disk = stack.enter_context(SmallDisk(self._folder / "disk", mib=setting.disk_mib))
            if setting.clocks:
                self.clock = WallClock(self._folder)
                self._environment = self.clock.environment
        except OSError as error:
            raise UnplayableError(str(error)) from error
        for number in range(setting.gateways):
            gateway = GatewayProcess(
                self._bundle, self._folder, f"gateway{number}", port=free_port(),
                busy_s=setting.busy_s, keys=None if self.keys is None else self.keys.gateway.path,
                environment=self._environment,
                host="127.0.0.1" if setting.loss is None else GATEWAY,
                namespace=None if setting.loss is None else self.network.gateway,
            )  # fmt: skip
            stack.callback(gateway.close)
            gateway.start()
            self.gateways.append(gateway)
        for gateway in self.gateways:
            gateway.wait_ready()
            if setting.loss is not None:
                continue
            link = LinkEmulator(
                ("127.0.0.1", gateway.port),
                uplink_mbit_per_s=setting.uplink_mbit_per_s,
                downlink_mbit_per_s=setting.uplink_mbit_per_s,
                rtt_ms=setting.rtt_ms,
            )
            self.links.append(stack.enter_context(link))
        if setting.apart:
            self._start_device(stack)
        else:
            self._start_agent(stack)
        self.require(lambda: self.account.answers("gateway") >= 5, "nothing is answered by a gateway")

    def _start_agent(self, stack: contextlib.ExitStack) -> None:
        setting = self.setting
        options: dict[str, Any] = {"edge_slowdown": SLOWDOWN, "seed": 1, "placements": PLACEMENTS} | dict(setting.agent)
        if self.keys is not None:
            options["keys"] = self.keys.device
        self.agent = Agent(AgentConfig(self._bundle, [link.endpoint for link in self.links], **options))
        stack.enter_context(self.agent)
        if not self.agent.wait_ready(PATIENCE_S):
            raise TimeoutError("the agent finds no gateway although nothing is broken yet")
        self.load = Load(
            self.agent, self.account.note, self.account.stood_still,
            per_s=setting.per_s, deadline_s=setting.deadline_s,
        )  # fmt: skip
        stack.callback(self.load.stop)
        self.load.start()

    def _start_device(self, stack: contextlib.ExitStack) -> None:
        setting = self.setting
        lossy = setting.loss is not None
        endpoint = f"tcp://{GATEWAY}:{self.gateways[0].port}" if lossy else self.links[0].endpoint
        command = [str(self._bundle), "--gateway", endpoint, "--per-s", str(setting.per_s)]
        command += ["--deadline-s", str(setting.deadline_s), "--slowdown", str(SLOWDOWN)]
        command += ["--placements", ",".join(PLACEMENTS)]
        store = (self.disk.folder if setting.disk_mib else self._folder) / "store"
        command += ["--store", str(store), "--stored-rows", str(setting.stored_rows)] if setting.store else []
        self._device = DeviceProcess(
            command, self.account, log=self._folder / "log-device", environment=self._environment,
            namespace=self.network.device if lossy else None,
        )  # fmt: skip
        stack.callback(self._device.close)
        self._device.start()

    @property
    def device(self) -> DeviceProcess:
        """The agent's process, where it is one."""
        assert self._device is not None, "this scene has its agent at home"
        return self._device

    def wait(self, seconds: float) -> None:
        """Let it go on like this."""
        self._never.wait(seconds)

    def healed(self) -> None:
        """Nothing is broken any more; returns when a gateway has answered who asked after this."""
        healed = time.monotonic()
        self.require(lambda: self.account.back_s(healed) is not None, "no gateway answers although all is mended")
        self._back_s = self.account.back_s(healed)

    def verdict(self, name: str) -> Verdict:
        """Count, after everything has ended."""
        account, executions = self.account, Executions.read(self._folder)
        late_s = account.late_s
        stored = Stored() if self._device is None else self._device.stored
        return Verdict(
            name=name,
            asked=len(account.asks),
            by_gateway=account.answers("gateway"),
            by_device=account.answers("device"),
            refused=account.refused,
            late=len(late_s),
            lost=len(account.open) + len(stored.lost),
            gone=len(account.gone),
            stored=len(stored.acknowledged),
            store_refused=stored.refused,
            twice=len(account.twice) + len(stored.twice),
            wrong=len(account.wrong) + len(stored.wrong),
            executed=executions.total,
            executed_twice=len(executions.twice_in_a_life),
            executed_again=len(executions.in_several_lives),
            hedged=self._counters.get("hedges", 0),
            sent=None if self._device is not None and self._device.kills else self._counters.get("sent", 0),
            longest_silence_s=account.longest_silence_s,
            latest_s=max(late_s, default=0.0),
            back_s=self._back_s,
            ready_s=tuple(s for one in self._processes() for s in one.ready_s[1:]),
            crashed=self._crashed(),
        )

    def _processes(self) -> list[GatewayProcess | DeviceProcess]:
        return [*self.gateways, *([] if self._device is None else [self._device])]

    def _crashed(self) -> str:
        if self._device is not None:
            return self._device.crashed
        return "" if self.agent.fatal is None else f"the agent crashed: {self.agent.fatal}"

    def require(self, true: Callable[[], bool], else_: str) -> None:
        """Return as soon as it is so. Raises TimeoutError."""
        if not self.account.wait(true, PATIENCE_S):
            raise TimeoutError(f"{else_}, for {PATIENCE_S:g} s")


def free_port() -> int:
    """A port of loopback that nobody listens on; another one for everybody who asks at the same time, or nearly so."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
