"""Putting a new bundle together: manifest and signature first, believed before they are parsed, then what is missing.

Nothing that a gateway says decides anything but where to begin: every file is checked against a digest, the digests
stand in the manifest, and the manifest's own digest in a signature that the device checks itself.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge_agent.bundles.disk import Disk
from edge_agent.bundles.policy import MIB
from edge_agent.bundles.shelf import Shelf
from protocol import dsse
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.errors import BundleError, IsthmusError, NetworkError
from protocol.signing import Trust

MOST_MANIFEST_NBYTES = 32 << 20


class Fetches(Protocol):
    """Gateways, as seen from here: see `courier`, which is them."""

    fetched_nbytes: int
    named: Callable[[], bool]  # whether there is anybody to ask
    interrupted: Callable[[], bool]  # whether to leave a fetch, with Interrupted, so that it goes on later

    def offers(self, model: str = "") -> m.Offers: ...

    def fetch(self, sha: str, nbytes: int, part: Path, disk: Disk) -> None: ...


class BundleRefusedError(IsthmusError):
    """The bundle itself is to blame: fetching it again would not help."""


def fetch_bundle(
    shelf: Shelf,
    digest: str,
    offer: m.Offer | None,
    courier: Fetches | None,
    trust: Trust,
    *,
    model: str,
    whole: bool,
    most_nbytes: int,
    reserve_nbytes: int,
    wanted: frozenset[str],
) -> Bundle:
    """The bundle `digest` with every file that is needed, in the shelf's `incoming`; what is there already stays.

    `wanted` bundles are kept where others have to make room. Raises BundleRefusedError for one that must not be taken,
    another IsthmusError for what may go better later, OSError, and Stopped.
    """
    held = shelf.folder(digest)
    if held.exists():
        if shelf.trouble(digest) is None:
            return shelf.opened(held, digest)  # to be verified again
        shelf.disk.remove(held)
    signed_with = shelf.signed_with(digest)
    known = offer.signature.hex() if offer is not None and offer.signature is not None else signed_with
    if signed_with is None or known != signed_with:
        offer = _offered(digest, offer, courier)
        nbytes = offer.manifest_nbytes + offer.signature_nbytes
        _make_room(shelf, nbytes, most_nbytes=most_nbytes, reserve_nbytes=reserve_nbytes, wanted=wanted)
        _begin(shelf, digest, offer, courier)
    bundle = Bundle.open(shelf.incoming(digest), trust)
    name = bundle.manifest.model.name
    if model and name != model:
        raise BundleRefusedError(f"it is a bundle of the model {name!r}, and this device runs {model!r}")
    try:
        missing = shelf.missing(bundle, whole=whole)
    except BundleError as error:
        raise BundleRefusedError(error.fact, error.remedy) from error
    while missing:
        nbytes = sum({entry.sha256: entry.nbytes for entry in missing.values()}.values())
        _require_room(shelf, nbytes, most_nbytes=most_nbytes, reserve_nbytes=reserve_nbytes, wanted=wanted)
        if courier is None:
            raise NetworkError(f"{len(missing)} files are missing, and no gateway is known", "name one")
        file, entry = next(iter(missing.items()))
        courier.fetch(entry.sha256, entry.nbytes, shelf.part(entry.sha256), shelf.disk)
        shelf.take(bundle, file, entry.sha256)
        del missing[file]
        if not missing or any(other.sha256 == entry.sha256 for other in missing.values()):
            missing = shelf.missing(bundle, whole=whole)  # a graph that has come may name weights beside it
    return bundle


def verify_bundle(shelf: Shelf, digest: str, trust: Trust, *, whole: bool) -> None:
    """Check what lies there once more, and keep it. Raises BundleError, UntrustedError, OSError."""
    folder = shelf.folder(digest)
    if not folder.exists():
        folder = shelf.incoming(digest)
    bundle = Bundle.open(folder, trust)
    if bundle.digest != digest:
        raise BundleError(f"what lies in {folder} is another bundle", "it is fetched again")
    shelf.verify(bundle, whole=whole)
    shelf.keep(digest)


def _offered(digest: str, offer: m.Offer | None, courier: Fetches | None) -> m.Offer:
    """What may be fetched. It is a gateway's word: whatever is wrong with it is not held against the bundle."""
    if courier is None:
        raise NetworkError("it is not on the shelf, and no gateway is known", "name one under gateways.endpoints")
    if offer is None:
        found = courier.offers().offers
        offer = next((o for o in found if o.bundle.hex() == digest), None)
    if offer is None:
        raise NetworkError("no gateway offers it any more", "it is taken up again when one does")
    if not 0 < offer.manifest_nbytes <= MOST_MANIFEST_NBYTES or offer.signature_nbytes > dsse.MOST_NBYTES:
        raise BundleError(
            f"a manifest of {offer.manifest_nbytes} and a signature of {offer.signature_nbytes} bytes are offered",
            "no bundle has such",
        )
    return offer


def _begin(shelf: Shelf, digest: str, offer: m.Offer, courier: Fetches | None) -> None:
    """Fetch manifest and signature; neither is parsed."""
    assert courier is not None
    signature = None
    if offer.signature is not None:
        signature = _document(shelf, courier, offer.signature.hex(), offer.signature_nbytes)
    shelf.begin(digest, _document(shelf, courier, digest, offer.manifest_nbytes), signature)
    for sha in (digest, offer.signature.hex() if offer.signature else digest):
        shelf.disk.remove(shelf.part(sha))


def _document(shelf: Shelf, courier: Fetches, sha: str, nbytes: int) -> bytes:
    courier.fetch(sha, nbytes, shelf.part(sha), shelf.disk)
    return shelf.part(sha).read_bytes()


def _require_room(shelf: Shelf, nbytes: int, *, most_nbytes: int, reserve_nbytes: int, wanted: frozenset[str]) -> None:
    """Make room for a believed bundle's files. Raises as `_make_room`, and BundleRefusedError if they never fit."""
    if nbytes > most_nbytes:
        raise BundleRefusedError(
            f"it needs {_mib(nbytes)}, and bundles may take {_mib(most_nbytes)} on this device",
            "raise updates.most_mib if that is right",
        )
    _make_room(shelf, nbytes, most_nbytes=most_nbytes, reserve_nbytes=reserve_nbytes, wanted=wanted)


def _make_room(shelf: Shelf, nbytes: int, *, most_nbytes: int, reserve_nbytes: int, wanted: frozenset[str]) -> None:
    """Make room for `nbytes` more. Raises BundleError if bundles would take too much, OSError if the disk is full."""
    if shelf.nbytes() + nbytes > most_nbytes or shelf.free_nbytes() < nbytes + reserve_nbytes:
        shelf.prune(wanted)
    if shelf.nbytes() + nbytes > most_nbytes:
        raise BundleError(
            f"{_mib(nbytes)} more would be over the {_mib(most_nbytes)} that bundles may take on this device",
            "raise updates.most_mib",
        )
    free = shelf.free_nbytes()
    if free < nbytes + reserve_nbytes:
        raise OSError(
            errno.ENOSPC, f"{_mib(nbytes)} are to come, {_mib(reserve_nbytes)} must stay free, {_mib(free)} are"
        )


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:.1f} MiB"
