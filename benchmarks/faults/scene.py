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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.faults.account import Account
from benchmarks.faults.executions import Executions
from benchmarks.faults.gateway_process import GatewayProcess
from benchmarks.faults.load import Load
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
    per_s: float = 40.0
    deadline_s: float = 1.0
    uplink_mbit_per_s: float = 20.0
    rtt_ms: float = 2.0
    busy_s: float = 0.0  # what a gateway's engine takes longer for every request
    agent: Mapping[str, Any] = field(default_factory=dict)  # options of `AgentConfig`
    kills: int = 0  # where something is killed again and again; 0 leaves it to the seconds
    gateway_keys: Path | None = None


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
    twice: int
    wrong: int
    executed: int
    executed_twice: int  # within one life of one gateway
    executed_again: int  # by several lives or gateways
    hedged: int
    sent: int
    longest_silence_s: float
    latest_s: float  # by how much the latest was late, 0 if none was
    back_s: float | None  # from healing to the first answer of a gateway
    ready_s: tuple[float, ...]  # of every life that began after the first
    crashed: str

    @property
    def attempts(self) -> float:
        """Sent for each that was asked."""
        return self.sent / self.asked if self.asked else 0.0

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept; lateness is the machine's as well, and judged elsewhere."""
        counts = {
            "lost": self.lost, "told twice": self.twice, "answered with another's answer": self.wrong,
            "executed twice in one life": self.executed_twice,
        }  # fmt: skip
        return [f"{count} {what}" for what, count in counts.items() if count] + ([self.crashed] if self.crashed else [])


class Scene:
    """Not set up before it is entered; afterwards `verdict` counts."""

    def __init__(self, bundle: Path, folder: Path, setting: Setting) -> None:
        """`folder` takes the gateways' ledgers and logs; it is made if it is not there."""
        self.account = Account()
        self.gateways: list[GatewayProcess] = []
        self.links: list[LinkEmulator] = []
        self.chance = random.Random(5)
        self._bundle, self._folder, self.setting = bundle, folder, setting
        self._healed_at: float | None = None
        self._back_s: float | None = None
        self._never = threading.Event()
        self._counters: Mapping[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._set_up(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self.load.stop()
            if kind is None:
                self.account.wait(lambda: not self.account.open, self.setting.deadline_s + PATIENCE_S)
                with contextlib.suppress(IsthmusError):
                    self._counters = self.agent.look(10.0).counters

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        setting = self.setting
        for number in range(setting.gateways):
            gateway = GatewayProcess(
                self._bundle, self._folder, f"gateway{number}", port=free_port(self.chance),
                busy_s=setting.busy_s, keys=setting.gateway_keys,
            )  # fmt: skip
            stack.callback(gateway.close)
            gateway.start()
            self.gateways.append(gateway)
        for gateway in self.gateways:
            gateway.wait_ready()
            link = LinkEmulator(
                ("127.0.0.1", gateway.port),
                uplink_mbit_per_s=setting.uplink_mbit_per_s,
                downlink_mbit_per_s=setting.uplink_mbit_per_s,
                rtt_ms=setting.rtt_ms,
            )
            self.links.append(stack.enter_context(link))
        options: dict[str, Any] = {"edge_slowdown": SLOWDOWN, "seed": 1, "placements": PLACEMENTS} | dict(setting.agent)
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
        self._require(lambda: self.account.answers("gateway") >= 5, "nothing is answered by a gateway")

    def wait(self, seconds: float) -> None:
        """Let it go on like this."""
        self._never.wait(seconds)

    def healed(self) -> None:
        """Nothing is broken any more; returns when a gateway has answered who asked after this."""
        healed = time.monotonic()
        self._require(lambda: self.account.back_s(healed) is not None, "no gateway answers although all is mended")
        self._back_s = self.account.back_s(healed)

    def verdict(self, name: str) -> Verdict:
        """Count, after everything has ended."""
        account, executions = self.account, Executions.read(self._folder)
        late_s = account.late_s
        return Verdict(
            name=name,
            asked=len(account.asks),
            by_gateway=account.answers("gateway"),
            by_device=account.answers("device"),
            refused=account.refused,
            late=len(late_s),
            lost=len(account.open),
            gone=len(account.gone),
            twice=len(account.twice),
            wrong=len(account.wrong),
            executed=executions.total,
            executed_twice=len(executions.twice_in_a_life),
            executed_again=len(executions.in_several_lives),
            hedged=self._counters.get("hedges", 0),
            sent=self._counters.get("sent", 0),
            longest_silence_s=account.longest_silence_s,
            latest_s=max(late_s, default=0.0),
            back_s=self._back_s,
            ready_s=tuple(s for gateway in self.gateways for s in gateway.ready_s[1:]),
            crashed="" if self.agent.fatal is None else f"the agent crashed: {self.agent.fatal}",
        )

    def _require(self, true: Any, else_: str) -> None:
        if not self.account.wait(true, PATIENCE_S):
            raise TimeoutError(f"{else_}, for {PATIENCE_S:g} s")


def free_port(chance: random.Random) -> int:
    """A port of loopback that nobody listens on."""
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
