"""Causes in few words: every sentence that the agent says of a degraded answer has one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from edge_agent.seeing.causes import CAUSES, OTHER, cause, causes
from protocol.messages import RejectCode

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("code", RejectCode)
def test_a_gateways_refusal_is_told_by_its_code(code: RejectCode) -> None:
    assert cause(f"gateway {code}: the queue is full") == f"gateway_{code.lower()}"
    assert cause(f"cut-1: gateway {code}: the queue is full") in CAUSES


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("the gateway is draining: it is replaced", "gateway_draining"),
        ("the gateway did not answer in time", "silence"),
        ("cut-2: the gateway does not answer", "silence"),
        ("the gateway has fallen silent", "silence"),
        ("no time left to wait for the gateway", "no_time"),
        ("no gateway has answered yet", "link"),
        ("the gateway does not let us in: our key is unknown, revoked or expired", "link"),
        ("the gateway does not know us (it was restarted)", "link"),
        ("the gateway does not hold cut-1", "not_held"),
        ("cut-1: the head of cut-1 failed: out of memory", "device"),
        ("full-cloud-jpeg: cannot be encoded", "device"),
        ("a sentence that nobody wrote", OTHER),
    ],
)
def test_a_sentence_has_one_cause(sentence: str, wanted: str) -> None:
    assert cause(sentence) == wanted


def test_each_cause_is_counted_once_for_an_answer() -> None:
    assert causes(("no gateway answers", "gateway BUSY: full", "no gateway has answered yet")) == (
        "link",
        "gateway_busy",
    )
    assert causes(()) == ()


def test_every_reason_for_a_lost_link_in_the_source_is_known() -> None:
    """What the connection says of itself, read from the source: a new sentence needs a cause."""
    tree = ast.parse((ROOT / "edge_agent" / "connection.py").read_text("utf-8"))
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    reasons = {s for s in strings if s.startswith(("the gateway ", "no gateway "))}
    assert len(reasons) >= 4
    assert not [s for s in reasons if cause(s) == OTHER]
