"""The commands' own small HTTP client: one call, one answer, and trouble as one sentence."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from protocol.errors import InputError, NetworkError

TIMEOUT_S = 120.0  # loading a model takes its time


class Remote:
    """A gateway that runs. Constructing connects nowhere; it reads the key and raises InputError if it cannot."""

    def __init__(self, url: str, key_file: Path | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{url!r} is not the address of a gateway", "write http://HOST:PORT")
        self._url = url.rstrip("/")
        self._key = ""
        if key_file is not None:
            try:
                self._key = key_file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                fact = f"the key file {key_file} cannot be read ({error})"
                raise InputError(fact, "name a file with one key") from error

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded JSON answer. Raises NetworkError if nobody answers, InputError if it was refused."""
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(self._url + path, data, method=method)  # noqa: S310 - http and https only
        request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                raw = answer.read()
        except urllib.error.HTTPError as error:
            raise InputError(f"{self._url} refused: {_reason(error)}", "see docs/oip.md") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise NetworkError(
                f"no gateway answers at {self._url} ({reason})", "start one, or name it with --url"
            ) from error
        return msgspec.json.decode(raw) if raw else None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        document = msgspec.json.decode(error.read())
        return str(document["error"])
    except (msgspec.MsgspecError, KeyError, TypeError, OSError):
        return f"status {error.code}"
