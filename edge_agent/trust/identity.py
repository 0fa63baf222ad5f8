"""Who this device is: one key pair, made here, whose secret never leaves: KEYS/agent.key, for its owner alone."""

from __future__ import annotations

from pathlib import Path

from protocol import keys
from protocol.errors import InputError
from protocol.keys import KeyPair


def identity(folder: Path, name: str = "edge-agent") -> KeyPair:
    """The device's key pair; made if there is none. Raises InputError if it cannot be read, or made."""
    path = folder / "agent.key"
    if keys.is_there(path):
        return keys.read_pair(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror})", "choose another folder") from error
    pair = keys.make_pair(name)
    keys.write_pair(path, pair)
    return pair
