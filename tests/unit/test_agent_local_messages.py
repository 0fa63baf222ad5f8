"""What the local client and the daemon say to each other, through the very codec of the daemon's door."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent import local_messages as messages
from edge_agent.outcomes import Answer, Refusal, StageTimings
from edge_agent.serving.service import provenance
from protocol.control.causes import Cause
from protocol.control.flights import RefusalCode
from protocol.errors import InputError, NetworkError
from protocol.oip import codec
from protocol.oip.service import InferResponse, OipError
from protocol.oip.service import Refusal as Refused

DTYPES = st.sampled_from(["f4", "f8", "f2", "u1", "i8", "?"])
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    arrays.arrays(DTYPES, arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)),
    min_size=1,
    max_size=3,
)
TIMINGS = StageTimings(*(round(0.001 * i, 6) for i in range(1, 8)))


def answer(outputs: dict[str, npt.NDArray[Any]], degraded: tuple[str, ...] = ()) -> Answer:
    return Answer("boot-7", outputs, "cut-1", "cut", "int8", "ort + ort", "d" * 64, TIMINGS, 1000, 40, 2, 3, degraded,
                  "tcp://10.0.0.1:7447", True, causes=(Cause.LINK, Cause.GATEWAY_BUSY) if degraded else ())  # fmt: skip


@given(tensors=TENSORS, deadline_s=st.floats(1e-6, 1000), priority=st.none() | st.integers(0, 9))
def test_the_daemon_reads_what_the_client_wrote(
    tensors: dict[str, npt.NDArray[Any]], deadline_s: float, priority: int | None
) -> None:
    request = messages.encode(tensors, deadline_s=deadline_s, priority=priority)
    body = memoryview(b"".join(request.parts))
    assert len(body) == request.nbytes
    found, form = codec.decode(body, request.json_nbytes, model="m", version=None, tenant="t")
    assert found.priority == priority
    assert found.timeout_s == pytest.approx(max(deadline_s, 1e-6), abs=1e-6)
    assert form.is_binary("whatever")
    assert found.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array)


@given(outputs=TENSORS, degraded=st.sampled_from([(), ("link lost",), ("link lost", "edge-only instead")]))
def test_the_client_reads_what_the_daemon_answers_with_all_its_provenance(
    outputs: dict[str, npt.NDArray[Any]], degraded: tuple[str, ...]
) -> None:
    made = answer(outputs, degraded)
    body, json_nbytes = codec.encode(InferResponse("m", "1", "", outputs, provenance(made)), codec.Form(binary=True))
    assert json_nbytes is not None
    read = messages.decode(memoryview(body), json_nbytes)
    for field in ("request", "placement", "kind", "precision", "engine", "bundle", "up_nbytes", "down_nbytes",
                  "attempts", "batch_size", "degraded", "causes", "gateway", "hedged"):  # fmt: skip
        assert getattr(read, field) == getattr(made, field)
    assert read.timings.total_s == pytest.approx(made.timings.total_s, abs=2e-6)
    for name, array in outputs.items():
        np.testing.assert_array_equal(read.outputs[name], array)


def test_tensors_are_not_copied_on_their_way_out_nor_in() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    sent = messages.encode({"x": array}, deadline_s=1.0, priority=None).parts[1]
    assert np.shares_memory(np.frombuffer(sent, np.float32), array)


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (Refused.DEADLINE, RefusalCode.DEADLINE),
        (Refused.BUSY, RefusalCode.BUSY),
        (Refused.NOT_READY, RefusalCode.NO_PLACEMENT),
        (Refused.DRAINING, RefusalCode.CLOSED),
        (Refused.INTERNAL, RefusalCode.CLOSED),
    ],
)
def test_refusals_come_back_as_values_with_what_is_left_of_the_budget(refused: Refused, code: RefusalCode) -> None:
    document = codec.to_json(codec.error_document(OipError(refused, "because", slack_s=0.25)))
    assert messages.refusal(refused.status, document) == Refusal("", code, "because", 0.25)


@pytest.mark.parametrize("refused", [Refused.BAD_REQUEST, Refused.NOT_FOUND, Refused.TOO_LARGE, Refused.FORBIDDEN])
def test_what_the_caller_has_to_mend_is_raised(refused: Refused) -> None:
    document = codec.to_json(codec.error_document(OipError(refused, "it does not fit")))
    with pytest.raises(InputError, match="it does not fit"):
        messages.refusal(refused.status, document)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"outputs": [{"name": "x"}], "parameters": {}}'])
def test_what_is_no_answer_is_a_stranger(body: bytes) -> None:
    with pytest.raises(NetworkError, match="is no edge-agent"):
        messages.decode(memoryview(body), len(body))


@given(cut=st.integers(0, 400))
def test_an_answer_that_is_cut_off_is_a_stranger(cut: int) -> None:
    made = answer({"x": np.zeros((2, 3), np.float32)})
    body, json_nbytes = codec.encode(
        InferResponse("m", "1", "", made.outputs, provenance(made)), codec.Form(binary=True)
    )
    assert json_nbytes is not None
    short = memoryview(body)[: min(cut, len(body) - 1)]
    with pytest.raises(NetworkError):
        messages.decode(short, json_nbytes)


def test_models_describe_their_inputs_to_the_client() -> None:
    document = {"name": "m", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}], "outputs": []}
    (spec,) = messages.described(json.dumps(document).encode()).specs()
    assert (spec.name, spec.dtype, spec.shape) == ("x", "uint8", (None, 3, 8, 8))
    assert messages.only_model(msgspec.json.encode([{"name": "m"}])) == "m"
    for strange in (b"[]", b"{}", b"nothing"):
        with pytest.raises(NetworkError):
            messages.only_model(strange)
