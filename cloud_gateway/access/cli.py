"""`cloud-gateway keys` and `cloud-gateway audit`: who may come in, and what was done to that.

Exit codes: 0 done; 2 a wrong command line; 3 a key, name or file that cannot be; 10 an audit log that does not hold, or
that cannot be written (nothing was done then).
"""

from __future__ import annotations

import getpass
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud_gateway.access import api_keys, invitations
from cloud_gateway.access import roster as rosters
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.roster import AgentEntry, Allowance, ApiKeyEntry, ApiRole, Entry
from protocol import keys
from protocol.errors import AccessError, InputError
from protocol.terminal import print_json

keys_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Keys of this gateway, its agents and programs."
)
audit_app = typer.Typer(no_args_is_help=True, add_completion=False, help="What administrators did.")

DEFAULT_NEXT_PORT = 7448

Keys = Annotated[Path, typer.Option("--keys", envvar="ISTHMUS_GATEWAY__ACCESS__KEYS_DIR", help="Folder of keys.")]
Audit = Annotated[
    Path | None,
    typer.Option("--audit", envvar="ISTHMUS_GATEWAY__ACCESS__AUDIT_LOG", help="Audit log; else KEYS/audit.log."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
LogFile = Annotated[
    Path, typer.Argument(help="The newest file of the log, such as KEYS/audit.log.", show_default=False)
]
KEYS = Path("keys")


@keys_app.command()
def init(
    keys_dir: Keys = KEYS,
    name: Annotated[str, typer.Option(help="What agents call this gateway.")] = "gateway",
    audit: Audit = None,
    json: Json = False,
) -> None:
    """Make the folder with the gateway's own key; nobody is known yet."""
    folder = KeyFolder(keys_dir)
    keys.require_name(name)
    folder.make()
    with acting(folder, audit, "keys.init", name):
        pair = folder.create(name)
    if json:
        print_json(_public(pair.public))
    else:
        print(f"{folder.path}: the key of {name} is {pair.public.fingerprint}")
        print(pair.public.line())


@keys_app.command()
def add(
    name: Annotated[str, typer.Argument(help="What the agent or program is called here.", show_default=False)],
    keys_dir: Keys = KEYS,
    key: Annotated[str, typer.Option(help="The agent's public key: a line, 64 hex digits, or a file.")] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Without --key: folder for the agent's new keys.")
    ] = None,
    api: Annotated[bool, typer.Option("--api", help="Make an API key, for HTTP and gRPC. It is shown once.")] = False,
    role: Annotated[list[str] | None, typer.Option(help="infer, metrics or admin; may be repeated.")] = None,
    expires: Annotated[str, typer.Option(help="When it ends: 12h, 30d, or a date (UTC).")] = "",
    requests_per_s: Annotated[float | None, typer.Option(min=0.001, help="Requests a second at most.")] = None,
    mib_per_s: Annotated[float | None, typer.Option(min=0.001, help="MiB of requests a second at most.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Requests in flight at most.")] = None,
    body_mib: Annotated[float | None, typer.Option(min=0.001, help="MiB of one request at most.")] = None,
    audit: Audit = None,
    json: Json = False,
) -> None:
    """Let an agent in by its CURVE key, or (--api) a program by a new API key."""
    folder, now = KeyFolder(keys_dir), int(time.time())
    keys.require_name(name)
    until = moment(expires, now)
    limits = (requests_per_s, mib_per_s, concurrent, body_mib)
    if api:
        if key or output:
            raise InputError("--key and --output are for agents", "leave out --api, or these")
        allowance = Allowance(
            requests_per_s, None if mib_per_s is None else mib_per_s * 2**20, concurrent,
            None if body_mib is None else int(body_mib * 2**20),
        )  # fmt: skip
        _add_program(folder, audit, name, _roles(role or ["infer"]), until, allowance, now, json=json)
    else:
        if role or limits != (None, None, None, None):
            raise InputError("roles and limits are for API keys", "add --api, or leave them out")
        _add_agent(folder, audit, name, key, output, until, now, json=json)


@keys_app.command("list")
def list_(keys_dir: Keys = KEYS, json: Json = False) -> None:
    """Show who is known, and the gateway's own keys."""
    folder, now = KeyFolder(keys_dir), time.time()
    server, roster = folder.server_keys(), folder.roster()
    entries: list[Entry] = [*roster.agents, *roster.api_keys]
    invited = [i for i in folder.invitations().known if i.is_open(utc=now)]
    if json:
        public = [server.current.public] + ([server.next.public] if server.next else [])
        print_json(
            {
                "server": [_public(key) for key in public],
                "next_port": server.next_port,
                "known": [_entry(entry, now) for entry in entries],
                "invited": [{"name": i.name, "id": i.id, "expires": i.expires} for i in invited],
            }
        )
        return
    print(f"server {server.current.name} {server.current.public.fingerprint}")
    if server.next is not None:
        print(f"next server key {server.next.public.fingerprint} at port {server.next_port}")
    for entry in entries:
        shown = _entry(entry, now)
        print(
            f"{shown['kind']:<6} {entry.name:<24} {shown['state']:<8} {shown['id']} {' '.join(shown['roles'])}".rstrip()
        )
    for invitation in invited:
        print(f"agent  {invitation.name:<24} invited  {invitation.id}")


@keys_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of an agent or program, or the id of an API key.")],
    keys_dir: Keys = KEYS,
    audit: Audit = None,
    json: Json = False,
) -> None:
    """Let NAME in no more, or withdraw its invitation. A running gateway acts on it within about a second, on open
    connections too.
    """
    folder, now = KeyFolder(keys_dir), int(time.time())
    with acting(folder, audit, "keys.revoke", name):
        invited = [i for i in folder.invitations().known if i.name == name and i.is_open(utc=now)]
        if invited:  # whoever is invited is not known yet
            folder.change_invitations(lambda known: invitations.withdraw(known, name, utc=now))
        else:
            folder.change(lambda roster: rosters.revoke(roster, name, utc=now))
    if json:
        print_json({"revoked": name})
    else:
        print(f"{name} is let in no more")


