"""Is the daemon set up to live: its unit, its watchdog, its ports, and does the one that runs answer?"""

from __future__ import annotations

import configparser
import json

from edge_agent.doctor.case import Case
from edge_agent.doctor.checks_configuration import answers, socket_path
from edge_agent.doctor.verdicts import UnmetError, Verdict, fail, ok, skip, warn

UNIT = "isthmus-agent.service"
_FOLDERS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system",
            "lib/systemd/system")  # fmt: skip
MISSED = 3  # so many looks for updates in a row that nobody answered
NOTHING_S = 60.0  # and at least so long
_ASK_S = 3.0
_MOST_NBYTES = 64 * 1024


def systemd(case: Case) -> Verdict:
    _require_systemd(case)
    path = _unit_path(case)
    if path is None:
        return warn(
            f"{UNIT} is not installed: nothing starts the agent after a restart", f"install deploy/systemd/{UNIT}"
        )
    wanted = case.tree.matches(f"etc/systemd/system/*.wants/{UNIT}")
    if not wanted:
        return warn(f"/{path} is there and not enabled", f"systemctl enable {UNIT}")
    return ok(f"/{path} is enabled")


def watchdog(case: Case) -> Verdict:
    """Without one a hung engine keeps its process alive, and nobody starts it anew."""
    _require_systemd(case)
    service = _unit(case)
    if service.get("Type") not in ("notify", "notify-reload"):
        return warn(f"{UNIT} is of Type={service.get('Type', 'simple')}", "Type=notify: the agent says when it serves")
    if not service.get("WatchdogSec"):
        return warn(f"{UNIT} has no watchdog", "WatchdogSec=30: a known question is asked and feeds it")
    restart = service.get("Restart", "no")
    if restart not in ("always", "on-failure", "on-abnormal", "on-watchdog"):
        return warn(f"{UNIT} is not started again (Restart={restart})", "Restart=on-failure")
    return ok(f"WatchdogSec={service['WatchdogSec']}, Restart={restart}")


def hardening(case: Case) -> Verdict:
    _require_systemd(case)
    service = _unit(case)
    wanted = {
        "NoNewPrivileges": service.get("NoNewPrivileges", "no") in ("yes", "true", "on", "1"),
        "ProtectSystem=strict": service.get("ProtectSystem") == "strict",
        "a user of its own": bool(service.get("User") or service.get("DynamicUser")),
        "MemoryMax": bool(service.get("MemoryMax")),
    }
    lacking = [name for name, given in wanted.items() if not given]
    if lacking:
        return warn(f"{UNIT} lacks {', '.join(lacking)}", f"take deploy/systemd/{UNIT}")
    return ok(f"{UNIT} has {', '.join(wanted)}")


def port(case: Case) -> Verdict:
    from protocol import sockets

    http = case.settings.http
    if not http.enabled or http.bind == "off":
        return skip("the local API listens on the Unix socket alone")
    endpoint = sockets.parse_endpoint(http.bind)
    if endpoint.port == 0:
        return ok(f"{http.bind}: any free port will do")
    try:
        sockets.reserve(sockets.resolve(endpoint)).close()
    except OSError as error:
        if answers(socket_path(case)):
            return ok(f"{http.bind} is in use, and our daemon runs")
        return fail(f"{http.bind} cannot be had ({error.strerror})", "stop who has it, or choose another http.bind")
    return ok(f"{http.bind} is free")


def lock(case: Case) -> Verdict:
    """Who holds the state directory. The kernel's list is read: trying the lock could keep out a daemon that starts."""
    path = case.settings.state_dir / "run" / "lock"
    try:
        inode, owner = path.stat().st_ino, path.read_bytes()[:32].decode("ascii", "replace").strip()
    except OSError:
        return ok(f"no daemon has used {case.settings.state_dir} yet")
    listed = [line.split() for line in case.tree.lines("proc/locks")]
    if any(len(row) > 5 and row[5].rpartition(":")[2] == str(inode) for row in listed):
        return ok(f"the daemon with process id {owner or 'unknown'} holds {case.settings.state_dir}")
    return ok(f"nobody holds {case.settings.state_dir}")


def daemon(case: Case) -> Verdict:
    """Asks over the Unix socket, as applications do."""
    path = socket_path(case)
    if not answers(path):
        return skip(f"no daemon listens on {path}")
    status, body = ask(case, "/v2/health/ready")
    if status == 200:
        return ok(f"the daemon on {path} is ready")
    return fail(f"the daemon on {path} is not ready (HTTP {status}: {body[:200]})", "`edge-agent status` says why")


def offers(case: Case) -> Verdict:
    """Whether the daemon hears of updates: a device that hears of none keeps what it has, also what was revoked."""
    updates = case.settings.updates
    if not (updates.enabled and updates.automatic and case.settings.gateways.endpoints):
        return skip("no gateway is asked for updates (updates.enabled, updates.automatic, gateways.endpoints)")
    if not answers(path := socket_path(case)):
        return skip(f"no daemon listens on {path}")
    status, body = ask(case, "/v2/isthmus/status")
    try:
        unheard_s = json.loads(body)["bundle"]["unheard_s"]
    except (ValueError, KeyError, TypeError):
        raise UnmetError(f"the daemon's status cannot be read (HTTP {status})") from None
    if unheard_s is None:
        return skip("the daemon asks no gateway for updates")
    fact = f"a gateway told {_span(unheard_s)} ago what it offers"
    if unheard_s > MISSED * updates.check_every_s + NOTHING_S:
        fact = f"for {_span(unheard_s)} no gateway has told what it offers"
        return warn(fact, "`edge-agent bundles offers` asks now and says why not")
    return ok(fact if unheard_s < updates.check_every_s else f"{fact}, or it has only just started")


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def ask(case: Case, route: str) -> tuple[int, str]:
    """Status and body of a GET over the daemon's Unix socket. Raises UnmetError if nothing sensible comes."""
    from protocol.unix_sockets import connect_unix

    try:
        with connect_unix(socket_path(case), _ASK_S) as stream:
            stream.sendall(f"GET {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while len(answer) < _MOST_NBYTES and (more := stream.recv(_MOST_NBYTES)):
                answer += more
    except OSError as error:
        raise UnmetError(f"the daemon does not answer ({error})") from error
    head, _, body = answer.decode("utf-8", "replace").partition("\r\n\r\n")
    words = head.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise UnmetError("what listens on the daemon's socket does not speak HTTP")
    return int(words[1]), body.strip()


def _require_systemd(case: Case) -> None:
    if not case.tree.matches("run/systemd/system"):
        raise UnmetError("this system is not run by systemd")


def _unit_path(case: Case) -> str | None:
    return next((path for folder in _FOLDERS for path in case.tree.matches(f"{folder}/{UNIT}")), None)


def _unit(case: Case) -> dict[str, str]:
    path = _unit_path(case)
    if path is None:
        raise UnmetError(f"{UNIT} is not installed (service.systemd)")
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    try:
        unit.read_string("\n".join(case.tree.lines(path)))
        return dict(unit["Service"])
    except (configparser.Error, KeyError) as error:
        raise UnmetError(f"/{path} is no unit of a service") from error
