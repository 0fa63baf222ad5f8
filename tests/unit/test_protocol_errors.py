"""The error tree: exit codes as the module documents them, and sentences made of a fact and a remedy."""

from __future__ import annotations

import re

import pytest

from protocol import errors
from protocol.errors import InvariantViolation, IsthmusError


def every_error() -> dict[str, type[IsthmusError]]:
    found = [IsthmusError]
    for error in found:
        found.extend(error.__subclasses__())
    return {error.__name__: error for error in found if error.__module__ == errors.__name__}


def documented() -> dict[str, int]:
    lines = (errors.__doc__ or "").splitlines()
    return {m[1]: int(m[2]) for line in lines if (m := re.search(r"[|`]-- (\w+Error)\s+(\d+)\s", line))}


def test_the_module_documents_every_error_with_its_real_exit_code() -> None:
    real = {name: error.exit_code for name, error in every_error().items()}
    assert real.pop("IsthmusError") == 1
    assert documented() == real


def test_exit_codes_leave_the_shells_own_alone() -> None:
    for error in every_error().values():
        assert error.exit_code == 1 or 3 <= error.exit_code < 126


@pytest.mark.parametrize("error", every_error().values())
def test_every_error_is_one_sentence_of_fact_and_remedy(error: type[IsthmusError]) -> None:
    raised = error("the port is taken", "choose another")
    assert str(raised) == "the port is taken; choose another"
    assert (raised.fact, raised.remedy) == ("the port is taken", "choose another")
    assert str(error("the port is taken")) == "the port is taken"


def test_a_bug_is_no_expected_error() -> None:
    assert issubclass(InvariantViolation, AssertionError)
    assert not issubclass(InvariantViolation, IsthmusError)