@keys_app.command()
def rotate(
    keys_dir: Keys = KEYS,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the next key answers.")] = DEFAULT_NEXT_PORT,
    finish: Annotated[bool, typer.Option("--finish", help="Only the next key is valid from now on.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Give up the next key.")] = False,
    audit: Audit = None,
    json: Json = False,
) -> None:
    """Make the gateway's next key, valid beside the current one. Copy server.pub to the agents, then --finish."""
    if finish and undo:
        raise InputError("--finish and --undo exclude each other", "give one of them")
    folder = KeyFolder(keys_dir)
    act = "keys.rotate.finish" if finish else "keys.rotate.undo" if undo else "keys.rotate"
    with acting(folder, audit, act, str(keys_dir)):
        if finish:
            pair = folder.finish_rotation()
        elif undo:
            pair = folder.undo_rotation()
        else:
            pair = folder.begin_rotation(port)
    if json:
        print_json(
            {"act": act, **_public(pair.public), "port": None if finish or undo else port,
             "server": [_public(key) for key in folder.public_keys()]}
        )  # fmt: skip
    elif finish:
        print(f"only {pair.public.fingerprint} is valid now")
    elif undo:
        print(f"{pair.public.fingerprint} is given up")
    else:
        print(f"the next key is {pair.public.fingerprint}; a running gateway answers to it at port {port} as well")
        print(f"copy {folder.path / 'server.pub'} to every agent's folder of keys, then run it again with --finish")


# ---- audit ----------------------------------------------------------------------------------------------------------


@audit_app.command()
def verify(
    file: LogFile,
    expect: Annotated[str, typer.Option(help="A hash that was noted earlier and must be in the log.")] = "",
    json: Json = False,
) -> None:
    """Check the chain. Note the hash that is printed: with it a later check knows that nothing was cut off."""
    if expect and not re.fullmatch("[0-9a-fA-F]{64}", expect):
        raise InputError(f"{expect[:80]!r} is not a hash", "give the 64 hex digits that an earlier check has printed")
    verdict = AuditLog(file).verify(expect=expect or None)
    if json:
        print_json(
            {"ok": verdict.ok, "records": verdict.records, "first": verdict.first_seq, "last": verdict.head.seq,
             "hash": verdict.head.hash, "broken": verdict.broken, "why": verdict.why}
        )  # fmt: skip
    if not verdict.ok:
        raise AccessError(f"{verdict.broken}: {verdict.why}", f"{verdict.records} records before it hold")
    if not json:
        print(f"OK {verdict.records} records, {verdict.first_seq} to {verdict.head.seq}, {verdict.head.hash}")


@audit_app.command()
def show(
    file: LogFile,
    last: Annotated[int, typer.Option(min=1, help="Only so many, the newest.")] = 50,
    json: Json = False,
) -> None:
    """Print the newest records; with --json one document a line."""
    records = list(AuditLog(file).records())[-last:]
    for record in records:
        if json:
            print_json(record)
        else:
            of = f" (of {record.of})" if record.of else ""
            print(f"{record.seq} {record.utc} {record.actor} {record.action} {record.target} {record.outcome}{of}")


