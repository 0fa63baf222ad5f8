"""The report: one HTML file that needs nothing else, with the picture inside.

Law: every text is escaped, nothing is loaded from anywhere, and what is shown is what `result.json` holds.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from examples.demo.table import number, percent, share

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #222; background: #fff;
  max-width: 1160px; margin: 0 auto; padding: 36px 28px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 38px 0 10px; }
p { margin: 6px 0; max-width: 105ch; }
.muted { color: #666; }
.verdict { max-width: none; margin: 20px 0; padding: 10px 16px; border-left: 4px solid #009E73; background: #f1f8f5; }
.verdict.broken { border-color: #D55E00; background: #fdf3ec; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px; margin: 20px 0; }
.card { border: 1px solid #e4e4e4; border-radius: 8px; padding: 10px 14px; }
.card b { display: block; white-space: nowrap; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.card span { color: #666; font-size: 13px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: #666; font-weight: 500; border-bottom: 1px solid #ccc; padding: 5px 14px 5px 0; }
td { border-bottom: 1px solid #eee; padding: 6px 14px 6px 0; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.p { white-space: nowrap; }
tr.total td { font-weight: 600; border-top: 1px solid #999; }
td.why, tr.total td.why { color: #666; font-size: 12.5px; font-weight: 400; min-width: 220px; }
i.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
img { width: 100%; height: auto; margin-top: 6px; }
dl { display: grid; grid-template-columns: 170px 1fr; gap: 3px 18px; margin: 0; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { padding: 0; } h2 { break-after: avoid; } tr, img { break-inside: avoid; } }
"""


def render(result: Mapping[str, Any], png: bytes) -> str:
    """The whole page, from the document that `result.json` holds and the picture's bytes."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Isthmus demo: {escape(result['model'])}</title><style>{STYLE}</style></head><body>",
        f"<h1>One network, two shores: {escape(result['model'])}</h1>",
        f'<p class="muted">{escape(result["declared"])}</p>',
        _verdict(result),
        _cards(result),
        "<h2>What happened</h2>",
        f"<p>{escape(result['data'])}. Nothing told the agent when anything changed.</p>",
        _picture(png),
        "<h2>Phase by phase</h2>",
        _phases(result),
        "<h2>What was predicted, what was measured</h2>",
        *(f"<p>{escape(text)}</p>" for text in result["plan_notes"]),
        _placements(result),
        "<h2>How to read this</h2>",
        *(f"<p>{escape(text)}</p>" for text in result["reading"]),
        "<h2>Conditions</h2>",
        _conditions(result["conditions"]),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(result: Mapping[str, Any]) -> str:
    if result["ok"]:
        return f'<p class="verdict">{escape(result["verdict"])}</p>'
    return f'<p class="verdict broken">{escape(result["verdict"])}</p>'


def _cards(result: Mapping[str, Any]) -> str:
    total, word = result["total"], result["word"]
    cards = {
        "answered": f"{total['answered']:,}",
        "refused": f"{total['refused']:,}",
        "lost": f"{total['lost']:,}",
        "ended twice": f"{result['duplicates']:,}",
        word: percent(total["accuracy"]),
        "whole fp32 model": percent(total["reference"]),
        "p50 / p95 ms": f"{number(total['p50_ms'])} / {number(total['p95_ms'])}",
    }
    cells = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(key)}</span></div>' for key, value in cards.items()
    )
    return f'<div class="cards">{cells}</div>'


def _picture(png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    alternative = "Latency of every answer over time, coloured by placement; below, the cost of each placement."
    return f'<img alt="{alternative}" src="data:image/png;base64,{data}">'


def _phases(result: Mapping[str, Any]) -> str:
    head = ["phase", "placement", "#p50 ms", "#p95 ms", "#bytes up", f"#{result['word']}"]
    head += ["#answered", "#refused", "#lost", "why degraded or refused"]
    rows = [_phase(stats, result["colours"], result["events"].get(stats["name"], "")) for stats in result["phases"]]
    total = _phase(result["total"], result["colours"], "")
    return _table(head, rows, total)


def _phase(stats: Mapping[str, Any], colours: Mapping[str, str], event: str) -> list[str]:
    places = "<br>".join(f"{_dot(id_, colours)} {share(part)}" for id_, part in stats["shares"].items())
    shown = list(stats["reasons"].items())[:4]
    reasons = "<br>".join(f"{count:,} x {escape(why)}" for why, count in shown)
    left = len(stats["reasons"]) - len(shown)
    name = escape(stats["name"]) + (f'<br><span class="muted">{escape(event)}</span>' if event else "")
    return [
        f"<td>{name}</td>",
        f'<td class="p">{places}</td>',
        *(_n(number(stats[key])) for key in ("p50_ms", "p95_ms")),
        _n(number(stats["up_nbytes"], 0)),
        _n(percent(stats["accuracy"])),
        *(_n(f"{stats[key]:,}") for key in ("answered", "refused", "lost")),
        f'<td class="why">{reasons}{f"<br>and {left} more" if left else ""}</td>',
    ]


def _placements(result: Mapping[str, Any]) -> str:
    rates = result["rates_mbit"]
    head = ["placement", "what crosses", "head", "#bytes up"]
    head += [f"#at {rate:g} Mbit/s" for rate in rates]
    rows = []
    for place in result["placements"]:
        cells = [
            f'<td class="p">{_dot(place["id"], result["colours"])}</td>',
            f"<td>{escape(place['crosses'])}</td>",
            f"<td>{escape(place['precision'])}</td>",
            _n(number(place["up_nbytes"], 0)),
        ]
        for rate in rates:
            key = f"{rate:g}"
            count = place["measured_count"].get(key, 0)
            cells.append(_compared(place["predicted_ms"][key], place["measured_ms"].get(key), count))
        rows.append(cells)
    return (
        _table(head, rows)
        + '<p class="muted">Milliseconds per request: predicted by the bundle; below, the measured mean (answers).</p>'
    )


def _compared(predicted_ms: float, measured_ms: float | None, count: int) -> str:
    seen = "did not run" if measured_ms is None else f"{number(measured_ms)} ({count:,})"
    return f'<td class="n">{number(predicted_ms)}<br><span class="muted">{seen}</span></td>'


def _conditions(conditions: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in conditions.items()) + "</dl>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None) -> str:
    """`head` names starting with # are columns of numbers."""
    titles = "".join(
        f'<th class="n">{escape(h[1:])}</th>' if h.startswith("#") else f"<th>{escape(h)}</th>" for h in head
    )
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    last = f'<tr class="total">{"".join(total)}</tr>' if total is not None else ""
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}{last}</tbody></table></div>'


def _dot(id_: str, colours: Mapping[str, str]) -> str:
    return f'<i class="dot" style="background:{escape(colours.get(id_, "#999"))}"></i>{escape(id_)}'


def _n(text: str) -> str:
    return f'<td class="n">{escape(text)}</td>'
