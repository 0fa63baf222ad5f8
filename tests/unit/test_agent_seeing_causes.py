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


# What is said of gateways and links, wherever it is said: as a whole, or as the beginning of an f-string.
BEGINNINGS = ("the gateway ", "no gateway ", "no time left ", "the link ", "nobody listens ", "what answers ")
SPEAKERS = ("edge_agent/connection.py", "edge_agent/uplink.py", "protocol/control/availability.py",
            "protocol/control/ladder.py")  # fmt: skip


@pytest.mark.parametrize("file", SPEAKERS)
def test_every_sentence_in_the_source_has_a_cause(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    sentences = [s for s in strings if s.startswith(BEGINNINGS)]
    assert sentences, "they went elsewhere: mend the list of speakers"
    assert not [s for s in sentences if cause(s) == OTHER or cause(f"cut-1: {s}") != cause(s)]
