"""Whatever is wrong with a bundle, a gateway or the disk: one sentence, and what served goes on serving."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from edge_agent.bundles import record as records
from edge_agent.bundles import update as u
from edge_agent.bundles.courier import Interrupted
from edge_agent.bundles.disk import Disk
from edge_agent.bundles.policy import Policy
from edge_agent.bundles.record import Step
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.smoke import Smoke, _verdict
from edge_agent.bundles.switch import Stage
from edge_agent.bundles.trusting import Trusting
from edge_agent.bundles.wishes import Wish, make_wish, take_wish, wish_waits
from protocol import messages as m
from protocol import signers
from protocol.bundle import MANIFEST, Bundle
from protocol.errors import BundleError, EngineError, InputError, NetworkError, WireError
from protocol.signing import Revocations, Trust
from tests.bundles import bundle_in
from tests.updating import Device, FolderGateway, Unsigned, folder_in_memory
from tests.waiting import PATIENCE_S, until

OLD = {"full.onnx": b"full model", "edge.onnx": b"old edge"}
NEW = {"full.onnx": b"full model", "edge.onnx": b"a new edge", "cut-1/head.onnx": b"a new cut"}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def new(tmp_path: Path) -> Bundle:
    return bundle_in(tmp_path / "new", NEW)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A shelf on which a bundle is proven."""
    old = bundle_in(tmp_path / "old", OLD)
    device = Device(tmp_path / "state", FolderGateway(old.root))
    device.start()
    device.update()
    device.close()
    return tmp_path / "state"


def old_of(device: Device) -> str:
    return device.updater.look().record.proven


def assert_old_serves(device: Device, sentence: str, *, bad: str = "") -> None:
    record = device.updater.look().record
    assert (record.step, device.serves) == (Step.IDLE, record.proven)
    assert len(device.served) == 1, "it went on serving all the time"
    assert sentence in record.said
    assert sentence in device.told[-1]
    assert "\n" not in record.said
    if bad:
        assert record.why_bad(bad)
    device.close()


def turn(device: Device) -> None:
    """One round of the thread's loop, at once."""
    device.updater._events.put(u.Tick())
    device.updater._turn()


class Liar(FolderGateway):
    """A gateway of which one file cannot be had, for the reason given."""

    def __init__(self, folder: Path, trouble: Exception, after: int = 1) -> None:
        super().__init__(folder)
        self.trouble = trouble
        self.left = after

    def fetch(self, sha: str, nbytes: int, part: Path, disk: Disk) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.trouble
        super().fetch(sha, nbytes, part, disk)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (NetworkError("the gateway has fallen silent after 3 of 10 bytes"), "fallen silent after 3 of 10 bytes"),
        (WireError("what came is not the file 0123 that was asked for"), "is not the file 0123"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "the disk refuses (Read-only file system)"),
    ],
)
def test_what_cannot_be_fetched_is_said_and_fetched_when_it_can_be(
    state: Path, new: Bundle, trouble: Exception, sentence: str, after: int
) -> None:
    device = Device(state, Liar(new.root, trouble, after))
    device.start()
    device.updater.check()
    assert_old_serves(device, sentence)
    again = Device(state, FolderGateway(new.root))
    again.start()
    again.update()
    assert again.serves == new.digest
    again.close()


def test_a_bundle_of_another_model_is_not_taken(state: Path, tmp_path: Path) -> None:
    other = bundle_in(tmp_path / "other", NEW, model="faces")
    device = Device(state, FolderGateway(other.root))
    device.start()
    device.updater.check()
    assert_old_serves(device, "it is a bundle of the model 'faces', and this device runs 'toy'", bad=other.digest)


def test_a_bundle_larger_than_the_device_allows_is_not_taken(state: Path, tmp_path: Path) -> None:
    large = bundle_in(tmp_path / "large", {**NEW, "edge.onnx": b"e" * 3_000_000})
    policy = Policy(model="toy", most_nbytes=1 << 20)
    device = Device(state, FolderGateway(large.root), policy=policy)
    device.start()
    device.updater.check()
    assert_old_serves(device, "it needs 2.9 MiB, and bundles may take 1.0 MiB on this device", bad=large.digest)


