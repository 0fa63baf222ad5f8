"""Loading and unloading models over the network: recorded before it is done, and not done if that is impossible."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

from cloud_gateway.models.keeper import VersionStatus
from protocol.errors import IsthmusError
from protocol.oip.service import OipError, Parameter, Refusal

LOAD_S = 600.0  # how long a caller of load or unload is kept waiting


class Administration(Protocol):
    """Who loads and unloads models: the keeper of a repository. Called from threads that may wait."""

    def index(self) -> list[VersionStatus]: ...

    def is_ready(self) -> bool: ...

    def load(self, name: str, version: int | None = None, *, wait_s: float) -> str: ...

    def unload(self, name: str, version: int | None = None, *, wait_s: float) -> str: ...


Audit = Callable[[str, str, str], contextlib.AbstractContextManager[None]]  # tenant, action, target


def unrecorded(_: str, __: str, ___: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


async def administer(
    keeper: Administration | None,
    audit: Audit,
    tenant: str,
    action: str,
    model: str,
    parameters: Mapping[str, Parameter],
) -> None:
    """Load or unload `model`. The parameter `version` means that one only, else the model's policy says which.

    Raises OipError: UNSUPPORTED without a keeper, BAD_REQUEST with the keeper's reason, INTERNAL if it cannot be
    recorded.
    """
    if keeper is None:
        reason = "this gateway serves what was named at its start; give it a repository to load models from"
        raise OipError(Refusal.UNSUPPORTED, reason)
    act = keeper.load if action == "load" else keeper.unload
    version = version_of(parameters.get("version"))
    target = model if version is None else f"{model}/{version}"

    def recorded() -> None:
        with audit(tenant, action, target):
            if trouble := act(model, version, wait_s=LOAD_S):
                raise OipError(Refusal.BAD_REQUEST, trouble[:900])

    try:
        await asyncio.to_thread(recorded)
    except IsthmusError as error:  # it cannot be recorded, so it is not done
        raise OipError(Refusal.INTERNAL, str(error)[:900]) from error


def version_of(given: Parameter | None) -> int | None:
    """Raises OipError for what is no version."""
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given > 0):
        return given
    if isinstance(given, str) and given.isascii() and given.isdigit() and 0 < len(given) < 19 and int(given):
        return int(given)
    raise OipError(Refusal.BAD_REQUEST, f"the parameter version is {str(given)[:40]!r}; give a positive whole number")
