"""Does the configuration say what it should, and can nobody but its owner change or read what must stay secret?"""

from __future__ import annotations

import difflib
import socket
import stat
from pathlib import Path

from edge_agent.doctor.case import Case
from edge_agent.doctor.verdicts import UnmetError, Verdict, fail, ok, skip, together, warn

# What a Unix socket's address holds, with the byte that ends it.
MOST_SOCKET_PATH = 107
_ASK_S = 1.0


def valid(case: Case) -> Verdict:
    loaded = case.loaded.really()
    given = [key for key, origin in loaded.origins.items() if origin.layer != "default"]
    return ok(f"{len(given)} settings were given, the rest are defaults")


def unread(case: Case) -> Verdict:
    """Variables that look like settings and are not read; what begins with the prefix is checked by the settings."""
    from edge_agent.config import PREFIX

    known = {f"{PREFIX}_CONFIG", f"{PREFIX}_SECRETS_DIR", f"{PREFIX}_SOCKET", f"{PREFIX}_TOKEN"}
    strange = [name for name in case.env if _is_near(name, PREFIX) and name not in known]
    if strange:
        near = difflib.get_close_matches(strange[0], [*known, f"{PREFIX}__"], n=1, cutoff=0.5)
        remedy = f"settings are {PREFIX}__SECTION__NAME, with two underscores" + (f"; or {near[0]}" if near else "")
        return warn(f"not read: {', '.join(sorted(strange)[:5])}", remedy)
    return ok("no variable of the environment goes unread")


def _is_near(name: str, prefix: str) -> bool:
    if name.startswith(f"{prefix}__"):
        return False
    return name.upper().startswith((prefix, "ISTHMUS_EDGE", "ISTHMUSAGENT")) or name.upper().startswith(f"{prefix}__")


def settings_file(case: Case) -> Verdict:
    from edge_agent.config import sources

    file = sources(file=case.file, env=case.env, secrets_dir=case.secrets_dir).file
    if file is None:
        return skip("no file of settings was named")
    return _unwritable(file, "whoever can change it decides where activations are sent")


def keys(case: Case) -> Verdict:
    """That the device's key can be read and is its own alone is what the key's reader itself demands."""
    from protocol import keys as curve
    from protocol import sockets

    folder = case.settings.keys.dir
    if folder is None:
        away = [e for e in case.settings.gateways.endpoints if not _on_this_machine(e)]
        if not away:
            return skip("no keys are named, and no gateway is on another machine")
        if case.settings.gateways.insecure:
            return warn(
                f"{away[0]} is spoken to in plain text",
                "`edge-agent enroll`, or `edge-agent keys show`, makes a key; then keys.dir",
            )
        return fail(
            f"{away[0]} is on another machine and there are no keys", "`edge-agent enroll --keys DIR`, then keys.dir"
        )
    pair = curve.read_pair(folder / "agent.key")
    if not case.settings.keys.server_key:
        curve.read_public(folder / "server.pub")
    if sockets.curve_public(pair.secret) != pair.public.data:
        return fail("the device's key does not fit itself", "make a new one")
    return together(
        [
            ok(f"{pair.name}, fingerprint {pair.public.fingerprint}"),
            _unwritable(folder, "whoever can change server.pub decides which gateway is believed"),
        ]
    )


def secrets(case: Case) -> Verdict:
    from edge_agent.config import sources

    folder = sources(file=case.file, env=case.env, secrets_dir=case.secrets_dir).secrets_dir
    if folder is None:
        return skip("no folder of secrets was named")
    try:
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError as error:
        return fail(f"{folder} cannot be listed ({error.strerror})", "name a folder that is there")
    open_ones = [path.name for path in files if path.stat().st_mode & stat.S_IRWXO]
    if open_ones:
        return fail(f"open to everybody: {', '.join(open_ones[:5])}", f"chmod o= {folder}/*")
    return ok(f"{len(files)} files, none open to everybody")


def exposure(case: Case) -> Verdict:
    http, found = case.settings.http, []
    if http.enabled and http.bind != "off" and not _on_this_machine(http.bind):
        if http.insecure:
            found.append(warn(f"{http.bind} lets any machine ask", "listen on 127.0.0.1, or demand certificates"))
        else:
            found.append(ok(f"{http.bind} serves who holds a certificate"))
    if case.settings.gateways.insecure:
        found.append(warn("gateways.insecure is set", "give the device keys and take it away"))
    return together(found) if found else ok("applications on this device alone; no plain text leaves it")


def unix_socket(case: Case) -> Verdict:
    path = socket_path(case)
    if len(str(path).encode()) > MOST_SOCKET_PATH:
        return fail(f"{path} is longer than {MOST_SOCKET_PATH} bytes", "name a shorter http.unix_socket")
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ok(f"{path} is not there: no daemon runs on it, and none left it behind")
    if not stat.S_ISSOCK(mode):
        return fail(f"{path} is there and no socket", "remove it, or name another http.unix_socket")
    if not answers(path):
        return warn(f"{path} is a socket that nobody listens on", "its daemon was killed; the next one takes it over")
    if stat.S_IMODE(mode) & 0o007:
        return warn(f"{path} is open to everybody (mode {stat.S_IMODE(mode):04o})", f"chmod 0660 {path}")
    return ok(f"{path}, mode {stat.S_IMODE(mode):04o}, is listened on")


def socket_path(case: Case) -> Path:
    """Where the daemon's Unix socket is, or will be."""
    return case.settings.http.unix_socket or case.settings.state_dir / "run" / "agent.sock"


def answers(path: Path) -> bool:
    """Whether somebody listens on this Unix socket."""
    from protocol.unix_sockets import connect_unix

    try:
        connect_unix(path, _ASK_S).close()
    except OSError:
        return False
    return True


def _unwritable(path: Path, why: str) -> Verdict:
    try:
        status = path.stat()
    except OSError as error:
        raise UnmetError(f"{path} cannot be looked at ({error.strerror})") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IWOTH:
        return fail(f"{path} may be changed by everybody (mode {mode:04o}): {why}", f"chmod o-w {path}")
    return ok(f"{path}, mode {mode:04o}")


def _on_this_machine(endpoint: str) -> bool:
    from protocol import sockets

    if endpoint.startswith("srv://"):
        return False
    host = sockets.parse_endpoint(endpoint).host
    if host == "localhost":
        return True
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        return False  # a name
    return sockets.parse_endpoint(endpoint).is_loopback