def test_nothing_is_fetched_for_which_the_disk_has_no_room(state: Path, new: Bundle) -> None:
    gateway = FolderGateway(new.root)
    device = Device(state, gateway, policy=Policy(model="toy", reserve_nbytes=1 << 60))
    device.start()
    device.updater.check()
    assert_old_serves(device, "must stay free")
    assert gateway.fetched_nbytes == 0


@pytest.mark.parametrize("field", ["manifest_nbytes", "signature_nbytes"])
def test_an_offer_of_a_monstrous_manifest_is_refused_before_a_byte_is_fetched(
    state: Path, new: Bundle, field: str
) -> None:
    class Boaster(FolderGateway):
        def offers(self, model: str = "") -> m.Offers:
            [offer] = super().offers(model).offers
            return m.Offers((msgspec.structs.replace(offer, **{field: 1 << 40}),))

    gateway = Boaster(new.root)
    device = Device(state, gateway)
    device.start()
    device.updater.check()
    assert_old_serves(device, "are offered; no bundle has such")
    assert gateway.fetched_nbytes == 0
    honest = Device(state, FolderGateway(new.root))
    honest.start()
    honest.update()
    assert honest.serves == new.digest, "a gateway's lie is not held against the bundle"
    honest.close()


def test_a_gateway_that_offers_ever_new_bundles_that_nobody_signed_does_not_fill_the_disk(
    state: Path, tmp_path: Path
) -> None:
    class Signed(Trusting):
        def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
            return Trust(keys=(signers.make_key("release").public,), allow_unsigned=not received)

    before = Shelf(state).nbytes()
    device = Device(state, None, trusting=Signed())
    device.start()
    for number in range(5):
        device.updater._courier = FolderGateway(
            bundle_in(tmp_path / str(number), {**NEW, "edge.onnx": b"%d" % number}).root
        )
        device.updater.check()
        assert "is not signed" in device.told[-1]
    assert Shelf(state).nbytes() <= before + 1000
    device.close()


def test_even_manifests_are_fetched_only_where_bundles_may_take_so_much(state: Path, new: Bundle) -> None:
    gateway = FolderGateway(new.root)
    device = Device(state, gateway, policy=Policy(model="toy", most_nbytes=Shelf(state).nbytes(), reserve_nbytes=0))
    device.start()
    device.updater.check()
    assert_old_serves(device, "that bundles may take on this device")
    assert gateway.fetched_nbytes == 0


def test_a_bundle_that_fails_its_first_run_is_not_taken_again(state: Path, new: Bundle) -> None:
    device = Device(state, FolderGateway(new.root), smoke=lambda folder: "edge-only answers with numbers that are none")
    device.start()
    device.updater.check()
    device.updater.check()
    assert device.told.count(f"bundle {new.digest[:12]} is new: fetching what is missing") == 1
    assert_old_serves(device, "edge-only answers with numbers that are none", bad=new.digest)
    assert device.shelf.held() == [old_of(device)], "it leaves nothing behind"


def test_a_bundle_that_passes_its_first_run_and_cannot_be_started_is_not_taken(state: Path, new: Bundle) -> None:
    device = Device(state, FolderGateway(new.root))
    device.cannot_serve[new.digest] = "the accelerator refuses it"
    device.start()
    device.updater.check()
    assert_old_serves(device, "the accelerator refuses it", bad=new.digest)


def test_at_the_start_a_bundle_on_trial_that_cannot_be_started_is_given_up(state: Path, new: Bundle) -> None:
    device = Device(state, FolderGateway(new.root))
    device.start()
    device.updater.check()
    assert device.step is Step.ON_TRIAL
    device.close()
    again = Device(state, FolderGateway(new.root))
    again.cannot_serve[new.digest] = "the accelerator refuses it"
    again.start()
    record = again.updater.look().record
    assert (record.step, again.serves) == (Step.REVERTED, record.proven)
    assert record.why_bad(new.digest) == "the accelerator refuses it"
    again.close()


@pytest.mark.parametrize("damage", ["gone", "shorter", "manifest"])
def test_at_the_start_a_damaged_bundle_is_passed_over_for_the_one_before_it(
    state: Path, new: Bundle, damage: str
) -> None:
    device = Device(state, FolderGateway(new.root))
    device.start()
    device.update()
    before = device.updater.look().record
    assert (before.proven, before.previous != "") == (new.digest, True)
    device.close()
    folder = device.shelf.folder(new.digest)
    match damage:
        case "gone":
            (folder / "edge.onnx").unlink()
        case "shorter":
            (folder / "edge.onnx").write_bytes(b"")
        case "manifest":
            (folder / MANIFEST).write_text("{}")
    again = Device(state, FolderGateway(new.root))
    again.start()
    assert again.serves == before.previous
    assert "damaged" in again.updater.look().record.said
    again.update()  # and it is fetched again
    assert again.serves == new.digest
    again.close()


