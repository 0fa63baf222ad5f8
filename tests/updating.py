"""A device that updates its bundle, without sockets or models: what is fetched comes from a folder, nothing is run.

`python -m tests.updating STATE GATEWAY N` does it as a process of its own, which kills itself at the Nth durable act.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.bundles import update as u
from edge_agent.bundles.courier import Interrupted
from edge_agent.bundles.disk import Disk
from edge_agent.bundles.policy import Policy
from edge_agent.bundles.record import Step
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.trusting import Trusting
from edge_agent.bundles.updater import Updater
from protocol import messages as m
from protocol.bundle import MANIFEST, Bundle
from protocol.signing import Trust

RULES = u.TrialRules(good_answers=1, least_s=0.0)
PART_NBYTES = 40


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Where the system has such a place: an update synchronises with the disk a hundred times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


class Stop(BaseException):
    """The device lost its power."""


class FolderGateway:
    """Offers the bundle in a folder, and hands its files out in small parts."""

    def __init__(self, folder: Path) -> None:
        self.bundle = Bundle.open(folder)
        self.fetched_nbytes = 0
        self.named: Callable[[], bool] = lambda: True
        self.interrupted: Callable[[], bool] = lambda: False
        listed = self.bundle.manifest.files.items()
        self.files = {entry.sha256: folder / name for name, entry in listed} | {self.bundle.digest: folder / MANIFEST}

    def offers(self, model: str = "") -> m.Offers:
        manifest = self.bundle.manifest
        offer = m.Offer(
            model=manifest.model.name,
            model_digest=bytes.fromhex(manifest.model.digest),
            bundle=bytes.fromhex(self.bundle.digest),
            manifest_nbytes=(self.bundle.root / MANIFEST).stat().st_size,
            nbytes=sum(entry.nbytes for entry in manifest.files.values()),
            files=len(manifest.files),
        )
        return m.Offers((offer,))

    def fetch(self, sha: str, nbytes: int, part: Path, disk: Disk) -> None:
        data = self.files[sha].read_bytes()
        have = part.stat().st_size if part.exists() else 0
        assert data[:have] == (part.read_bytes() if part.exists() else b""), "what was there is the file's beginning"
        if not have:
            disk.append(part, b"")
        size = max(len(data) // 2, PART_NBYTES)
        for at in range(have, nbytes, size):
            if self.interrupted():
                raise Interrupted
            disk.append(part, data[at : at + size])
            self.fetched_nbytes += len(data[at : at + size])


class Unsigned(Trusting):
    def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
        return Trust(allow_unsigned=True)


class Device:
    """One life of the device's process: from its start until it is stopped, or for good."""

    def __init__(
        self,
        state: Path,
        gateway: FolderGateway | None,
        around: Callable[[str], None] = lambda act: None,
        *,
        smoke: Callable[[Path], str] = lambda folder: "",
        rules: u.TrialRules = RULES,
        policy: Policy | None = None,
        trusting: Trusting | None = None,
    ) -> None:
        self.serves: str | None = None  # digest; empty for nobody
        self.served: list[str] = []
        self.told: list[str] = []
        self.shelf = Shelf(state, Disk(around))
        self.cannot_serve: dict[str, str] = {}
        self.trust: Callable[[], Trust | None] = lambda: None  # what is asked of a bundle that is to serve
        self.updater = Updater(
            self.shelf,
            switch=self._serve,
            smoke=smoke,
            courier=gateway,
            trusting=trusting or Unsigned(),
            policy=policy or Policy(model="toy", trial=rules, reserve_nbytes=0, whole=True),
            told=lambda event, text: self.told.append(text),
        )

    def _serve(self, folder: Path | None) -> None:
        if folder is not None:
            from protocol.errors import EngineError

            bundle = Bundle.open(folder, self.trust())
            if bundle.digest in self.cannot_serve:
                raise EngineError(self.cannot_serve[bundle.digest])
            bundle.verify()  # only whole bundles may ever serve
            self.serves = bundle.digest
        else:
            self.serves = ""
        self.served.append(self.serves)

    @property
    def step(self) -> Step:
        return self.updater.look().record.step

    def start(self) -> None:
        self.updater.begin(self._serve)
        self.updater.handle(u.Started())

    def update(self) -> None:
        """Take what is offered, all the way, answering well."""
        self.updater.check()
        self.updater.handle(u.Health(ok=True))

    def close(self) -> None:
        self.updater.close()


def main(state: str, gateway: str, acts: int) -> None:
    left = acts

    def around(act: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    device = Device(Path(state), FolderGateway(Path(gateway)), around)
    device.start()
    device.update()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
