"""By what the device knows its gateways, kept up to date: a gateway tells its next key over a connection that the key
in use has proven. So whoever replaces a gateway's key need not touch a device that asks meanwhile.

    server.pub holds        the gateway that answers by KEY tells     server.pub holds then
    KEY                     KEY, NEXT                                 KEY, NEXT (named `replaces-` KEY's fingerprint)
    KEY, NEXT               NEXT alone, answering by NEXT             NEXT
    KEY, NEXT               KEY alone: it was given up                KEY
    ... and others' keys    either                                    these stay: other gateways may have them

What a gateway tells that does not name the key by which it answered changes nothing, nor does more than one new key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from protocol import keys
from protocol import messages as m
from protocol.keys import PublicKey

FILE = "server.pub"
_REPLACES = "replaces-"
_GATEWAY = "gateway"


def merged(known: Sequence[PublicKey], told: Sequence[m.ServerKey], by: bytes) -> tuple[PublicKey, ...]:
    """`known` as it should be when the gateway that answered by the key `by` has `told` its keys."""
    fresh = [key for key in told if key.key not in {k.data for k in known}]
    mine = next((key for key in known if key.data == by), None)
    if mine is None or by not in {key.key for key in told} or len(fresh) > 1 or len(told) > 2:
        return tuple(known)
    awaited = f"{_REPLACES}{mine.fingerprint}"  # how the one that is to follow is called
    if len(told) == 2:
        others = [key for key in known if not fresh or key.name != awaited]
        return (*others, *(PublicKey(key.key, awaited, key.port) for key in fresh))
    gone = {awaited}
    if mine.name.startswith(_REPLACES):
        gone |= {mine.name, mine.name.removeprefix(_REPLACES)}
    kept = [key for key in known if key is mine or not {key.name, key.fingerprint} & gone]
    return tuple(replace(key, name=_GATEWAY, port=None) if key is mine and len(gone) > 1 else key for key in kept)


def learn(folder: Path, told: Sequence[m.ServerKey], by: bytes) -> str:
    """Bring FOLDER/server.pub up to date; a sentence of what has changed, or "". Raises InputError if it cannot be."""
    before = keys.read_public(folder / FILE)
    after = merged(before, told, by)
    if after == before:
        return ""
    keys.write_public(folder / FILE, after)
    more = [key for key in after if key.data not in {k.data for k in before}]
    if more:
        return f"the gateway is replacing its key: {more[0].fingerprint} is believed too from now on"
    return f"the gateway has replaced its key: only {keys.fingerprint(by)} is believed from now on"