def test_a_device_with_nothing_left_to_run_says_so(state: Path) -> None:
    device = Device(state, None)
    device.cannot_serve[device.shelf.load().current] = "no"

    def nobody(folder: Path | None) -> None:
        raise EngineError("no bundle in the settings either" if folder is None else "no")

    with pytest.raises(EngineError, match="in the settings either"):
        device.updater.begin(nobody)
    device.close()


def test_keys_or_settings_that_are_wrong_at_a_start_cost_no_bundle(state: Path) -> None:
    before = Shelf(state).load()
    device = Device(state, None)

    def refused(folder: Path | None) -> None:
        raise InputError("bundle.pub cannot be read", "mend it")

    with pytest.raises(InputError, match="mend it"):
        device.updater.begin(refused)
    device.close()
    assert Shelf(state).load() == before


def test_keys_that_cannot_be_read_while_it_serves_end_nothing(state: Path, new: Bundle) -> None:
    class Typo(Unsigned):
        broken = True

        def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
            if received and self.broken:
                raise InputError("bundle.pub holds no public key", "give the file NAME.pub")
            return super().trust()

    trusting = Typo()
    trusting.broken = False
    device = Device(state, FolderGateway(new.root), trusting=trusting)
    device.start()
    trusting.broken = True
    device.updater.start()
    until(lambda: any("holds no public key" in text for text in device.told), "nobody was told")
    trusting.broken = False
    device.updater.check_now()
    until(lambda: device.serves == new.digest, "it did not go on")
    device.close()


def test_a_revoked_bundle_does_not_run_and_is_not_fetched(state: Path, new: Bundle) -> None:
    old = Shelf(state).load().proven

    class Knows(Unsigned):
        revoked: dict[str, str] = {old: "it leaks"}  # noqa: RUF012

        def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
            return Trust(allow_unsigned=True, revocations=Revocations(1, self.revoked))

    device = Device(state, FolderGateway(new.root), trusting=Knows())
    device.start()
    assert device.serves == "", "nobody is left to serve"
    assert "it was revoked: it leaks; there is no other bundle" in device.updater.look().record.said
    device.update()
    assert device.serves == new.digest
    Knows.revoked = {new.digest: "it leaks too"}
    device.updater._refuse_revoked()
    assert device.serves == ""
    device.close()


def test_two_processes_never_change_one_shelf(state: Path) -> None:
    device = Device(state, None)
    device.start()
    with pytest.raises(InputError, match="another process changes the bundles"):
        Device(state, None).start()
    device.close()
    device = Device(state, None)
    device.start()
    device.close()


def test_a_damaged_record_is_refused_not_overwritten(state: Path) -> None:
    (state / "current.json").write_text("{")
    device = Device(state, None)
    with pytest.raises(Exception, match=r"current\.json does not parse"):
        device.start()
    device.close()
    assert (state / "current.json").read_text() == "{"


def test_only_what_is_missing_is_fetched(state: Path, new: Bundle) -> None:
    gateway = FolderGateway(new.root)
    device = Device(state, gateway)
    device.start()
    device.update()
    device.close()
    listed = (new.root / MANIFEST).stat().st_size
    assert gateway.fetched_nbytes == listed + len(NEW["edge.onnx"]) + len(NEW["cut-1/head.onnx"])
    for path in device.shelf.folder(new.digest).rglob("*.onnx"):
        assert path.stat().st_nlink == 1


def test_old_bundles_go_but_never_the_proven_one_and_the_one_before(state: Path, tmp_path: Path) -> None:
    for number in range(4):
        fresh = bundle_in(tmp_path / f"v{number}", {**NEW, "edge.onnx": b"%d" % number})
        device = Device(state, FolderGateway(fresh.root))
        device.start()
        device.update()
        device.close()
    record = device.shelf.load()
    assert record.proven == fresh.digest
    assert sorted(device.shelf.held()) == sorted([record.proven, record.previous])


