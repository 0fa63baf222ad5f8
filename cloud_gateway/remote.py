"""The commands' own small HTTP client: one call, one answer, and trouble as one sentence."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from protocol.errors import InputError, NetworkError

TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 630.0  # a gateway lets who loads a model wait for ten minutes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A gateway sends nobody elsewhere; whoever does must not be shown the key."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


class Remote:
    """A gateway that runs. Constructing connects nowhere; it reads the key and raises InputError if it cannot."""

    def __init__(self, url: str, key_file: Path | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:  # a port that is no number
            wrong = True
        if wrong or not url.isprintable() or " " in url:
            raise InputError(f"{url!r} is not the address of a gateway", "write http://HOST:PORT")
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._key = "" if key_file is None else _key_in(key_file)
        self._opener = urllib.request.build_opener(_NoRedirects())

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded JSON answer. Raises NetworkError if nobody answers, InputError if it was refused."""
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(self._url + path, data, method=method)  # noqa: S310 - http and https only
        request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as error:
            raise InputError(f"{self._url} refused: {_reason(error)}", "see docs/oip.md") from error
        except TimeoutError as error:
            fact = f"{self._url} has not answered within {self._timeout_s:g} s"
            raise NetworkError(fact, "ask it for its models: what was begun there goes on") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise NetworkError(
                f"no gateway answers at {self._url} ({reason})", "start one, or name it with --url"
            ) from error
        try:
            return msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError as error:
            raise self._stranger() from error

    def document(self, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
        """As `call`, and the answer is one JSON object."""
        found = self.call(method, path, body)
        if not isinstance(found, dict):
            raise self._stranger()
        return found

    def entries(self, method: str, path: str, body: Any = None) -> list[Mapping[str, Any]]:
        """As `call`, and the answer is a list of JSON objects."""
        found = self.call(method, path, body)
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise self._stranger()
        return found

    def _stranger(self) -> InputError:
        return InputError(f"what answers at {self._url} is no gateway", "name the gateway with --url")


def model_path(name: str, action: str) -> str:
    return f"/v2/repository/models/{urllib.parse.quote(name, safe='')}/{action}"


def _key_in(file: Path) -> str:
    try:
        key = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fact = f"the key file {file} cannot be read ({error})"
        raise InputError(fact, "name a file with one key") from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"the key file {file} does not hold one key", "name a file with one key")
    return key


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        document = msgspec.json.decode(error.read())
        return str(document["error"])
    except (msgspec.MsgspecError, KeyError, TypeError, OSError):
        return f"status {error.code}"
