"""Going back to an older bundle on purpose: it runs, no look undoes it, and nothing else that is old runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from msgspec.structs import replace

from edge_agent.bundles import update as u
from edge_agent.bundles.record import Step
from edge_agent.bundles.wishes import Wish, make_wish
from edge_agent.trust.store import TrustStore
from edge_agent.updating import _Trusting
from protocol import messages as m
from protocol import signing
from protocol.bundle import SIGNATURE, Bundle, sha256
from protocol.errors import UntrustedError
from protocol.signers import SigningKey
from protocol.signing import Revocations, Statement
from tests.bundles import bundle_in
from tests.updating import Device, FolderGateway, folder_in_memory

KEY = SigningKey.of(bytes(32), "builder")
FILES = {"full.onnx": b"full model", "edge.onnx": b"edge"}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


class SignedGateway(FolderGateway):
    """Offers signed bundles, by their numbers."""

    def __init__(self, *bundles: Bundle) -> None:
        super().__init__(bundles[0].root)
        self._others = [FolderGateway(bundle.root) for bundle in bundles]
        for other in self._others:
            data = (other.bundle.root / SIGNATURE).read_bytes()
            self.files |= other.files | {sha256(data): other.bundle.root / SIGNATURE}

    def offers(self, model: str = "") -> m.Offers:
        return m.Offers(tuple(map(self._offer, self._others)))

    def _offer(self, other: FolderGateway) -> m.Offer:
        [offer] = other.offers().offers
        data = (other.bundle.root / SIGNATURE).read_bytes()
        counter = signing.look(data, name=SIGNATURE)[0].counter
        return replace(offer, signature=bytes.fromhex(sha256(data)), signature_nbytes=len(data), counter=counter)


def signed(folder: Path, counter: int) -> Bundle:
    bundle = bundle_in(folder, {**FILES, "edge.onnx": b"edge %d" % counter})
    model = bundle.manifest.model
    made = Statement(bundle.digest, model.name, model.digest, counter, KEY.public.key_id, "")
    (folder / SIGNATURE).write_bytes(signing.sign_statement(made, [KEY]))
    return bundle


class Place:
    """A device on which number 5 and then number 7 were proven."""

    def __init__(self, at: Path) -> None:
        self.store = TrustStore(at / "keys")
        self.store.believe((KEY.public,))
        self.state = at / "state"
        self.bundles = {counter: signed(at / f"v{counter}", counter) for counter in (5, 6, 7, 8)}
        for counter in (5, 7):
            device = self.device(counter)
            device.start()
            device.update()
            assert device.serves == self.digest(counter)
            device.close()
        assert self.store.remembered().floors == {"toy": 7}

    def device(self, *offered: int) -> Device:
        gateway = SignedGateway(*(self.bundles[counter] for counter in offered)) if offered else None
        device = Device(self.state, gateway, trusting=_Trusting(self.store))
        device.trust = lambda: self.store.trust(kept=True)
        return device

    def digest(self, counter: int) -> str:
        return self.bundles[counter].digest


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_operator_goes_back_below_the_floor_and_no_look_undoes_it(place: Place) -> None:
    device = place.device(5, 6, 7)
    device.start()
    device.updater.handle(u.RollBack("it is worse at night"))
    assert device.serves == place.digest(5)
    for _ in range(3):
        device.updater.check()
    assert (device.serves, device.step) == (place.digest(5), Step.REVERTED)
    device.close()
    again = place.device(5, 6, 7)
    again.start()
    again.updater.check()
    assert again.serves == place.digest(5), "nor does the next start"
    again.close()
    assert place.store.remembered().floors == {"toy": 7}, "what it must not take from a gateway is as before"
    newer = place.device(5, 6, 7, 8)
    newer.start()
    newer.update()
    assert newer.serves == place.digest(8), "what is newer than both is taken"
    newer.close()


def test_a_bundle_that_was_gone_back_to_and_is_damaged_comes_over_the_air_again(place: Place) -> None:
    device = place.device(5, 6, 7)
    device.start()
    device.updater.handle(u.RollBack("worse"))
    device.close()
    (place.state / "held" / place.digest(5) / "edge.onnx").unlink()
    again = place.device(5, 6, 7)
    again.start()
    assert again.serves == "", "nobody else is left"
    again.update()
    assert again.serves == place.digest(5)
    again.close()


def test_another_old_bundle_is_taken_only_where_an_operator_says_older(place: Place) -> None:
    device = place.device(6)
    device.start()
    device.updater.check()
    assert device.serves == place.digest(7)
    make_wish(device.shelf, Wish("fetch", place.digest(6)))
    device.updater._events.put(u.Tick())
    device.updater._turn()
    assert device.serves == place.digest(7)
    assert "older ones are not taken again" in device.updater.look().record.said
    place.store.excuse(place.digest(6))  # what `--older` does before it leaves its wish
    make_wish(device.shelf, Wish("fetch", place.digest(6)))
    device.updater._events.put(u.Tick())
    device.updater._turn()
    device.updater.handle(u.Health(ok=True))
    assert (device.serves, device.updater.look().record.proven) == (place.digest(6), place.digest(6))
    device.close()
    again = place.device(5, 6, 7)
    again.start()
    again.updater.check()
    assert again.serves == place.digest(6), "what was left is not taken back"
    again.close()


def test_a_revocation_stops_what_an_operator_went_back_to(place: Place) -> None:
    device = place.device(5, 7)
    device.start()
    device.updater.handle(u.RollBack("worse"))
    assert device.serves == place.digest(5)
    listed = Revocations(1, {place.digest(5): "it leaks"})
    place.store.take_revocations(signing.sign_revocations(listed, [KEY]))
    device.updater._refuse_revoked()
    assert device.serves == ""
    place.store.excuse(place.digest(5))
    device.updater.handle(u.Offered(place.digest(5), again=True))
    assert device.serves == ""
    assert "was revoked: it leaks" in device.updater.look().record.said
    device.close()


def test_a_refused_offer_is_told_once_and_counted(place: Place, tmp_path: Path) -> None:
    stranger = bundle_in(tmp_path / "stranger", {**FILES, "edge.onnx": b"whose?"})
    device = Device(place.state, FolderGateway(stranger.root), trusting=_Trusting(place.store))
    device.trust = lambda: place.store.trust(kept=True)
    device.start()
    for _ in range(4):
        device.updater.check()
    assert sum("is not signed" in text for text in device.told) == 1
    assert sum("is new" in text for text in device.told) == 1
    assert device.updater.look().passed_over == 3
    device.close()


def test_while_no_key_is_known_nothing_is_taken_and_as_soon_as_one_is_it_is(tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "keys")
    bundle = signed(tmp_path / "v1", 1)
    device = Device(tmp_path / "state", SignedGateway(bundle), trusting=_Trusting(store))
    device.start()
    for _ in range(2):
        device.updater.check()
    assert [text for text in device.told if "no key is known" in text] == [device.updater.look().trouble]
    store.believe((KEY.public,))
    device.update()
    assert device.serves == bundle.digest
    device.close()


def test_of_what_is_not_believed_no_byte_is_parsed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = bundle_in(tmp_path / "stranger", {**FILES, "edge.onnx": b"whose?"})
    gateway = FolderGateway(stranger.root)
    device = Device(place.state, gateway, trusting=_Trusting(place.store))
    device.start()
    parsed = []

    def poisoned(data: bytes, *more: object, name: str, **others: object) -> NoReturn:
        parsed.append(name)
        raise AssertionError(f"{name} is parsed")

    offer = gateway.offers()
    monkeypatch.setattr(gateway, "offers", lambda model="": offer)
    monkeypatch.setattr("protocol.bundle.decode_document", poisoned)
    device.updater._update.handle(u.Offered(stranger.digest), now=0.0)
    device.updater._offers = {stranger.digest: offer.offers[0]}
    with pytest.raises(UntrustedError, match="is not signed"):
        device.updater._fetch(stranger.digest)
    assert parsed == []
    (stranger.root / SIGNATURE).write_bytes((place.bundles[7].root / SIGNATURE).read_bytes())
    with pytest.raises(UntrustedError, match="is not the one that was signed"):
        Bundle.open(stranger.root, place.store.trust(received=True))
    assert parsed == []
    with pytest.raises(AssertionError, match=r"manifest\.json is parsed"):
        Bundle.open(place.bundles[7].root, place.store.trust(received=True))
    device.close()
