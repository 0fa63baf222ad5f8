"""`python -m examples.demo`: splits a model, then runs gateway, link and agent while the world around them gets worse.

Law: the command line and the order of events, nothing else. Exit code 0 only if no request was lost or ended twice and
accuracy held; 1 otherwise, with the sentence that says which; the partitioner's own code if it refused the model.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.demo import data, figures, report, result, table
from examples.demo.phases import SCRIPT, Slot, rates, schedule
from examples.demo.plan import colours, cuts, no_cut_sentence, plan_sentence, predicted_ms
from examples.demo.play import Player
from examples.demo.record import Record, measured
from examples.demo.stage import DEADLINE_MS, Stage, build_bundle
from protocol import terminal
from protocol.bundle import Bundle
from protocol.tensors import describe


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; raises SystemExit with its exit code."""
    asked = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))  # unwinds, so that every process is ended
    began = time.monotonic()
    console = Console(stderr=asked.json)
    if not console.is_terminal:
        console = Console(stderr=asked.json, width=160)
    asked.out.mkdir(parents=True, exist_ok=True)
    console.print(f"[bold]Isthmus demo.[/] {_declared(asked)}", highlight=False, soft_wrap=True)
    samples = data.prepare(asked.model, asked.data, asked.out)
    console.print(f"Data: {samples.story}.", highlight=False, markup=False, soft_wrap=True)
    bundle = _bundle(asked, samples)
    record = Record(data.truth(bundle, samples))
    _say_plan(console, bundle, asked.edge_slowdown)
    played = _play(asked, bundle, samples, record, console)
    document = _write(asked, bundle, samples, record, played)
    _say_end(console, record, document, asked.out, time.monotonic() - began)
    if asked.json:
        terminal.print_json(result.written(document))
    raise SystemExit(0 if document["ok"] else 1)


def _bundle(asked: argparse.Namespace, samples: data.Samples) -> Bundle:
    if asked.bundle is None:
        build_bundle(
            asked.model,
            samples.calibration,
            asked.out / "bundle",
            slowdown=asked.edge_slowdown,
            rtt_ms=asked.rtt_ms,
            budget_s=asked.budget_s,
            jpeg=asked.jpeg,
        )
    return Bundle.open(asked.bundle or asked.out / "bundle")


def _play(
    asked: argparse.Namespace, bundle: Bundle, samples: data.Samples, record: Record, console: Console
) -> tuple[Slot, ...]:
    stage = Stage(
        bundle.root,
        samples.shown,
        asked.out,
        slowdown=asked.edge_slowdown,
        rtt_ms=asked.rtt_ms,
        rate_mbit=SCRIPT[0].rate_mbit,
    )
    screen = table.Screen(console, record, colours(bundle.manifest))
    with stage, screen, (asked.out / "answers.jsonl").open("w", encoding="utf-8") as log:
        return Player(stage, record, screen, log).play(schedule(asked.phase_s))


def _write(
    asked: argparse.Namespace, bundle: Bundle, samples: data.Samples, record: Record, played: tuple[Slot, ...]
) -> dict[str, Any]:
    """Write picture, page and document into OUT; return the document."""
    manifest = bundle.manifest
    costs = measured(record, {slot.phase.name: slot.phase.rate_mbit for slot in played if slot.phase.steady})
    predicted = predicted_ms(manifest, rates(), asked.rtt_ms)
    document = result.document(
        model=manifest.model.name,
        declared=_declared(asked),
        story=samples.story,
        manifest=manifest,
        record=record,
        slots=played,
        costs=costs,
        predicted=predicted,
        conditions=_conditions(asked, bundle),
    )
    title = f"{manifest.model.name}: where each request was answered, and how fast"
    picture = figures.Picture(title, played, record, colours(manifest), costs, predicted)
    figures.draw(picture, asked.out / "timeline.png")
    page = report.render(document, (asked.out / "timeline.png").read_bytes())
    (asked.out / "report.html").write_text(page, encoding="utf-8")
    text = json.dumps(result.written(document), indent=2, allow_nan=False)
    (asked.out / "result.json").write_text(text + "\n", encoding="utf-8")
    return document


