"""What the bundle's manifest promises, in words and numbers for people. Pure: a manifest in, sentences out."""

from __future__ import annotations

from collections.abc import Collection
from itertools import cycle

from protocol.bundle import Manifest
from protocol.latency import LinkState, latency_s
from protocol.messages import PlacementKind

# Okabe and Ito (2008), told apart with every common colour blindness. Black is kept for refusals.
FULL_CLOUD, EDGE_ONLY = "#0072B2", "#E69F00"
CUTS = ("#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def colours(manifest: Manifest) -> dict[str, str]:
    """The colour of each placement id, the same in table, figure and page; codings of one cut share it."""
    fixed = {PlacementKind.FULL_CLOUD: FULL_CLOUD, PlacementKind.EDGE_ONLY: EDGE_ONLY}
    of_cut = dict(zip(dict.fromkeys(_family(id_) for id_ in cuts(manifest)), cycle(CUTS), strict=False))
    return {p.id: fixed.get(p.kind) or of_cut[_family(p.id)] for p in manifest.placements}


def _family(id_: str) -> str:
    return id_.partition(".")[0]


def predicted_ms(manifest: Manifest, rates_mbit: Collection[float], rtt_ms: float) -> dict[float, dict[str, float]]:
    """Predicted latency of every placement at each link rate (both directions), in ms."""
    return {
        rate: {
            p.id: latency_s(p.cost, LinkState(rate * 1e6 / 8, rtt_ms / 1e3, rate * 1e6 / 8)) * 1e3
            for p in manifest.placements
        }
        for rate in rates_mbit
    }


def cuts(manifest: Manifest) -> tuple[str, ...]:
    return tuple(p.id for p in manifest.placements if p.kind is PlacementKind.CUT)


def plan_sentence(manifest: Manifest) -> str:
    """`full-cloud from 200 to 40 Mbit/s, cut-1 from 40 to 3, edge-only below`"""
    if not manifest.plan:
        return "the bundle was built without a plan"
    pieces = [f"{id_} from {high:g} to {low:g} Mbit/s" for id_, high, low in _rounded(manifest.plan)]
    return ", ".join(pieces)


def no_cut_sentence(manifest: Manifest, used: Collection[str]) -> str:
    """Said plainly when splitting did not pay; empty when some cut was chosen."""
    here = f"On this machine, with the device declared {manifest.conditions.edge_slowdown:g} times slower,"
    if not cuts(manifest):
        why = next((note for note in manifest.notes if "not split" in note), "")
        return f"{here} no cut wins anywhere" + (f" ({why})." if why else ".")
    if not set(cuts(manifest)) & set(used):
        return f"{here} no cut was ever chosen: another placement was always faster, or no cut could be used."
    return ""


def _rounded(plan: tuple[tuple[str, float, float], ...]) -> list[tuple[str, float, float]]:
    return [(id_, float(f"{high:.3g}"), float(f"{low:.3g}")) for id_, high, low in plan]