def test_how_long_no_gateway_was_heard_is_known_where_one_is_asked(state: Path, new: Bundle) -> None:
    class Mute(FolderGateway):
        def offers(self, model: str = "") -> m.Offers:
            raise NetworkError("no gateway answers")

    for gateway in (FolderGateway(new.root), Mute(new.root)):
        device = Device(state, gateway)
        device.start()
        device.updater._heard_at -= 1000.0
        device.updater.check()
        unheard_s = device.updater.look().unheard_s
        assert unheard_s is not None
        assert (unheard_s >= 1000.0) == isinstance(gateway, Mute)
        gateway.named = lambda: False
        assert device.updater.look().unheard_s is None
        device.close()


class Endless(FolderGateway):
    """A gateway of which one file never ends: it says when it was asked for, and goes on until it is interrupted."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self.endless = self.bundle.manifest.files[name].sha256
        self.asked = 0

    def fetch(self, sha: str, nbytes: int, part: Path, disk: Disk) -> None:
        if sha != self.endless:
            super().fetch(sha, nbytes, part, disk)
            return
        self.asked += 1
        until(self.interrupted, "nothing has interrupted it")
        raise Interrupted


def test_who_wants_to_go_back_does_not_wait_for_a_fetch(state: Path, new: Bundle, tmp_path: Path) -> None:
    second = Device(state, FolderGateway(new.root))
    second.start()
    second.update()
    old, runs = second.updater.look().record.previous, second.serves
    second.close()
    third = bundle_in(tmp_path / "third", NEW | {"edge.onnx": b"a third edge"})
    gateway = Endless(third.root, "edge.onnx")
    device = Device(state, gateway)
    device.start()
    device.updater.start()
    until(lambda: gateway.asked, "it fetches nothing")
    assert (device.step, device.serves) == (Step.FETCHING, runs)
    make_wish(device.shelf, Wish("roll back", reason="it is worse at night"))
    until(lambda: device.serves == old, "it did not go back")
    assert device.updater.look().record.candidate == ""
    device.close()


def test_what_is_asked_for_meanwhile_is_answered_and_the_fetch_goes_on(state: Path, new: Bundle) -> None:
    gateway = Endless(new.root, "edge.onnx")
    device = Device(state, gateway)
    device.start()
    device.updater.start()
    until(lambda: gateway.asked == 1, "it fetches nothing")
    (junk := device.shelf.folder("e" * 64)).mkdir()
    make_wish(device.shelf, Wish("prune"))
    until(lambda: gateway.asked == 2, "it did not go on")
    assert not junk.exists()
    assert device.step is Step.FETCHING
    gateway.endless = ""
    device.updater.check_now()
    until(lambda: device.serves == new.digest, "it did not end")
    device.close()


def test_revocations_are_asked_for_however_long_a_fetch_takes(state: Path, new: Bundle) -> None:
    gateway = Endless(new.root, "edge.onnx")
    device = Device(state, gateway)
    device.start()
    device.updater.start()
    until(lambda: gateway.asked == 1, "it fetches nothing")
    before = device.updater.look().checked_at
    device.updater._check_at = 0.0
    until(lambda: gateway.asked == 2, "it did not go on")
    after = device.updater.look().checked_at
    assert before is not None
    assert after is not None
    assert after > before
    device.close()


def test_the_operators_wishes_are_taken_once_and_nonsense_is_thrown_away(state: Path, new: Bundle) -> None:
    device = Device(state, None)
    device.start()
    make_wish(device.shelf, Wish("roll back", reason="it is worse at night"))
    turn(device)
    assert device.step is Step.IDLE, "there is nothing before it"
    assert take_wish(device.shelf) is None
    for nonsense in (b"", b"[]", b'{"act": "format"}', b'{"act": "install", "bundle": "../x"}', b'{"more": 1}'):
        (device.shelf.root / "wish.json").write_bytes(nonsense)
        assert take_wish(device.shelf) is None
        assert not (device.shelf.root / "wish.json").exists()
    device.close()


def test_a_wish_waits_until_the_one_before_was_taken_and_is_refused_where_the_daemon_is_busy(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.make()
    first, second, third = (Wish("fetch", digit * 64) for digit in "abc")
    make_wish(shelf, first)
    with pytest.raises(BundleError, match="has not taken yet what it was told before; say it again"):
        make_wish(shelf, second, wait_s=0.0)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(make_wish, shelf, wish, wait_s=PATIENCE_S) for wish in (second, third)]
        taken = [take_wish(shelf)]
        while len(taken) < 3:
            until(lambda: wish_waits(shelf), "the next wish was not left")
            taken.append(take_wish(shelf))
        for one in asked:
            one.result()
    assert taken[0] == first
    assert {wish.bundle[0] for wish in taken if wish} == {"a", "b", "c"}
    assert take_wish(shelf) is None


def test_an_operator_goes_back_to_the_bundle_before(state: Path, new: Bundle) -> None:
    old = Shelf(state).load().proven
    device = Device(state, FolderGateway(new.root))
    device.start()
    device.update()
    make_wish(device.shelf, Wish("roll back", reason="it is worse at night"))
    turn(device)
    assert device.serves == old
    assert device.updater.look().record.why_bad(new.digest) == "it is worse at night"
    device.updater.check()
    assert device.serves == old, "what was given up is not fetched again"
    device.updater.handle(u.Offered(new.digest, again=True))
    assert device.serves == new.digest, "but an operator may have it"
    device.close()


# ---- the first run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "out", "trouble", "sentence"),
    [
        (0, "\n", "", ""),
        (0, "edge-only does not load here\n", "warning", "edge-only does not load here"),
        (-11, "", "", "it ended the process that tried it (SIGSEGV)"),
        (-6, "", "terminate called: std::bad_alloc", "it does not run in the memory that a trial may take"),
        (1, "", "Traceback\nMemoryError\n", "it does not run in the memory that a trial may take"),
        (1, "", "Traceback\nValueError: x\n", "it could not be tried: ValueError: x"),
        (-99, "", "", "it ended the process that tried it (signal 99)"),
    ],
)
def test_however_a_first_run_ends_there_is_one_sentence(code: int, out: str, trouble: str, sentence: str) -> None:
    assert _verdict(code, out, trouble) == sentence


def test_a_first_run_that_hangs_is_ended(new: Bundle) -> None:
    assert Smoke(timeout_s=0.01)(new.root) == "it had not answered a known question after 0.01 s"


def test_files_that_are_no_graphs_fail_their_first_run_and_not_the_agent(new: Bundle) -> None:
    assert "does not load here" in Smoke()(new.root)


# ---- the switch -----------------------------------------------------------------------------------------------------


class Fake:
    def __init__(self, *, starts: bool = True) -> None:
        self.starts, self.closed = starts, False

    def start(self) -> None:
        if not self.starts:
            raise EngineError("no")

    def close(self) -> None:
        self.closed = True


def test_an_agent_is_closed_only_when_its_last_request_has_ended() -> None:
    old, new = Fake(), Fake()
    stage = Stage(old)
    with stage.hold() as holding:
        assert holding is old
        swap = stage.swap(new, patience_s=0.0)
        assert (stage.agent, swap.left_nobody) == (new, False)
    stage = Stage(new)
    swap = stage.swap(None)
    assert swap.left_nobody
    assert new.closed
    with pytest.raises(InputError, match="no bundle serves"), stage.hold():
        pass


def test_an_agent_that_cannot_be_started_changes_nothing() -> None:
    old, new = Fake(), Fake(starts=False)
    stage = Stage(old)
    with pytest.raises(EngineError):
        stage.swap(new)
    assert stage.agent is old
    assert (old.closed, new.closed) == (False, True)


def test_the_record_of_a_later_version_is_named_as_such(state: Path) -> None:
    record = Shelf(state).load()
    data = records.encode(record).replace(b'"schema_version": 1', b'"schema_version": 9')
    (state / "current.json").write_bytes(data)
    with pytest.raises(Exception, match="schema version 9"):
        Shelf(state).load()


def test_what_a_command_is_bringing_is_not_pruned_by_the_daemon_beside_it(state: Path, new: Bundle) -> None:
    shelf = Shelf(state)
    wanted = shelf.load().wanted
    with shelf.bringing():
        folder = shelf.adopt(new, whole=True)
        assert Shelf(state).prune(wanted) == []
        assert folder.exists()
        make_wish(shelf, Wish("install", new.digest))
    assert Shelf(state).prune(wanted) == []
    assert folder.exists(), "its wish waits"
    assert take_wish(shelf) == Wish("install", new.digest)
    assert Shelf(state).prune(wanted) == [new.digest]
