"""Every picture of a folder, and those that come later:  python -m examples.devices.folder PICTURES [--follow]"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.local_client import LocalClient
from edge_agent.sources import FILE_SUFFIXES, load_sample
from examples.devices.asking import ended, parser, told
from protocol.errors import InputError

LOOK_S = 0.5


def main() -> None:
    options = parser(__doc__)
    options.add_argument("folder", type=Path, help="with .png, .jpg, .npy or .npz files")
    options.add_argument("--follow", action="store_true", help="wait for more")
    given = options.parse_args()
    if not given.folder.is_dir():
        raise InputError(f"there is no folder {given.folder}", "name one with pictures")
    with LocalClient(given.socket) as client:
        specs = client.inputs()
        for number, file in enumerate(files(given.folder, follow=given.follow), start=1):
            try:
                sample = load_sample(file, specs)
            except InputError as error:
                print(f"{file.name}: {error}", flush=True)
                continue
            print(told(sample.name, client.infer(sample.inputs, deadline_s=given.deadline_ms / 1e3)), flush=True)
            if number == given.limit:
                return


def files(folder: Path, *, follow: bool) -> Iterator[Path]:
    """Each file once, the oldest name first; names without a dot in front, so write elsewhere and move it here."""
    seen: set[Path] = set()
    while True:
        fresh = sorted(f for f in folder.iterdir() if f.suffix.lower() in FILE_SUFFIXES and f.name[0] != ".")
        yield from (f for f in fresh if f not in seen)
        seen.update(fresh)
        if not follow:
            return
        time.sleep(LOOK_S)


if __name__ == "__main__":
    ended(main)
