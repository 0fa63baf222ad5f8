"""What TensorRT's words mean, as its users have seen them in their logs."""

from __future__ import annotations

import pytest

from protocol.engines.causes import no_room_or


@pytest.mark.parametrize(
    "words",
    [
        "[defaultAllocator.cpp::allocate::57] Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (17920000000 bytes) could not be allocated.",
        "[executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)",
        "Internal Error (CUDA initialization failure with error 2. Please check your CUDA installation",
        "CUDA initialization failure with error: 2. Please check",
    ],
)
def test_no_room_is_read_from_its_words(words: str) -> None:
    assert no_room_or(words, "build-failed") == "out-of-memory"


@pytest.mark.parametrize(
    "words",
    [
        "Error Code 1: Cuda Runtime (an illegal memory access was encountered)",
        "CUDA initialization failure with error: 222. Please check",
        "Using an engine plan file across different models of devices is not recommended",
        "Unable to determine GPU memory usage",
    ],
)
def test_other_words_of_memory_are_not_taken_for_it(words: str) -> None:
    assert no_room_or(words, "build-failed") == "build-failed"
