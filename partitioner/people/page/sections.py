"""The page's tables and lists. Pure: a manifest's rows in, escaped markup out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from partitioner.people.eight_bits import Grid
from partitioner.people.explain import Explanation, Ranked
from partitioner.people.page.markup import Markup, el, joined
from partitioner.people.page.scales import Linear, ms, short, size
from protocol.bundle import Manifest, Measured, ParityCertificate, PlacementEntry

SCALE_WIDTH, SCALE_HEIGHT = 150.0, 16.0
MOST_MEASURED = 40


def section(heading: str, *content: str) -> Markup:
    return el("section", el("h2", heading), *content)


def figures(pairs: Iterable[tuple[str, str]]) -> Markup:
    """The few figures that matter most."""
    return el("div", *(el("div", el("b", value), el("span", name)) for value, name in pairs), class_="figures")


def table(headings: Sequence[str], rows: Iterable[Markup]) -> Markup:
    """`headings` that begin with # are columns of figures."""
    cells = [el("th", h.removeprefix("#"), class_="n" if h.startswith("#") else None) for h in headings]
    body = el("table", el("thead", el("tr", *cells)), el("tbody", *rows))
    return el("div", body, class_="wide")


def placements(manifest: Manifest, seen: Explanation) -> Markup:
    """Every placement under the conditions asked about, the fastest first."""
    entries = {p.id: p for p in manifest.placements}
    wins = {s.id: s for s in seen.stretches}
    rows = []
    for ranked in seen.ranking:
        stretch = wins.get(ranked.id)
        best_at = "" if stretch is None else _range(stretch.from_mbit, stretch.to_mbit)
        rows.append(el("tr", *_placement(entries[ranked.id], ranked, best_at), class_=_best(ranked, seen)))
    headings = ["placement", "#in all ms", "#best at, Mbit/s", "what crosses", "head", "codec", "#bytes up"]
    return table([*headings, "#device ms", "#cloud ms"], rows)


def _best(ranked: Ranked, seen: Explanation) -> str | None:
    return "best" if ranked.id == seen.best.id else None


def _placement(entry: PlacementEntry, ranked: Ranked, best_at: str) -> list[Markup]:
    cost = ranked.cost
    return [
        el("td", ranked.id, class_="id"),
        _n(ms(ranked.total_s)),
        _n(best_at),
        el("td", ", ".join(ranked.crossing) or "nothing", class_="name"),
        el("td", entry.precision if entry.head else "none"),
        el("td", ", ".join(ranked.codecs)),
        _n(f"{cost.up_nbytes:,.0f}" if cost.crosses else "0"),
        _n(ms(cost.edge_s + cost.encode_s)),
        _n(ms(cost.decode_s + cost.tail_s)),
    ]


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "always"
    if low is None:
        return f"up to {short(high or 0.0)}"
    return f"from {short(low)}" if high is None else f"{short(low)} to {short(high)}"


def certificates(manifest: Manifest) -> Markup | None:
    """What was proven about each placement's answers; None if nothing was."""
    proven = [(p, "", p.certificate) for p in manifest.placements if p.certificate is not None]
    proven += [(p, ", tail in float16", p.half.certificate) for p in manifest.placements if p.half is not None]
    if not proven:
        return None
    low = min(min(c.bound, c.achieved) for *_, c in proven)
    high = max(max(c.reference, c.achieved) for *_, c in proven)
    scale = Linear(low, high, 6.0, SCALE_WIDTH - 6.0)
    rows = [el("tr", *_certificate(p, how, c, scale)) for p, how, c in proven]
    headings = ["placement", "#achieved", "", "#at least", "#whole model", "metric", "#samples", "head", "codec"]
    return table([*headings, "#fp32 halves differ by"], rows)


def _certificate(entry: PlacementEntry, how: str, proof: ParityCertificate, scale: Linear) -> list[Markup]:
    held = proof.achieved >= proof.bound
    return [
        el("td", entry.id + how, class_="id"),
        el("td", f"{proof.achieved:.4f}", class_="n" if held else "n short"),
        el("td", _on_scale(proof, scale, held=held)),
        _n(f"{proof.bound:.4f}"),
        _n(f"{proof.reference:.4f}"),
        el("td", proof.metric),
        _n(f"{proof.samples}{' random' if proof.random_inputs else ''}"),
        el("td", entry.precision if entry.head else "none"),
        el("td", ", ".join(dict.fromkeys(t.codec for t in entry.boundary))),
        _n(f"{proof.fp32_max_abs_difference:.1e}" if proof.fp32_max_abs_difference else "nothing"),
    ]