# ---- what they share ------------------------------------------------------------------------------------------------


@contextmanager
def acting(folder: KeyFolder, audit: Path | None, action: str, target: str) -> Iterator[None]:
    """Alone with the folder, and on record."""
    user = getpass.getuser()
    actor = f"uid:{os.getuid()} {user}" + (f" for {sudo}" if (sudo := os.environ.get("SUDO_USER")) else "")
    with folder.locked(), AuditLog(audit or folder.audit_log).act(actor, action, target):
        yield


def _add_agent(
    folder: KeyFolder,
    audit: Path | None,
    name: str,
    key: str,
    output: Path | None,
    until: int | None,
    now: int,
    *,
    json: bool,
) -> None:
    if bool(key) == (output is not None):
        raise InputError("an agent needs one key", "give its public --key, or --output DIR to make a pair for it")
    if output is None:
        public = keys.given_public(key)[0]
        pair = None
    else:
        pair = keys.make_pair(name)
        public = pair.public
    entry = AgentEntry(name=name, key=public.data.hex(), added=now, expires=until)
    with acting(folder, audit, "keys.add", f"{name} {public.fingerprint}"):
        rosters.add_agent(folder.roster(), entry)  # refused before anything is written
        if output is not None and pair is not None:
            try:
                output.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{output} cannot be made ({error.strerror})", "choose another folder") from error
            keys.write_pair(output / "agent.key", pair)
            keys.write_public(output / "server.pub", folder.public_keys())
        folder.change(lambda roster: rosters.add_agent(roster, entry))
    if json:
        print_json({"kind": "agent", "name": name, **_public(public), "output": str(output) if output else None})
    else:
        print(f"agent {name} may come in with key {public.fingerprint}")
        if output is not None:
            print(f"move {output} to the device and start it with `edge-agent run ... --keys {output.name}`")


def _add_program(
    folder: KeyFolder,
    audit: Path | None,
    name: str,
    roles: tuple[ApiRole, ...],
    until: int | None,
    allowance: Allowance,
    now: int,
    *,
    json: bool,
) -> None:
    key = api_keys.make_key(os.urandom(api_keys.ID_NBYTES + api_keys.SECRET_NBYTES))
    entry = ApiKeyEntry(
        name=name, id=key.id, digest=key.digest, roles=roles, added=now, expires=until, allowance=allowance
    )
    with acting(folder, audit, "keys.add", f"{name} {key.id} {','.join(roles)}"):
        folder.change(lambda roster: rosters.add_api_key(roster, entry))
    if json:
        print_json({"kind": "api", "name": name, "id": key.id, "roles": roles, "key": key.text})
    else:
        print(key.text)
        print(f"this is {name}'s API key, for {', '.join(roles)}; it is shown only now", file=sys.stderr)


def _roles(wanted: list[str]) -> tuple[ApiRole, ...]:
    known: tuple[ApiRole, ...] = ("infer", "metrics", "admin")
    for role in wanted:
        if role not in known:
            raise InputError(f"there is no role {role[:80]!r}", f"the roles are {', '.join(known)}")
    return tuple(role for role in known if role in wanted)


def moment(text: str, now: int) -> int | None:
    """Seconds since 1970 of `12h`, `30d` from now, or of a date; None for nothing."""
    if not text:
        return None
    if match := re.fullmatch(r"(\d{1,5})([hd])", text):
        span = timedelta(hours=int(match[1])) if match[2] == "h" else timedelta(days=int(match[1]))
        moment = now + int(span.total_seconds())
    else:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise InputError(f"{text[:80]!r} is no moment", "write 12h, 30d or 2027-01-31") from None
        moment = int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    if moment <= now:
        raise InputError(f"{text} is past", "give a moment to come")
    return moment


def _public(key: keys.PublicKey) -> dict[str, Any]:
    return {"name": key.name, "key": key.data.hex(), "fingerprint": key.fingerprint}


def _entry(entry: Entry, now: float) -> dict[str, Any]:
    state = "revoked" if entry.revoked is not None else "valid" if rosters.is_valid(entry, utc=now) else "expired"
    shown = {
        "name": entry.name,
        "state": state,
        "added": entry.added,
        "expires": entry.expires,
        "revoked": entry.revoked,
    }
    if isinstance(entry, AgentEntry):
        return {"kind": "agent", **shown, "id": keys.fingerprint(bytes.fromhex(entry.key)), "roles": ()}
    return {"kind": "api", **shown, "id": entry.id, "roles": entry.roles, "allowance": entry.allowance}
