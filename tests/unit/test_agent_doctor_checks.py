"""Single checks on machines and folders that were made up for them: what is sound passes, what is not has a remedy."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from edge_agent.doctor import (
    checks_bundle,
    checks_configuration,
    checks_installation,
    checks_machine,
    checks_network,
    checks_service,
    checks_storage,
)
from edge_agent.doctor.case import Case, Once
from edge_agent.doctor.probe import GatewayProbe
from edge_agent.doctor.verdicts import Status, UnmetError, Verdict
from protocol import keys
from protocol import messages as m
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, sha256
from protocol.engines.catalogue import KINDS
from protocol.engines.ort import available
from protocol.errors import InputError
from tests import boards
from tests.bundles import bundle_in

UNIT = f"etc/systemd/system/{checks_service.UNIT}"
SYSTEMD = {
    "run/systemd/system/.keep": "",
    f"etc/systemd/system/multi-user.target.wants/{checks_service.UNIT}": "",
    UNIT: "[Unit]\nAfter=network.target\n[Service]\nType=notify\nWatchdogSec=30\nRestart=on-failure\nUser=isthmus\n"
    "NoNewPrivileges=yes\nProtectSystem=strict\nMemoryMax=512M\nExecStartPre=a\nExecStartPre=b\n",
}


def case(root: Path, files: dict[str, str] | None = None, **settings: object) -> Case:
    overrides = {"state_dir": str(root / "state")} | {key.replace("__", "."): v for key, v in settings.items()}
    return Case(overrides=overrides, root=boards.plant(root, files or {}))


def status(check: Callable[[Case], Verdict], case_: Case) -> Status:
    """Its status; every complaint has a remedy."""
    try:
        verdict = check(case_)
    except UnmetError:
        return Status.SKIP
    assert bool(verdict.remedy) == (verdict.status in (Status.WARN, Status.FAIL)), verdict
    return verdict.status


# ---- machine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512_vnni", Status.OK),
        ("flags : fpu avx2 avx_vnni", Status.OK),
        ("flags : fpu avx2 fma", Status.WARN),  # saturates, so the slower exact products are used
        ("flags : fpu sse2", Status.WARN),
        ("Features : fp asimd asimddp", Status.OK),
        ("Features : fp asimd crc32", Status.WARN),
        ("", Status.SKIP),
    ],
)
def test_what_eight_bit_products_need_is_looked_for(tmp_path: Path, flags: str, expected: Status) -> None:
    assert (
        status(checks_machine.instructions, case(tmp_path, {"proc/cpuinfo": f"processor : 0\n{flags}\n"})) is expected
    )


def test_boards_that_are_hot_weak_or_capped_are_told_from_those_that_are_well(tmp_path: Path) -> None:
    orin, pi, pc = (
        case(tmp_path / name, files)
        for name, files in (("orin", boards.ORIN), ("pi", boards.PI), ("pc", {**boards.X86, **INTEL}))
    )
    seen = {
        check.__name__: [status(check, one) for one in (orin, pi, pc)]
        for check in (
            checks_machine.board,
            checks_machine.governor,
            checks_machine.throttling,
            checks_machine.temperature,
            checks_machine.power_mode,
            checks_machine.swap,
            checks_machine.wear,
        )
    }
    good, look, none = Status.OK, Status.WARN, Status.SKIP
    assert seen == {
        "board": [good, good, good],
        "governor": [look, good, good],  # an Orin in a lower mode is capped; "powersave" of intel_pstate is on demand
        "throttling": [look, look, good],
        "temperature": [good, look, good],
        "power_mode": [look, none, none],
        "swap": [good, good, good],
        "wear": [good, none, none],
    }


INTEL = {"sys/devices/system/cpu/cpufreq/policy0/scaling_driver": "intel_pstate\n"}


def test_a_machine_that_cannot_hold_the_heads_fails(tmp_path: Path) -> None:
    assert status(checks_machine.memory, case(tmp_path, boards.X86)) is Status.OK
    assert status(checks_machine.memory, case(tmp_path / "pi", boards.PI)) is Status.FAIL  # 195 MiB can be had
    group = {"proc/self/cgroup": "0::/agent.service\n", "sys/fs/cgroup/agent.service/memory.max": f"{300 * 2**20}\n"}
    limited = case(tmp_path / "limited", {**boards.X86, **group})
    assert status(checks_machine.memory, limited) is Status.WARN  # the control group leaves 300 MiB of 9 GB


def test_more_threads_than_cores_or_quota_are_told(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert status(checks_machine.cores, case(tmp_path, device__threads=cores)) is Status.OK
    assert status(checks_machine.cores, case(tmp_path, device__threads=cores + 1)) is Status.WARN
    quota = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    assert status(checks_machine.cores, case(tmp_path, quota)) is Status.WARN


def test_a_clock_that_nobody_keeps_and_a_busy_machine_are_told(tmp_path: Path) -> None:
    systemd = {"run/systemd/system/.keep": ""}
    assert status(checks_machine.clock_kept, case(tmp_path)) is Status.SKIP
    assert status(checks_machine.clock_kept, case(tmp_path, systemd)) is Status.WARN
    kept = {"run/systemd/timesync/synchronized": ""}
    assert status(checks_machine.clock_kept, case(tmp_path, kept)) is Status.OK
    assert status(checks_machine.load, case(tmp_path, {"proc/loadavg": "999.0 1 1 1/1 1\n"})) is Status.WARN
    assert status(checks_machine.load, case(tmp_path, {"proc/loadavg": "0.0 1 1 1/1 1\n"})) is Status.OK
    assert status(checks_machine.load, case(tmp_path, {"proc/loadavg": "no number\n"})) is Status.SKIP


# ---- storage --------------------------------------------------------------------------------------------------------


def test_a_state_directory_is_writable_or_says_why_not(tmp_path: Path) -> None:
    assert status(checks_storage.state_dir, case(tmp_path)) is Status.OK  # it can be made
    (tmp_path / "state").mkdir(mode=0o750)
    assert status(checks_storage.state_dir, case(tmp_path)) is Status.OK
    (tmp_path / "state").chmod(0o757)
    assert status(checks_storage.state_dir, case(tmp_path)) is Status.FAIL  # everybody could put a bundle there
    (tmp_path / "state").rmdir()
    (tmp_path / "state").write_text("")
    assert status(checks_storage.state_dir, case(tmp_path)) is Status.FAIL


def test_a_state_directory_may_be_named_relative_to_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir(mode=0o750)
    monkeypatch.chdir(tmp_path)
    assert "can be written" in checks_storage.state_dir(case(tmp_path, state_dir="state")).fact


def test_what_is_kept_on_something_that_forgets_is_told(tmp_path: Path) -> None:
    def mounted(kind: str, options: str = "rw") -> Status:
        lines = f"/dev/root / ext4 ro,relatime 0 0\nsomething {tmp_path} {kind} {options} 0 0\n"
        return status(checks_storage.file_system, case(tmp_path, {"proc/self/mounts": lines}))

    assert mounted("ext4") is Status.OK
    assert mounted("tmpfs") is Status.WARN
    assert mounted("nfs4") is Status.WARN
    assert mounted("ext4", "ro,noatime") is Status.FAIL
    assert status(checks_storage.root, case(tmp_path)) is Status.OK
    assert "read-only" in checks_storage.root(case(tmp_path)).fact


def test_durable_writes_are_timed_and_leave_nothing(tmp_path: Path) -> None:
    assert status(checks_storage.sync, case(tmp_path)) in (Status.OK, Status.WARN)
    assert status(checks_storage.free, case(tmp_path)) in (Status.OK, Status.WARN)
    assert list(tmp_path.iterdir()) == []


# ---- configuration --------------------------------------------------------------------------------------------------


def test_a_variable_with_one_underscore_too_few_is_found(tmp_path: Path) -> None:
    def of(name: str) -> Status:
        return status(checks_configuration.unread, Case(env={name: "1"}, root=tmp_path))

    assert of("ISTHMUS_AGENT_DEVICE__THREADS") is Status.WARN
    assert of("isthmus_agent__device__threads") is Status.WARN
    assert of("ISTHMUS_AGENT__DEVICE__THREADS") is Status.OK
    assert of("ISTHMUS_AGENT_CONFIG") is Status.OK
    assert of("ISTHMUS_AGENT_SOCKET") is Status.OK  # what commands that ask a daemon read
    assert of("ISTHMUS_AGENT_TOKEN") is Status.OK
    assert of("PATH") is Status.OK


def test_settings_that_everybody_can_change_fail(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("")
    file.chmod(0o644)
    assert status(checks_configuration.settings_file, Case(file=file)) is Status.OK
    file.chmod(0o646)
    assert status(checks_configuration.settings_file, Case(file=file)) is Status.FAIL
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "keys.server_key").write_text("")
    (secrets / "keys.server_key").chmod(0o600)
    assert status(checks_configuration.secrets, Case(secrets_dir=secrets)) is Status.OK
    (secrets / "keys.server_key").chmod(0o604)
    assert status(checks_configuration.secrets, Case(secrets_dir=secrets)) is Status.FAIL


def test_keys_are_wanted_for_a_gateway_elsewhere_and_looked_at_where_they_are(tmp_path: Path) -> None:
    def of(endpoint: str, **more: object) -> Status:
        try:
            return status(checks_configuration.keys, case(tmp_path, gateways__endpoints=[endpoint], **more))
        except keys.InputError:
            return Status.FAIL  # as the examination counts it

    assert of("tcp://127.0.0.1:7447") is Status.SKIP
    assert of("tcp://10.0.0.1:7447") is Status.FAIL
    assert of("tcp://gateway.example.org:7447") is Status.FAIL
    assert of("tcp://10.0.0.1:7447", gateways__insecure=True) is Status.WARN
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    assert of("tcp://10.0.0.1:7447", keys__dir=str(folder)) is Status.FAIL
    pair = keys.make_pair("camera-7")
    keys.write_pair(folder / "agent.key", pair)
    keys.write_public(folder / "server.pub", (pair.public,))
    assert of("tcp://10.0.0.1:7447", keys__dir=str(folder)) is Status.OK
    (folder / "agent.key").chmod(0o644)
    assert of("tcp://10.0.0.1:7447", keys__dir=str(folder)) is Status.FAIL


def test_a_socket_left_behind_is_told_from_one_in_use_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    one = case(tmp_path, http__unix_socket=str(path))
    assert status(checks_configuration.unix_socket, one) is Status.OK
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen()
        assert status(checks_configuration.unix_socket, one) is Status.OK
        path.chmod(0o666)
        assert status(checks_configuration.unix_socket, one) is Status.WARN
    assert status(checks_configuration.unix_socket, one) is Status.WARN  # nobody listens on it any more
    path.unlink()
    path.write_text("")
    assert status(checks_configuration.unix_socket, one) is Status.FAIL
    long = case(tmp_path, http__unix_socket=str(tmp_path / ("n" * 120)))
    assert status(checks_configuration.unix_socket, long) is Status.FAIL


# ---- installation ---------------------------------------------------------------------------------------------------


def test_this_installation_is_sound(tmp_path: Path) -> None:
    for check in (checks_installation.python, checks_installation.version, checks_installation.requirements):
        assert status(check, case(tmp_path)) is Status.OK, check(case(tmp_path))
    for check in (checks_installation.encryption, checks_installation.signatures, checks_installation.images):
        assert status(check, case(tmp_path)) is Status.OK, check(case(tmp_path))


def test_a_package_that_is_too_old_is_named_with_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(boards.plant(tmp_path / "site", {
        "dnspython-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: dnspython\nVersion: 1.0\n"
    })))  # fmt: skip
    verdict = checks_installation.requirements(case(tmp_path))
    assert verdict.status is Status.FAIL
    assert verdict.fact.startswith("dnspython is 1.0, needed is 2")
    assert verdict.remedy.startswith("pip install 'dnspython>=2")


def test_both_builds_of_the_engine_together_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(boards.plant(tmp_path / "site", {
        "onnxruntime_gpu-1.31.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.0\n"
    })))  # fmt: skip
    verdict = checks_installation.engine(case(tmp_path))
    assert verdict.status is Status.FAIL
    assert "together" in verdict.fact


def test_a_provider_that_this_build_lacks_is_told(tmp_path: Path) -> None:
    assert status(checks_installation.providers, case(tmp_path)) is Status.OK
    asked = case(tmp_path, device__providers=["tensorrt", "cpu"])
    if "tensorrt" not in checks_installation.providers(case(tmp_path)).fact:
        assert status(checks_installation.providers, asked) is Status.WARN


def test_every_engine_for_heads_that_is_not_there_is_named_with_one_remedy_for_all(tmp_path: Path) -> None:
    asked = case(tmp_path, device__providers=["tensorrt-native", "cuda", "cpu"])
    if (absent := KINDS["tensorrt"].absent()) and "CUDAExecutionProvider" not in available():
        found = checks_installation.providers(asked)
        assert f"tensorrt-native: {absent}; this build of ONNX Runtime brings" in found.fact
        assert found.remedy.startswith("pip install 'isthmus[cuda]'")
        alone = checks_installation.providers(case(tmp_path, device__providers=["tensorrt-native", "cpu"]))
        assert (alone.status, alone.remedy) == (Status.WARN, "mend that, or ask for what is there")


# ---- network and service --------------------------------------------------------------------------------------------


def test_the_kernels_settings_of_tcp_are_judged(tmp_path: Path) -> None:
    def of(check: Callable[[Case], Verdict], name: str, value: str) -> Status:
        return status(check, case(tmp_path, {f"proc/sys/net/ipv4/{name}": f"{value}\n"}))

    assert of(checks_network.congestion, "tcp_congestion_control", "bbr") is Status.OK
    assert of(checks_network.congestion, "tcp_congestion_control", "cubic") is Status.WARN
    assert of(checks_network.idle_restart, "tcp_slow_start_after_idle", "0") is Status.OK
    assert of(checks_network.idle_restart, "tcp_slow_start_after_idle", "1") is Status.WARN
    assert of(checks_network.buffers, "tcp_wmem", "4096 16384 4194304") is Status.OK
    assert of(checks_network.buffers, "tcp_wmem", "4096 16384 65536") is Status.WARN
    assert of(checks_network.buffers, "tcp_wmem", "nonsense") is Status.SKIP


def test_a_unit_is_enabled_watched_and_confined_or_says_what_it_lacks(tmp_path: Path) -> None:
    checks = (checks_service.systemd, checks_service.watchdog, checks_service.hardening)
    assert [status(check, case(tmp_path)) for check in checks] == [Status.SKIP] * 3
    sound = case(tmp_path / "sound", SYSTEMD)
    assert [status(check, sound) for check in checks] == [Status.OK] * 3
    bare = case(tmp_path / "bare", {"run/systemd/system/.keep": "", UNIT: "[Service]\nExecStart=/bin/agent\n"})
    assert [status(check, bare) for check in checks] == [Status.WARN] * 3
    absent = case(tmp_path / "absent", {"run/systemd/system/.keep": ""})
    assert [status(check, absent) for check in checks] == [Status.WARN, Status.SKIP, Status.SKIP]
    broken = case(tmp_path / "broken", {"run/systemd/system/.keep": "", UNIT: "no section\n"})
    assert status(checks_service.watchdog, broken) is Status.SKIP


def test_the_unit_that_we_ship_is_enough(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[2] / "deploy" / "systemd" / checks_service.UNIT).read_text("utf-8")
    installed = case(tmp_path, SYSTEMD | {UNIT: shipped})
    for check in (checks_service.systemd, checks_service.watchdog, checks_service.hardening):
        assert status(check, installed) is Status.OK, check(installed)


def test_a_port_that_somebody_else_has_fails(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert status(checks_service.port, case(tmp_path, http__bind=f"127.0.0.1:{port}")) is Status.FAIL
    assert status(checks_service.port, case(tmp_path, http__bind="127.0.0.1:0")) is Status.OK
    assert status(checks_service.port, case(tmp_path, http__bind="off")) is Status.SKIP


def test_who_holds_the_state_directory_is_read_from_the_kernels_list(tmp_path: Path) -> None:
    one = case(tmp_path)
    assert "no daemon has used" in checks_service.lock(one).fact
    boards.plant(tmp_path, {"state/run/lock": "4711\n"})
    assert "nobody holds" in checks_service.lock(one).fact
    inode = (tmp_path / "state/run/lock").stat().st_ino
    boards.plant(tmp_path, {"proc/locks": f"1: FLOCK  ADVISORY  WRITE 4711 fd:01:{inode} 0 EOF\n"})
    assert "4711 holds" in checks_service.lock(one).fact


# ---- bundle ---------------------------------------------------------------------------------------------------------


def test_an_update_that_was_taken_back_is_told(tmp_path: Path) -> None:
    from edge_agent.bundles import record as records

    def of(record: records.Record) -> Verdict:
        boards.plant(tmp_path, {"state/bundles/current.json": records.encode(record).decode()})
        return checks_bundle.updates(case(tmp_path))

    assert status(checks_bundle.updates, case(tmp_path)) is Status.SKIP
    good, bad = "a" * 64, "b" * 64
    assert "not proven yet" in of(records.Record(current=good)).fact
    assert of(records.Record(current=good, proven=good)) == Verdict(Status.OK, "aaaaaaaaaaaa is current and proven")
    back = records.Record(current=good, proven=good, step=records.Step.REVERTED, said="it was slow").with_bad(bad, "")
    assert of(back).status is Status.WARN
    assert "it was slow; not taken again: bbbbbbbbbbbb" in of(back).fact


def test_a_bundle_that_nobody_has_replaced_for_long_is_told_where_somebody_may(tmp_path: Path) -> None:
    bundle_in(tmp_path / "bundle", {"full.onnx": b"x"})
    listing = tmp_path / "bundle" / MANIFEST

    def of(built: str, *, updates: bool = True) -> Verdict:
        manifest = msgspec.json.decode(listing.read_bytes())
        manifest["conditions"]["created_utc"] = built
        listing.write_bytes(msgspec.json.encode(manifest))
        (tmp_path / "bundle" / MANIFEST_DIGEST).write_text(f"{sha256(listing.read_bytes())}  {MANIFEST}\n")
        return checks_bundle.age(case(tmp_path, bundle__path=str(tmp_path / "bundle"), updates__enabled=updates))

    today = datetime.now(UTC)
    assert of(today.isoformat()) == Verdict(Status.OK, "the bundle was built 0 days ago")
    old = (today - timedelta(days=checks_bundle.OLD_DAYS + 1)).isoformat(timespec="seconds")
    assert of(old).status is Status.WARN
    assert "181 days ago" in of(old).fact
    assert of(old.removesuffix("+00:00")).status is Status.WARN, "without a zone it is UTC"
    assert of(old, updates=False).status is Status.OK, "it is meant to stay"
    assert of((today + timedelta(days=9)).isoformat()).status is Status.WARN
    assert of("last Tuesday").status is Status.SKIP


@pytest.mark.parametrize(
    ("unheard_s", "expected", "fact"),
    [
        (7.0, Status.OK, "a gateway told 7 s ago what it offers"),
        (4000.0, Status.OK, "a gateway told 1.1 h ago what it offers, or it has only just started"),
        (4 * 3600.0, Status.WARN, "for 4.0 h no gateway has told what it offers"),
        (None, Status.SKIP, "the daemon asks no gateway for updates"),
    ],
)
def test_a_daemon_that_hears_of_no_updates_says_so(
    tmp_path: Path, unheard_s: float | None, expected: Status, fact: str
) -> None:
    asking = case(tmp_path, gateways__endpoints=["tcp://127.0.0.1:7447"])
    assert "no gateway is asked" in checks_service.offers(case(tmp_path)).fact
    assert "no daemon listens" in checks_service.offers(asking).fact
    body = msgspec.json.encode({"bundle": {"unheard_s": unheard_s}})
    with _daemon(tmp_path / "state", b"HTTP/1.1 200 OK\r\n\r\n" + body):
        verdict = checks_service.offers(asking)
    assert (verdict.status, verdict.fact) == (expected, fact)
    with _daemon(tmp_path / "state", b"HTTP/1.1 503 BUSY\r\n\r\nnothing"), pytest.raises(UnmetError, match="503"):
        checks_service.offers(asking)


@contextmanager
def _daemon(state: Path, answer: bytes) -> Iterator[None]:
    """What listens where a daemon does, and says the same to everybody."""
    path = state / "run" / "agent.sock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            for _ in range(2):  # who asks, after a look whether anybody listens
                peer, _ = server.accept()
                with peer, contextlib.suppress(OSError):
                    if peer.recv(4096):
                        peer.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(20)
    path.unlink()


def test_a_device_without_a_bundle_waits_for_its_first_where_a_gateway_may_offer_one(tmp_path: Path) -> None:
    assert checks_bundle.opens(case(tmp_path, gateways__endpoints=["tcp://127.0.0.1:7447"])).status is Status.WARN
    with pytest.raises(InputError, match="no bundle is named"):
        checks_bundle.opens(case(tmp_path))
    with pytest.raises(InputError, match="no bundle is named"):
        checks_bundle.opens(case(tmp_path, gateways__endpoints=["tcp://127.0.0.1:7447"], updates__enabled=False))


@pytest.mark.parametrize(
    ("seconds", "planned_s", "verdict"),
    [(0.0301, 0.02, True), (0.029, 0.02, False), (0.0004, 0.0001, False), (0.0007, 0.0001, True)],
)
def test_a_head_is_slow_by_its_share_and_by_what_can_be_felt(seconds: float, planned_s: float, verdict: bool) -> None:
    assert checks_bundle.is_slower(seconds, planned_s) is verdict


def test_a_device_whose_key_another_one_uses_is_told_so(tmp_path: Path) -> None:
    seen = m.Welcome(bytes(8), "isthmus", 32, 1_000_000, (), ())
    for shared, wanted in ((False, Status.OK), (True, Status.WARN)):
        asked = case(tmp_path, gateways__endpoints=["tcp://127.0.0.1:7447"])
        probe = GatewayProbe("tcp://127.0.0.1:7447", welcome=msgspec.structs.replace(seen, shared_key=shared))
        asked.probes = Once(lambda probe=probe: (probe,), "")
        assert checks_network.welcome(asked).status is wanted