# ---- words ----------------------------------------------------------------------------------------------------------


def _declared(asked: argparse.Namespace) -> str:
    return (
        f"The device is this machine, throttled {asked.edge_slowdown:g} times (declared); the link is emulated on "
        f"loopback, round trip {asked.rtt_ms:g} ms; deadline {DEADLINE_MS} ms; model {asked.model.name}; the input may "
        f"{'travel as JPEG' if asked.jpeg else 'not be sent with loss (--jpeg allows it)'}."
    )


def _conditions(asked: argparse.Namespace, bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "machine": manifest.conditions.machine,
        "device": f"this machine, throttled {asked.edge_slowdown:g} times (declared), one thread",
        "link": f"emulated on loopback, round trip {asked.rtt_ms:g} ms, {', '.join(f'{r:g}' for r in rates())} Mbit/s",
        "deadline": f"{DEADLINE_MS} ms for each request",
        "model inputs": ", ".join(describe(spec) for spec in manifest.model.inputs),
        "bundle": bundle.digest,
        "calibration": f"{manifest.conditions.calibration_samples} samples",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.conditions.versions.items()),
        "bundle notes": "; ".join(manifest.notes) or "none",
    }


def _say_plan(console: Console, bundle: Bundle, slowdown: float) -> None:
    manifest = bundle.manifest
    lines = [f"Plan, as predicted: {plan_sentence(manifest)}."]
    if manifest.conditions.edge_slowdown != slowdown:
        planned = manifest.conditions.edge_slowdown
        lines.append(f"This bundle was planned for a device {planned:g} times slower, not {slowdown:g} times.")
    if not cuts(manifest):
        lines.append(no_cut_sentence(manifest, ()))
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _say_end(console: Console, record: Record, document: dict[str, Any], out: Path, wall_s: float) -> None:
    rows = [record.phase(i) for i in range(len(record.acts))]
    console.print(table.build(rows, record.total(), record.truth.word, document["colours"], width=console.width))
    if console.width < table.WIDE and record.total().reasons:
        reasons = table.shortened(record.total().reasons, most=4)
        console.print(f"Degraded: {reasons}.", highlight=False, markup=False, soft_wrap=True)
    for line in (*document["plan_notes"], document["verdict"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    paths = ", ".join(str(out / name) for name in ("report.html", "timeline.png", "result.json"))
    console.print(f"Written: {paths} ({wall_s:.0f} s in all)", highlight=False, markup=False, soft_wrap=True)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description="Split inference, live, on one machine."
    )
    path: dict[str, Any] = {"type": Path, "metavar": "PATH"}
    number: dict[str, Any] = {"type": _positive, "metavar": "X"}
    parser.add_argument("--model", default=data.DIGITS, help="ONNX model (default: the digits model)", **path)
    parser.add_argument("--data", help="npz, one array per model input, first axis = samples; labels or y", **path)
    parser.add_argument("--bundle", help="use this bundle instead of splitting the model", **path)
    parser.add_argument("--edge-slowdown", default=8.0, help="times the device is slower than this machine", **number)
    parser.add_argument("--rtt-ms", default=2.0, help="round trip of the link in ms", **number)
    parser.add_argument("--jpeg", action="store_true", help="let full-cloud send JPEG, which small pictures suit well")
    parser.add_argument("--phase-s", default=4.0, help="seconds of a phase", **number)
    parser.add_argument("--budget-s", default=25.0, help="seconds that the partitioner may measure", **number)
    parser.add_argument("--out", default=Path("demo-out"), help="where everything is written", **path)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, everything else on stderr")
    return parser


if __name__ == "__main__":
    terminal.run(main)
