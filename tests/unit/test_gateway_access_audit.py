"""The audit log: nothing is done unrecorded, tampering is found, and a crash or a full disk is survived."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.access import chain
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.chain import Head
from protocol.errors import AccessError, InputError

Tamper = Callable[[list[bytes]], list[bytes]]


def _log(folder: Path, **options: int) -> AuditLog:
    return AuditLog(folder / "audit.log", clock=lambda: 1.8e9, **options)


def _filled(folder: Path, acts: int = 4, **options: int) -> AuditLog:
    log = _log(folder, **options)
    for number in range(acts):
        with log.act("uid:0", "keys.add", f"camera-{number}"):
            pass
    return log


def test_an_act_is_recorded_before_it_happens_and_when_it_has(tmp_path: Path) -> None:
    log = _log(tmp_path)
    with log.act("api:ops", "model.load", "digits/3"):
        assert [r.outcome for r in log.records()] == ["begun"]
    assert [(r.seq, r.actor, r.action, r.target, r.outcome, r.of) for r in log.records()] == [
        (1, "api:ops", "model.load", "digits/3", "begun", 0),
        (2, "api:ops", "model.load", "digits/3", "done", 1),
    ]
    assert next(log.records()).utc == "2027-01-15T08:00:00.000+00:00"


def test_an_act_that_fails_is_recorded_with_the_reason(tmp_path: Path) -> None:
    log = _log(tmp_path)
    with pytest.raises(InputError), log.act("uid:0", "keys.add", "camera-7"):
        raise InputError("the name camera-7 is taken")
    assert [r.outcome for r in log.records()][1] == "failed: the name camera-7 is taken"
    assert log.verify().ok


def test_a_sound_log_says_how_many_records_it_has_and_where_it_ends(tmp_path: Path) -> None:
    verdict = _filled(tmp_path).verify()
    assert verdict.ok
    assert (verdict.records, verdict.first_seq, verdict.head.seq) == (8, 1, 8)


def test_there_is_nothing_to_verify_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no audit log"):
        _log(tmp_path).verify()


def _edited(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b"camera-1", b"camera-9") for line in lines]


def _edited_with_a_hash_of_its_own(lines: list[bytes]) -> list[bytes]:
    record = chain.decode(lines[3][:-1])
    forged = chain.link(Head(record.seq - 1, record.previous), utc=record.utc, actor="x", action="y")
    return [*lines[:3], chain.encode(forged), *lines[4:]]


def _forged_to_the_end(lines: list[bytes]) -> list[bytes]:
    """All records from the fourth on are written anew, each with a hash that fits: only the anchor knows better."""
    head = Head(3, chain.decode(lines[2][:-1]).hash)
    forged = []
    for line in lines[3:]:
        old = chain.decode(line[:-1])
        new = chain.link(head, utc=old.utc, actor="nobody", action=old.action, target=old.target)
        forged.append(chain.encode(new))
        head = Head(new.seq, new.hash)
    return lines[:3] + forged


TAMPERINGS: list[tuple[str, Tamper, str]] = [
    ("one is edited", _edited, ":3"),
    ("one is edited, and hashed anew", _edited_with_a_hash_of_its_own, ":5"),
    ("all that follow are hashed anew", _forged_to_the_end, "the end"),
    ("one is removed", lambda lines: lines[:4] + lines[5:], ":5"),
    ("the first is removed", lambda lines: lines[1:], ""),
    ("two are exchanged", lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], ":3"),
    ("one stands twice", lambda lines: [*lines[:2], lines[1], *lines[2:]], ":3"),
    ("the last is cut off", lambda lines: lines[:-1], "the end"),
    ("the last four are cut off", lambda lines: lines[:-4], "the end"),
    ("all are cut off", lambda lines: [], "the end"),
    ("the last is cut in half", lambda lines: [*lines[:-1], lines[-1][:40]], ":8"),
    ("a blank is added", lambda lines: [lines[0].replace(b",", b", ", 1), *lines[1:]], ":1"),
    ("an empty line is added", lambda lines: [*lines[:2], b"\n", *lines[2:]], ":3"),
    ("a key is added", lambda lines: [lines[0].replace(b"{", b'{"x":1,', 1), *lines[1:]], ":1"),
    ("it is something else", lambda lines: [b"\xff\xfe\n"], ":1"),
]


@pytest.mark.parametrize(("tamper", "where"), [t[1:] for t in TAMPERINGS], ids=[t[0] for t in TAMPERINGS])
def test_whatever_was_tampered_with_is_found_where_it_stands(tmp_path: Path, tamper: Tamper, where: str) -> None:
    log = _filled(tmp_path)
    lines = tamper(log.path.read_bytes().splitlines(keepends=True))
    log.path.write_bytes(b"".join(lines))
    verdict = log.verify()
    if where:
        assert not verdict.ok
        assert verdict.broken.endswith(where), verdict
    else:  # archived, or removed: said by where the log begins, which people compare
        assert (verdict.ok, verdict.first_seq) == (True, 2)


@given(st.data())
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    head, lines = Head(), []
    for n in range(3):
        record = chain.link(head, utc="t", actor="a", action=f"x{n}")
        head = Head(record.seq, record.hash)
        lines.append(chain.encode(record))
    text = bytearray(b"".join(lines))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255).filter(lambda b: b != text[at]))
    numbered = [(str(n), line) for n, line in enumerate(bytes(text).splitlines(keepends=True))]
    assert not chain.verify(numbered, expect=[head]).ok


def test_a_hash_that_was_written_down_elsewhere_finds_what_the_anchor_lost(tmp_path: Path) -> None:
    log = _filled(tmp_path)
    noted = log.verify().head.hash
    assert log.verify(expect=noted).ok
    assert log.verify(expect=next(log.records()).hash).ok  # any of the chain's will do
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-2]))
    log.path.with_name("audit.log.anchor").unlink()
    assert log.verify().ok
    assert noted in log.verify(expect=noted).why


def test_nothing_is_added_to_a_log_that_was_cut_off(tmp_path: Path) -> None:
    log = _filled(tmp_path)
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(AccessError, match="records were removed"), log.act("uid:0", "keys.add"):
        pytest.fail("the act must not begin")


def test_nothing_is_added_to_a_log_whose_end_was_edited(tmp_path: Path) -> None:
    log = _filled(tmp_path)
    log.path.write_bytes(log.path.read_bytes().replace(b"camera-3", b"camera-8"))
    with pytest.raises(AccessError, match="last record"):
        log.append("uid:0", "keys.add", "x", "begun")


@pytest.mark.parametrize("left", [1, 40, 200])
def test_a_line_that_a_crash_has_torn_is_cut_off_and_told_of(tmp_path: Path, left: int) -> None:
    log = _filled(tmp_path, acts=1)
    torn = chain.encode(chain.link(log.verify().head, utc="t", actor="a" * 200, action="x"))[:left]
    with log.path.open("ab") as file:
        file.write(torn)
    assert not log.verify().ok
    log.append("uid:0", "keys.add", "x", "begun")
    assert log.verify().ok
    mend = list(log.records())[2]
    assert (mend.action, mend.actor) == ("audit.mend", "audit")
    assert f"{left} bytes" in mend.outcome


def test_a_torn_first_line_is_told_of_too(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.path.write_bytes(b'{"seq":1,"ut')
    log.append("uid:0", "keys.add", "x", "begun")
    assert [r.action for r in log.records()] == ["audit.mend", "keys.add"]
    assert log.verify().ok


def test_the_chain_goes_on_through_a_change_of_files(tmp_path: Path) -> None:
    log = _filled(tmp_path, acts=20, most_nbytes=3000)
    assert len(log.parts()) >= 3
    verdict = log.verify()
    assert verdict.ok
    assert verdict.records == 40 + len(log.parts()) - 1
    assert [r.seq for r in log.records()] == list(range(1, verdict.records + 1))
    log.parts()[0].unlink()  # archived elsewhere
    assert log.verify().ok
    assert log.verify().first_seq > 1
    log.parts()[1].unlink()
    assert "should stand here" in log.verify().why


def test_a_change_of_files_that_a_crash_interrupts_loses_nothing(tmp_path: Path) -> None:
    log = _filled(tmp_path, acts=2)
    log.path.rename(tmp_path / "audit.log.0000000001-0000000004")
    log.append("uid:0", "keys.add", "x", "begun")
    assert log.verify().head.seq == 5
    assert log.verify().ok


def test_threads_and_processes_may_write_at_once(tmp_path: Path) -> None:
    logs = [_log(tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=_acts, args=(log, 5)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logs[0].verify().records == 40
    assert logs[0].verify().ok


def _acts(log: AuditLog, count: int) -> None:
    for _ in range(count):
        with log.act("uid:0", "keys.add"):
            pass


FULL_DISK = """
import resource, sys
from pathlib import Path
from cloud_gateway.access.audit import AuditLog
from protocol.errors import AccessError
log = AuditLog(Path(sys.argv[1]))
log.append("uid:0", "keys.add", "a", "begun")
size = log.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))  # the next line fits in part
try:
    with log.act("uid:0", "keys.add", "b"):
        print("done without a record")
except AccessError as error:
    print(error)
print(log.path.stat().st_size == size, log.verify().ok)
"""


def test_what_cannot_be_recorded_is_not_done(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "audit.log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    refusal, left = done.stdout.splitlines()
    assert "so keys.add is refused" in refusal
    assert left == "True True"


def test_texts_are_shortened_whatever_they_hold(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.append("\x00" * 10_000, "\n" * 10_000, "\ud800" * 10_000, "\U0001f600" * 10_000)
    assert log.verify().ok
    assert len(log.path.read_bytes()) < chain.MOST_LINE_NBYTES
    assert msgspec.json.decode(log.path.read_bytes())["target"] == "?" * chain.MOST_TEXT