def _on_scale(proof: ParityCertificate, scale: Linear, *, held: bool) -> Markup:
    """A line from bound to whole model with the achieved value as a dot."""
    middle, bound, whole = SCALE_HEIGHT / 2, scale(proof.bound), scale(proof.reference)
    return el(
        "svg",
        el("line", class_="axis", x1=0, x2=SCALE_WIDTH, y1=middle, y2=middle),
        el("line", class_="winner", x1=bound, x2=bound, y1=2, y2=SCALE_HEIGHT - 2),
        el("circle", class_="hollow", cx=whole, cy=middle, r=4.5),
        el("circle", class_="full" if held else "short", cx=scale(proof.achieved), cy=middle, r=4),
        viewBox=f"0 0 {SCALE_WIDTH:g} {SCALE_HEIGHT:g}",
        role="img",
        aria_label=f"{proof.achieved:.4f}, at least {proof.bound:.4f}, whole model {proof.reference:.4f}",
    )


def measured(rows: Sequence[Measured]) -> Markup:
    """The cuts that were split, proven and timed while the plan was made."""
    ordered = sorted(rows, key=lambda m: m.share)[:MOST_MEASURED]
    cells = [
        el(
            "tr",
            el("td", ", ".join(m.cut), class_="name"),
            _n(f"{m.share:.0%}"),
            el("td", m.precision),
            el("td", m.rung or "lossless"),
            _n(f"{m.cost.up_nbytes:,.0f}"),
            _n(ms(m.cost.edge_s + m.cost.encode_s)),
            _n(ms(m.cost.decode_s + m.cost.tail_s)),
            el("td", m.kept_as or "not kept"),
            class_="best" if m.kept_as else None,
        )
        for m in ordered
    ]
    headings = [
        "cut",
        "#compute before it",
        "head",
        "codec",
        "#bytes up",
        "#device ms",
        "#cloud ms",
        "in the bundle as",
    ]
    shown = table(headings, cells)
    left = len(rows) - len(ordered)
    return joined([shown, el("p", f"and {left} more", class_="soft")]) if left else shown


def grid(of: Grid) -> Markup:
    """A table with its title and what its figures mean."""
    figures = [h.startswith("#") for h in of.headings]
    rows = [
        el(
            "tr",
            *(_n(c) if figure else el("td", c, class_=None if n else "name") for n, (c, figure) in enumerate(cells)),
            class_="best" if at in of.chosen else None,
        )
        for at, cells in enumerate([list(zip(row, figures, strict=True)) for row in of.rows])
    ]
    return joined([el("h3", of.title), el("p", of.about, class_="soft"), table(of.headings, rows)])


def conditions(manifest: Manifest, digest: str) -> Markup:
    given, model = manifest.conditions, manifest.model
    pairs = {
        "model": f"{model.name}, opset {model.opset}, sha256 {model.source_digest[:16]}",
        "bundle": f"{len(manifest.files)} files, {size(sum(f.nbytes for f in manifest.files.values()))}, "
        f"manifest sha256 {digest[:16]}",
        "measured on": given.machine,
        "device": f"declared {given.edge_slowdown:g} times slower than that machine, {_threads(given.threads)}",
        "gateway": f"as fast as that machine, {_threads(given.tail_threads)}",
        "calibration": f"{given.calibration_samples} samples, digest {given.calibration_digest[:16]}",
        "precision asked for": given.precision_asked,
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(given.versions.items())),
        "made": given.created_utc,
    }
    return el("dl", *(part for name, value in pairs.items() for part in (el("dt", name), el("dd", value))))


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def notes(manifest: Manifest) -> Markup | None:
    """What the builder had to say; None if nothing."""
    said = [*manifest.notes, *(f"{p.id}: {note}" for p in manifest.placements for note in p.notes)]
    said += [
        f"{p.id} runs at batch 1: {p.batch.reason}" for p in manifest.placements if p.batch and not p.batch.batchable
    ]
    return el("ul", *(el("li", note) for note in said), class_="notes") if said else None


def _n(value: str) -> Markup:
    return el("td", value, class_="n")
