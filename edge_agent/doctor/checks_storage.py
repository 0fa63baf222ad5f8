"""Can what must be kept be written, fast enough and on something that keeps it? All of it lies under one folder."""

from __future__ import annotations

import errno
import os
import statistics
import tempfile
import time
from pathlib import Path

from edge_agent.doctor.case import Case
from edge_agent.doctor.verdicts import UnmetError, Verdict, fail, ok, skip, warn

LEAST_FREE_NBYTES = 64 * 2**20
LEAST_INODES = 2000
SLOW_SYNC_S = 0.05
_SYNCS = 7
_SYNC_NBYTES = 4096
_GONE_AT_REBOOT = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_OF_OTHERS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"})
_MIB = 2**20


def state_dir(case: Case) -> Verdict:
    """The nearest folder that exists is tried: the daemon makes the rest. Nothing is left behind."""
    folder = case.settings.state_dir.absolute()
    if folder.exists() and not folder.is_dir():
        return fail(f"{folder} is no folder", "name another with state_dir")
    there = _nearest(folder)
    remedy = f"install -d -m 0750 -o USER {folder}, or name another with state_dir (systemd: StateDirectory=isthmus)"
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".isthmus-doctor-"):
            pass
    except OSError as error:
        return fail(f"{there} cannot be written by {_who()} ({error.strerror})", remedy)
    if there != folder:
        return ok(f"{folder} is not there yet and can be made")
    mode = folder.stat().st_mode & 0o777
    if mode & 0o002:
        return fail(f"{folder} may be written by everybody (mode {mode:04o})", f"chmod 0750 {folder}")
    return ok(f"{folder}, mode {mode:04o}, can be written by {_who()}")


def free(case: Case) -> Verdict:
    there = _nearest(case.settings.state_dir)
    seen = os.statvfs(there)
    nbytes = seen.f_bavail * seen.f_frsize
    bundle = case.bundle_or_none()
    again = 0 if bundle is None else sum(entry.nbytes for entry in bundle.manifest.files.values())
    needed = LEAST_FREE_NBYTES + again
    fact = f"{nbytes // _MIB} MiB free at {there}, {needed // _MIB} are wanted (a new bundle lies beside the old one)"
    remedy = "free some, or let state_dir lie on a larger file system"
    if nbytes < LEAST_FREE_NBYTES // 4:
        return fail(fact, remedy)
    return warn(fact, remedy) if nbytes < needed else ok(fact)


def inodes(case: Case) -> Verdict:
    seen = os.statvfs(_nearest(case.settings.state_dir))
    if not seen.f_files:
        return skip("this file system does not count its files")
    fact = f"{seen.f_favail} more files can be made"
    return (
        warn(fact, "remove files nobody needs: space alone does not help") if seen.f_favail < LEAST_INODES else ok(fact)
    )


def sync(case: Case) -> Verdict:
    """How long a durable write takes: a stored request, or one step of an update, waits for it."""
    there = _nearest(case.settings.state_dir)
    try:
        with tempfile.TemporaryFile(dir=there, prefix=".isthmus-doctor-") as file:
            times = []
            for _ in range(_SYNCS):
                file.write(os.urandom(_SYNC_NBYTES))
                file.flush()
                began = time.monotonic()
                os.fsync(file.fileno())
                times.append(time.monotonic() - began)
    except OSError as error:
        where = "storage.free" if error.errno == errno.ENOSPC else "storage.state_dir"
        raise UnmetError(f"{there} cannot be written ({where}): {error.strerror}") from error
    seconds = statistics.median(times)
    fact = f"{seconds * 1e3:.1f} ms for {_SYNC_NBYTES} bytes that are really there"
    if seconds > SLOW_SYNC_S:
        return warn(fact, "let state_dir lie on faster storage, or store requests in larger groups")
    return ok(fact)


def file_system(case: Case) -> Verdict:
    folder = case.settings.state_dir
    mounts = _mounts(case)
    if not mounts:
        return skip("this system does not list its mounts")
    there = _nearest(folder).resolve()
    at, kind, options = max((m for m in mounts if _holds(m[0], there)), key=lambda m: len(m[0]), default=("", "", ""))
    fact = f"{folder} lies on {kind or 'an unknown file system'}{f' at {at}' if at else ''}"
    if kind in _GONE_AT_REBOOT:
        remedy = "let state_dir lie on storage that survives a restart"
        return warn(f"{fact}: bundles, keys and stored requests are gone after a restart", remedy)
    if kind in _OF_OTHERS:
        return warn(f"{fact}, which is another machine's", "use local storage: locks and durability end at the network")
    if "ro" in options.split(","):
        return fail(f"{fact}, which is read-only", "mount it for writing, or name another with state_dir")
    return ok(fact)


def root(case: Case) -> Verdict:
    """A root file system that is read-only survives power cuts; the daemon needs nothing but its state_dir."""
    found = next((mount for mount in reversed(_mounts(case)) if mount[0] == "/"), None)
    if found is None:
        return skip("this system does not list its mounts")
    if "ro" in found[2].split(","):
        return ok(f"{found[1]}, read-only")
    return ok(f"{found[1]}, writable; the daemon writes to its state_dir alone and would do with a read-only one")


def _mounts(case: Case) -> list[tuple[str, str, str]]:
    """(where, kind, options) in the order in which they were mounted: a later one lies over an earlier."""
    rows = [line.split() for line in case.tree.lines("proc/self/mounts")]
    return [(row[1].replace("\\040", " "), row[2], row[3]) for row in rows if len(row) >= 4]


def _holds(mount: str, path: Path) -> bool:
    return path == Path(mount) or Path(mount) in path.parents


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


def _who() -> str:
    return "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
