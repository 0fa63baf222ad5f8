"""What a bundle is called where models have versions: the number it was signed under, else how its digest begins."""

from __future__ import annotations

from datetime import UTC, datetime

from protocol.bundle import Bundle

_DIGITS = 12


def version_of(bundle: Bundle) -> str:
    statement = bundle.statement
    return bundle.digest[:_DIGITS] if statement is None else str(statement.counter)


def is_called(bundle: Bundle, version: str | None) -> bool:
    """Whether somebody who asks for this version means this bundle; None asks for whatever serves."""
    return version in (None, version_of(bundle), bundle.digest[:_DIGITS], bundle.digest)


def built_at(bundle: Bundle) -> float | None:
    """When it was built, in seconds since 1970, as it says itself; None if it does not."""
    try:
        found = datetime.fromisoformat(bundle.manifest.conditions.created_utc)
    except ValueError:
        return None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
