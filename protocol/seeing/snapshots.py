"""An account as it stood at one moment. Copying it takes microseconds, its arithmetic is done when it is read. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from protocol.seeing.exposition import labels


class Scope(Protocol):
    """Whose numbers these are: a named tuple."""

    def _asdict(self) -> dict[str, Any]: ...


class Scoped(Protocol):
    """Figures of one scope."""

    @property
    def scope(self) -> Scope: ...


F = TypeVar("F", bound=Scoped)
F_co = TypeVar("F_co", bound=Scoped, covariant=True)


class Moment(Protocol[F_co]):
    """A row, or several, as they stood."""

    def figures(self) -> F_co: ...


@dataclass(frozen=True)
class Snapshot(Generic[F]):
    """Everything at one moment; `events` counts what no scope has, `together` adds the moments up."""

    uptime_s: float
    moments: tuple[Moment[F], ...]
    events: dict[str, int]
    together: Callable[[], Moment[F]]

    @cached_property
    def scopes(self) -> tuple[F, ...]:
        return tuple(moment.figures() for moment in self.moments)

    @cached_property
    def labelled(self) -> tuple[tuple[F, str], ...]:
        """Each scope with its labels as Prometheus reads them."""
        return tuple((figures, labels(**figures.scope._asdict())) for figures in self.scopes)

    @cached_property
    def total(self) -> F:
        """Over all scopes, and quantiles over all samples: computed for people, who ask for it, not for scrapes."""
        return self.together().figures()
