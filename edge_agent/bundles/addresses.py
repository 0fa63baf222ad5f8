"""Whom updates are asked from: the gateways of the settings, their names resolved anew whenever offers are asked for.

Names are resolved as the agent resolves them for requests (`edge_agent.resolver`), but on the thread that asks: updates
may wait. A name that does not resolve is no reason to give up for good: whoever was found under it before stays, and
the next look asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edge_agent.errands import Found
from edge_agent.resolver import Asking, Resolver, Source
from edge_agent.ways import Ways
from protocol.errors import InputError


class Addresses:
    """Calling it gives the ways to every gateway that is known now, the preferred one first. For one thread."""

    def __init__(
        self,
        sources: Iterable[Source],
        *,
        keys_dir: Path | None = None,
        server_key: str = "",
        asking: Asking | None = None,
        told: Callable[[str, str], None] = lambda event, text: None,
    ) -> None:
        """Constructing asks nobody. `told` hears why a name or a key is of no use, once."""
        self._sources = tuple(sources)
        self._keys_dir = keys_dir
        self._server_key = server_key
        self._asking = asking or Asking()
        self._resolver = Resolver((), lambda resolved: None, self._asking)
        self._told = told
        self._found: dict[str, tuple[Found, ...]] = {}  # by source, as it last resolved
        self._ways: dict[str, Ways] = {}  # by gateway: which of its ways has worked stays known
        self._troubles: dict[str, str] = {}

    def __bool__(self) -> bool:
        """Whether anybody is named at all."""
        return bool(self._sources)

    def __call__(self) -> Sequence[Ways]:
        for source in self._sources:
            self._resolve(source)
        found = {f.name: f for one in self._found.values() for f in sorted(one, key=lambda f: f.rank)}
        self._ways = {name: ways for name, ways in self._ways.items() if name in found}
        for name, gateway in found.items():
            try:
                if name in self._ways:
                    self._ways[name].move(gateway.endpoints)
                else:
                    self._ways[name] = Ways(gateway.endpoints, self._keys_dir, self._server_key)
            except InputError as error:
                self._complain(name, str(error))
        return [self._ways[name] for name in found if name in self._ways]

    def _resolve(self, source: Source) -> None:
        resolved, _ = self._resolver.resolve(source)
        if resolved.found:
            self._found[source.text] = resolved.found
        self._complain(source.text, resolved.trouble)

    def _complain(self, who: str, trouble: str) -> None:
        if trouble and self._troubles.get(who) != trouble:
            self._told("no_updates_from", f"{who}: {trouble}")
        self._troubles[who] = trouble
