"""Whom a device believes: policies, counters that only rise, lists that only get newer, and what a crash leaves."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest

from edge_agent.config import AgentSettings, BundleSettings
from edge_agent.trust.identity import identity
from edge_agent.trust.store import Policy, TrustStore
from edge_agent.updating import trust_of
from protocol import signing
from protocol.bundle import MANIFEST, SIGNATURE, sha256
from protocol.errors import InputError, UntrustedError
from protocol.signers import SigningKey
from protocol.signing import Revocations, Statement

CURRENT, NEXT, STRANGER = (SigningKey.of(bytes([n]) * 32, name) for n, name in enumerate(("current", "next", "other")))


def said(counter: int, model: str = "digits") -> Statement:
    return Statement("0" * 64, model, "1" * 64, counter, CURRENT.public.key_id, "")


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    made = TrustStore(tmp_path / "keys")
    made.believe((CURRENT.public,))
    return made


POLICIES: tuple[Policy, ...] = ("auto", "required", "unsigned")


@pytest.mark.parametrize(
    ("policy", "keys", "received"), list(itertools.product(POLICIES, (False, True), (False, True)))
)
def test_an_unsigned_bundle_is_taken_only_where_it_was_said(
    tmp_path: Path, policy: Policy, keys: bool, received: bool
) -> None:
    store = TrustStore(tmp_path / "keys", policy=policy)
    if keys:
        store.believe((CURRENT.public, NEXT.public))
    (tmp_path / MANIFEST).write_bytes(b"{}")
    taken = policy == "unsigned" or (policy == "auto" and not keys and not received)
    trust = store.trust(received=received)
    assert trust.allow_unsigned is taken
    if taken:
        assert trust.check(tmp_path) is None
    else:
        with pytest.raises(UntrustedError, match="is not signed"):
            trust.check(tmp_path)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_happens_without_a_key_is_said_in_a_sentence(tmp_path: Path, policy: Policy) -> None:
    sentence = TrustStore(tmp_path / "keys", policy=policy).describe()
    assert {"auto": "none is taken over the air", "required": "no bundle can be used", "unsigned": "unsigned"}[
        policy
    ] in sentence


def test_a_counter_only_ever_rises(store: TrustStore) -> None:
    for counter in (3, 7, 5, 7, 1):
        store.accept(said(counter))
    store.accept(said(2, "other"))
    assert store.remembered().floors == {"digits": 7, "other": 2}
    assert TrustStore(store.folder).trust().floors == {"digits": 7, "other": 2}


def test_two_that_accept_at_once_lose_nothing(store: TrustStore) -> None:
    def rise(model: str) -> None:
        for counter in range(10):
            store.accept(said(counter, model))

    threads = [threading.Thread(target=rise, args=(f"m{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.remembered().floors == {f"m{n}": 9 for n in range(4)}


def test_an_older_bundle_is_refused_after_a_newer_one_was_accepted(store: TrustStore, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"{}")
    statement = Statement(sha256(b"{}"), "digits", "1" * 64, 6, CURRENT.public.key_id, "")
    (tmp_path / SIGNATURE).write_bytes(signing.sign_statement(statement, [CURRENT]))
    assert store.trust().check(tmp_path) == statement
    store.accept(said(7))
    with pytest.raises(UntrustedError, match="older ones are not taken again"):
        store.trust().check(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema_version":1,"floors":{"digits":-1}}', b"\xff"])
def test_counters_that_cannot_be_read_stop_everything(store: TrustStore, damage: bytes) -> None:
    store.accept(said(7))
    (store.folder / "remembered.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"remembered\.json"):
        store.trust()
    with pytest.raises(InputError, match=r"remembered\.json"):
        store.accept(said(8))


def test_what_a_crash_left_half_written_is_not_read(store: TrustStore) -> None:
    store.accept(said(7))
    (store.folder / ".remembered.json.x1y2z3").write_bytes(b'{"schema_')
    assert store.trust().floors == {"digits": 7}


def test_a_list_of_revocations_is_kept_and_never_replaced_by_an_older_one(store: TrustStore) -> None:
    first = signing.sign_revocations(Revocations(1, {"0" * 64: "a"}), [CURRENT])
    second = signing.sign_revocations(Revocations(2, {"0" * 64: "a", "1" * 64: "b"}), [CURRENT])
    assert store.trust().revocations is None
    store.take_revocations(second)
    with pytest.raises(UntrustedError, match="number 1 and number 2"):
        store.take_revocations(first)
    kept = TrustStore(store.folder).trust().revocations
    assert kept is not None
    assert kept.number == 2


def test_a_strangers_list_changes_nothing(store: TrustStore) -> None:
    with pytest.raises(UntrustedError):
        store.take_revocations(signing.sign_revocations(Revocations(1), [STRANGER]))
    assert store.remembered().revocations is None


def test_a_list_holds_on_when_the_key_that_signed_it_is_replaced(store: TrustStore) -> None:
    store.take_revocations(signing.sign_revocations(Revocations(1, {"0" * 64: "a"}), [CURRENT]))
    store.believe((NEXT.public,))
    assert store.trust().revocations == Revocations(1, {"0" * 64: "a"})


def test_a_key_is_replaced_with_both_believed_in_between(store: TrustStore) -> None:
    store.believe((CURRENT.public, NEXT.public))
    assert store.known() == (CURRENT.public, NEXT.public)
    store.believe((NEXT.public,))
    assert "next" in store.describe()
    with pytest.raises(InputError, match="3 keys"):
        store.believe((CURRENT.public, NEXT.public, STRANGER.public))


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "state" / "keys")
    store.accept(said(1))
    assert (tmp_path / "state" / "keys").stat().st_mode & 0o777 == 0o700
    assert json.loads((store.folder / "remembered.json").read_text()) == {
        "floors": {"digits": 1},
        "excused": ["0" * 64],
        "revocations": None,
        "schema_version": 1,
    }


def signed(folder: Path, counter: int) -> Statement:
    """A bundle, as far as trust looks at one, with that number."""
    folder.mkdir()
    (folder / MANIFEST).write_bytes(b"%d" % counter)
    made = Statement(sha256(b"%d" % counter), "digits", "1" * 64, counter, CURRENT.public.key_id, "")
    (folder / SIGNATURE).write_bytes(signing.sign_statement(made, [CURRENT]))
    return made


def test_what_was_proven_here_may_be_gone_back_to_and_nothing_else_that_is_old(
    store: TrustStore, tmp_path: Path
) -> None:
    old, other, new = (signed(tmp_path / name, counter) for name, counter in (("old", 5), ("other", 6), ("new", 7)))
    store.accept(old)
    store.accept(new)
    assert store.trust(kept=True).check(tmp_path / "old") == old
    for kept in (False, True):
        with pytest.raises(UntrustedError, match="older ones are not taken again"):
            store.trust(kept=kept).check(tmp_path / "other")
    with pytest.raises(UntrustedError, match="older ones are not taken again"):
        store.trust(received=True).check(tmp_path / "old")
    store.excuse(other.manifest_sha256)
    assert store.trust(kept=True).check(tmp_path / "other") == other
    assert store.trust().floors == {"digits": 7}, "no number was lowered"


def test_a_revocation_excuses_nobody(store: TrustStore, tmp_path: Path) -> None:
    old = signed(tmp_path / "old", 5)
    store.accept(old)
    store.excuse(old.manifest_sha256)
    listed = Revocations(1, {old.manifest_sha256: "it leaks"})
    store.take_revocations(signing.sign_revocations(listed, [CURRENT]))
    with pytest.raises(UntrustedError, match="was revoked: it leaks"):
        store.trust(kept=True).check(tmp_path / "old")


def test_only_the_last_few_are_excused(store: TrustStore) -> None:
    for number in range(9):
        store.excuse(f"{number:064x}")
    assert store.remembered().excused == tuple(f"{number:064x}" for number in range(5, 9))


def test_the_settings_may_want_two_signatures(tmp_path: Path) -> None:
    settings = AgentSettings(state_dir=tmp_path, bundle=BundleSettings(signers=2))
    store = trust_of(settings)
    store.believe((CURRENT.public,))
    with pytest.raises(InputError, match="2 signatures are wanted and 1 keys are known"):
        store.trust()
    store.believe((CURRENT.public, NEXT.public))
    folder = tmp_path / "bundle"
    made = signed(folder, 5)
    with pytest.raises(UntrustedError, match="has 1 signatures of keys that are believed here, and 2 are wanted"):
        store.trust().check(folder)
    (folder / SIGNATURE).write_bytes(signing.add_signature((folder / SIGNATURE).read_bytes(), NEXT, name="x"))
    assert store.trust().check(folder) == made


def test_a_folder_of_keys_that_nobody_may_look_into_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file, in which nothing can be looked at, not even by root")
    store = TrustStore(tmp_path / "keys")
    for look in (store.known, store.remembered, lambda: identity(tmp_path / "keys")):
        with pytest.raises(InputError, match=r"cannot be looked at .*; run it as its owner, or name another"):
            look()
