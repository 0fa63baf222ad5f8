"""Plays the script on the stage and writes down what the agent says, line by line, as it says it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from queue import Empty
from typing import TextIO

from examples.demo.phases import Act, Phase, Slot
from examples.demo.record import Record
from examples.demo.stage import STOP_S, Stage, StageError
from examples.demo.table import Screen


class Player:
    """Carries out each phase at its time. `log` receives every line with the second at which it arrived."""

    def __init__(self, stage: Stage, record: Record, screen: Screen, log: TextIO) -> None:
        self._stage, self._record, self._screen, self._log = stage, record, screen, log
        self._zero = 0.0

    def play(self, slots: Sequence[Slot]) -> tuple[Slot, ...]:
        """Wait for the agent, play every phase, end the agent. Returns the phases with the times they really took.

        Raises StageError if the agent ends before it was asked to.
        """
        self._stage.agent.ready()
        self._zero = time.monotonic()
        played: list[Slot] = []
        for slot in slots:
            self._record.begin(slot.phase.name, self._now())
            began_s = self._now() if played else 0.0
            _carry_out(self._stage, slot.phase)
            self._listen(until=self._zero + slot.to_s)
            played.append(Slot(slot.phase, began_s, self._now()))
            if slot is not slots[-1]:
                self._screen.phase_ended()
        self._end()
        self._screen.phase_ended()
        return tuple(played)

    def _listen(self, *, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            try:
                item = self._stage.agent.lines.get(timeout=left)
            except Empty:
                return
            if item is None:
                code = self._stage.agent.process.wait(STOP_S)
                raise StageError(f"the agent ended by itself with exit code {code}", f"see {self._stage.agent.log}")
            self._take(*item)

    def _end(self) -> None:
        """Ask the agent to stop and hear it out; what is in flight still ends, and its last line holds its counts."""
        self._stage.agent.terminate()
        until = time.monotonic() + STOP_S
        while (left := until - time.monotonic()) > 0:
            try:
                item = self._stage.agent.lines.get(timeout=left)
            except Empty:
                return
            if item is None:
                return
            self._take(*item)

    def _take(self, at: float, line: dict[str, object]) -> None:
        self._record.add(line, at - self._zero)
        self._log.write(json.dumps({"at_s": round(at - self._zero, 4), **line}) + "\n")

    def _now(self) -> float:
        return time.monotonic() - self._zero


def _carry_out(stage: Stage, phase: Phase) -> None:
    match phase.act:
        case Act.SET_RATE:
            stage.set_rate(phase.rate_mbit)
        case Act.KILL_GATEWAY:
            stage.kill_gateway()
        case Act.START_GATEWAY:
            stage.start_gateway()
        case Act.BREAK_HEAD:
            stage.break_head()
        case Act.MEND_HEAD:
            stage.mend_head()
