"""Is what was installed complete, of the right versions, and unchanged?"""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import sys
from importlib import metadata, util
from pathlib import Path

from edge_agent.doctor.case import Case
from edge_agent.doctor.verdicts import Verdict, fail, ok, skip, warn

OLDEST_PYTHON = (3, 11)
_DISTRIBUTION = "isthmus"
_REINSTALL = "pip install --force-reinstall 'isthmus[edge]'"
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9.]+))?\s*(?:;\s*(.*))?$")
_ENGINES = ("onnxruntime", "onnxruntime-gpu")
_MOST_NAMED = 5


def python(_: Case) -> Verdict:
    version = f"{platform.python_implementation()} {platform.python_version()} on {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return fail(version, f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    if sys.maxsize < 2**32:
        return fail(f"{version}, 32 bits", "use a 64-bit system: the engines have no other wheels")
    return ok(version)


def version(_: Case) -> Verdict:
    from protocol import __version__

    try:
        installed = metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return warn(f"isthmus {__version__} runs from a folder and is not installed", "pip install 'isthmus[edge]'")
    if installed != __version__:
        return fail(f"the code says {__version__}, the installation {installed}: two versions are mixed", _REINSTALL)
    return ok(f"isthmus {__version__}")


def requirements(_: Case) -> Verdict:
    """What the extra `edge` needs. Either build of ONNX Runtime will do: `engine` looks at that."""
    try:
        asked = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return skip("isthmus is not installed, so nothing says what it needs")
    lacking, wanted, count = [], list[str](), 0
    for line in asked:
        found = _REQUIREMENT.match(line)
        if found is None or not _applies(found[3] or "") or found[1] in _ENGINES:
            continue
        count += 1
        have = _version_of(found[1])
        if have is None:
            lacking.append(f"{found[1]} is missing")
        elif found[2] and _numbers(have) < _numbers(found[2]):
            lacking.append(f"{found[1]} is {have}, needed is {found[2]}")
        else:
            continue
        wanted.append(f"'{found[1]}>={found[2]}'" if found[2] else found[1])
    if lacking:  # not the extra: beside the engine's GPU build that would bring the other build along
        return fail("; ".join(lacking), f"pip install {' '.join(wanted)}")
    return ok(f"{count} packages, all there and new enough")


def engine(_: Case) -> Verdict:
    found = {name: have for name in _ENGINES if (have := _version_of(name)) is not None}
    if len(found) > 1:
        return fail(
            f"{' and '.join(found)} are installed together: they share one import name, and the GPU is silently lost",
            "pip uninstall onnxruntime onnxruntime-gpu, then install the one you want",
        )
    if not found and util.find_spec("onnxruntime") is None:
        return fail("there is no ONNX Runtime", "pip install 'isthmus[edge]', or 'isthmus[cuda]' for its GPU build")
    from protocol.engines.ort import version as loaded

    name = next(iter(found), "onnxruntime")
    if found and not loaded().startswith(found[name].partition("+")[0]):
        return fail(f"{name} {found[name]} is installed but {loaded()} is loaded", _REINSTALL)
    return ok(f"{name} {loaded()}")


def providers(case: Case) -> Verdict:
    from edge_agent.device.providers import NATIVE, PROVIDERS, attempts
    from protocol.engines.ort import available

    order = case.settings.device.providers
    brings = [name for name, full in PROVIDERS.items() if full in available()]
    lacking = {attempt.name: attempt.lacking for attempt in attempts(order, available()) if attempt.lacking}
    facts = [f"{name}: {why}" for name, why in lacking.items() if name in NATIVE]
    remedy = "mend that"
    if not lacking.keys() <= NATIVE.keys():
        facts.append(f"this build of ONNX Runtime brings {', '.join(brings)} only")
        remedy = "pip install 'isthmus[cuda]' instead of [edge] (a Jetson: the board's own wheel)"
    if facts:
        return warn(f"asked for {', '.join(order)}; {'; '.join(facts)}", f"{remedy}, or ask for what is there")
    return ok(f"asked for {', '.join(order)}; this build brings {', '.join(brings)}")


def encryption(_: Case) -> Verdict:
    from protocol import sockets

    try:
        public, secret = sockets.curve_pair()
    except Exception as error:  # libzmq without a security library raises errors of its own
        return fail(f"this libzmq cannot encrypt ({error})", "install the wheel of pyzmq, which brings libsodium")
    if sockets.curve_public(secret) != public:
        return fail("keys made here do not fit together", _REINSTALL)
    return ok(f"pyzmq {_version_of('pyzmq')}, CURVE works")


def signatures(_: Case) -> Verdict:
    if util.find_spec("cryptography") is None:
        return fail("signatures of bundles cannot be checked", "pip install cryptography")
    return ok(f"cryptography {_version_of('cryptography')}")


def images(_: Case) -> Verdict:
    if util.find_spec("PIL") is None:
        return warn("Pillow is missing: no input travels as PNG or JPEG", "pip install pillow")
    return ok(f"pillow {_version_of('pillow')}")


def files(_: Case) -> Verdict:
    """Whether our own files are those that were installed: the wheel's list says what each hashed to."""
    try:
        listed = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return skip("isthmus is not installed")
    hashed = [path for path in listed if path.hash is not None and path.hash.mode == "sha256" and path.suffix == ".py"]
    if len(hashed) < 10:
        return skip("an installation from a working tree has no list of its files")
    changed = [str(path) for path in hashed if _digest(Path(str(path.locate()))) != path.hash.value]  # type: ignore[union-attr]
    if changed:
        return fail(f"{len(changed)} files were changed or are gone: {', '.join(changed[:_MOST_NAMED])}", _REINSTALL)
    return ok(f"{len(hashed)} files are as they were installed")


def _digest(path: Path) -> str:
    try:
        return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
    except OSError:
        return ""


def _applies(marker: str) -> bool:
    """Of the markers that our own metadata uses: no extra, or `edge`; and the bound on Python."""
    if "extra" in marker and not re.search(r"extra == ['\"]edge['\"]", marker):
        return False
    bound = re.search(r"python_version < ['\"]([0-9.]+)['\"]", marker)
    return bound is None or sys.version_info[:2] < _numbers(bound[1])


def _version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"[0-9.]+", text)
    return tuple(int(part) for part in found[0].split(".") if part) if found else ()
