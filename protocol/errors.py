"""Every error of the house, in one tree. An error tells the fact and the remedy, and knows its exit code.

    IsthmusError                       exit
    |-- InputError                     3   a file, flag or tensor that a person handed in
    |   `-- ModelError                 3   the ONNX model itself, or a cut of it
    |-- BundleError                    4   a bundle that is damaged, foreign or incomplete
    |   `-- UntrustedError             4   one that nobody we trust has signed, or that was taken back
    |-- AccuracyRefusedError           5   the answer would be worse than the bound that was asked for
    |-- NetworkError                   6   an endpoint that cannot be bound or reached
    |-- EngineError                    7   an inference engine that cannot be had, or that failed
    |-- WireError                      8   bytes that break the wire format: the *peer's* fault
    `-- AccessError                   10   an audit log that does not hold, or that cannot be written
    InvariantViolation (AssertionError)    a bug of ours; caught only at the top of a thread

Expected trouble (a full queue, a deadline that cannot be met) is no exception but a value: `messages.Reject`.
Exit code 0 is success, 1 an unexpected failure, 2 a wrong command line; 130 is an interrupt (Ctrl-C).
"""

from __future__ import annotations

from typing import ClassVar


class IsthmusError(Exception):
    """Base of all expected errors.

    `fact` says what is wrong and `remedy` what to do about it; `str(error)` is the one sentence people see.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, fact: str, remedy: str = "") -> None:
        super().__init__(fact, remedy)
        self.fact = fact
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}" if self.remedy else self.fact


class InputError(IsthmusError):
    exit_code = 3


class ModelError(InputError):
    pass


class BundleError(IsthmusError):
    exit_code = 4


class UntrustedError(BundleError):
    pass


class AccuracyRefusedError(IsthmusError):
    exit_code = 5


class NetworkError(IsthmusError):
    exit_code = 6


class EngineError(IsthmusError):
    exit_code = 7


class WireError(IsthmusError):
    exit_code = 8


class AccessError(IsthmusError):
    exit_code = 10


class InvariantViolation(AssertionError):  # noqa: N818 - it is no error of the environment but a broken promise of ours
    """A bug: the state that was just observed cannot exist. Never caught except at the top of a thread."""
