"""The board, the store and the life of a bundle as `sight` wants them told: translations, for who has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.bundles.record import Step
from edge_agent.device.board import BoardView, look
from edge_agent.seeing import sight
from edge_agent.seeing.standing import BoardStanding, BundleStanding, StoreStanding
from edge_agent.store.tickets import State
from protocol.bundle import Bundle

if TYPE_CHECKING:  # a daemon without a store needs no sqlite, and one without updates no courier
    from edge_agent.bundles.record import UpdateView
    from edge_agent.store.journal import Journal


def board_standing(board: BoardView) -> BoardStanding:
    """The zone nearest to its limit stands for the board's heat."""
    zone, mode, throttling = board.hottest, board.power_mode, board.throttling
    limits = [] if zone is None else [c for c in (zone.slows_at_c, zone.stops_at_c) if c is not None]
    return BoardStanding(
        model=board.model,
        power_mode=None if mode is None else mode.name or f"number {mode.number}",
        heat=None if zone is None else zone.name,
        celsius=None if zone is None else zone.celsius,
        limit_celsius=min(limits, default=None),
        throttled="" if not throttling.now else ", ".join(throttling.reasons) or "the board says that it is",
        gpu_load=board.gpu_load,
        watts=board.watts,
    )


def read_board(root: Path = Path("/")) -> BoardStanding:
    """Takes milliseconds; raises nothing."""
    return board_standing(look(root))


def read_store(journal: Journal) -> StoreStanding:
    """Raises StoreError."""
    totals = journal.totals()
    return StoreStanding(
        waiting=totals.tickets[State.WAITING],
        answered=totals.tickets[State.ANSWERED],
        nbytes=totals.nbytes,
        limit_nbytes=journal.caps.most_nbytes,
        oldest_s=journal.oldest_s(),
    )


def bundle_standing(bundle: Bundle | None, updates: UpdateView) -> BundleStanding:
    """What the bundle says of itself, whether it is proven, and what comes next; None where none serves yet."""
    record = updates.record
    coming = record.said if record.step is Step.REVERTED else updates.trouble
    if record.step is Step.IDLE and updates.passed_over:
        coming = coming or record.said
    if record.step is Step.ON_TRIAL:
        coming = updates.trial
    elif record.step not in (Step.IDLE, Step.REVERTED):
        fetched = f", {updates.fetched_nbytes / 1e6:.1f} MB fetched" if record.step is Step.FETCHING else ""
        coming = f"{record.step} {record.candidate[:12]}{fetched}"
    known = BundleStanding() if bundle is None else sight.bundle_standing(bundle)
    known = replace(known, coming=coming, refused_offers=updates.passed_over, unheard_s=updates.unheard_s)
    if bundle is None:
        return known
    state = "on trial" if record.step is Step.ON_TRIAL else "proven" if bundle.digest == record.proven else ""
    return replace(known, state=state)
