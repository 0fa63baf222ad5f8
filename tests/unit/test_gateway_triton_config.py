"""The documented subset of Triton's model configuration: what it means here, and that nothing else slips through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from cloud_gateway.models.settings import PRIORITIES, ModelSettings, VersionPolicy, WarmUpSample
from cloud_gateway.models.triton_config import DATA_TYPES, IDLE_PARAMETERS, PROFILE_SIZES, THREADS, read_config
from protocol.errors import InputError
from protocol.tensors import DTYPES, TensorSpec


def read(text: str, *, bundle: bool = False) -> ModelSettings:
    return read_config(text.encode(), model="digits", source="config.pbtxt", bundle=bundle)


FULL = """
name: "digits"
backend: "onnxruntime"
max_batch_size: 16
input { name: "image" data_type: TYPE_UINT8 format: FORMAT_NCHW dims: [1, -1, 28] }
output { name: "scores" data_type: TYPE_FP32 dims: 10 label_filename: "labels.txt" }
instance_group [{ name: "cpus" count: 2 kind: KIND_CPU }, { kind: KIND_AUTO }]
dynamic_batching {
  preferred_batch_size: [8, 4, 8]
  max_queue_delay_microseconds: 1500
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: 250000
    allow_timeout_override: true
    max_queue_size: 64
  }
}
version_policy { specific { versions: [3, 1] } }
response_cache { enable: true }
model_transaction_policy { decoupled: false }
model_warmup {
  name: "wide"
  batch_size: 4
  count: 2
  inputs { key: "image" value { data_type: TYPE_UINT8 dims: [1, 28, 28] random_data: true } }
}
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
parameters { key: "profile_batch_sizes" value { string_value: "8, 1, 4" } }
parameters { key: "execution_mode" value { string_value: "0" } }
"""


def test_a_full_configuration_is_read_field_by_field() -> None:
    assert read(FULL) == ModelSettings(
        max_batch_size=16,
        instances=3,
        threads=2,
        efficiency_delay_s=0.0015,
        preferred_sizes=(4, 8),
        profile_sizes=(1, 4, 8),
        default_timeout_s=0.25,
        max_queue_requests=64,
        priority_levels=3,
        default_priority=1,
        version_policy=VersionPolicy("specific", versions=(1, 3)),
        response_cache=True,
        warm_up=(WarmUpSample("wide", (TensorSpec("image", "uint8", (1, 28, 28)),), 4, 2, random=True),),
        inputs=(TensorSpec("image", "uint8", (None, 1, None, 28)),),
        outputs=(TensorSpec("scores", "float32", (None, 10)),),
    )


def test_an_empty_configuration_says_nothing_but_that_requests_are_not_joined() -> None:
    settings = read("")
    assert settings == ModelSettings(max_batch_size=0)
    assert (settings.priority_levels, settings.default_priority) == (PRIORITIES, 5)


def test_without_a_batch_dimension_shapes_are_complete_as_declared() -> None:
    assert read("input { name: 'x' data_type: TYPE_FP32 dims: [1, -1] }").inputs[0].shape == (1, None)


def test_a_bundle_leaves_the_bound_of_its_batches_to_what_was_measured() -> None:
    assert read("", bundle=True).max_batch_size is None
    assert read("max_batch_size: 4", bundle=True).max_batch_size == 4


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", None),
        ("version_policy { latest { } }", VersionPolicy("latest", 1)),
        ("version_policy: { latest: { num_versions: 3 } }", VersionPolicy("latest", 3)),
        ("version_policy { all { } }", VersionPolicy("all")),
        ("version_policy { specific { versions: 2 versions: 5 } }", VersionPolicy("specific", versions=(2, 5))),
    ],
)
def test_version_policies(text: str, policy: VersionPolicy | None) -> None:
    assert read(text).version_policy == policy


def test_every_element_type_that_may_cross_has_its_name_and_the_others_are_refused() -> None:
    assert set(DATA_TYPES.values()) == set(DTYPES)
    assert set(DATA_TYPES) == set(model_config_pb2.DataType.keys()) - {"TYPE_INVALID", "TYPE_STRING", "TYPE_BF16"}
    with pytest.raises(InputError, match="data_type is TYPE_STRING; element types offered here: TYPE_BOOL"):
        read("input { name: 'x' data_type: TYPE_STRING dims: 1 }")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ('name: "other"', "name is 'other'; only digits is offered here"),
        ('platform: "tensorrt_plan"', "platform is 'tensorrt_plan'; only onnxruntime_onnx is offered here"),
        ('backend: "python"', "backend is 'python'; only onnxruntime is offered here"),
        ("max_batch_size: -1", "max_batch_size is -1; it is a whole number from 0 to 4096"),
        ("max_batch_size: 1.5", "it is a whole number"),
        ("max_batch_size: 1 max_batch_size: 2", "max_batch_size stands twice"),
        ("max_batch_szie: 4", "max_batch_szie is not read here; did you mean max_batch_size?"),
        ("sequence_batching { }", "sequence_batching is not read here"),
        ("ensemble_scheduling { }", "ensemble_scheduling is not read here"),
        ("optimization { graph { level: 1 } }", "optimization is not read here"),
        ("model_transaction_policy { decoupled: true }", "only false is offered here"),
        ("input: 5", "input is 5; it is a message"),
        ("input { data_type: TYPE_FP32 dims: 1 }", "a tensor has no name"),
        ("input { name: 'x' dims: 1 }", "'x' has no data_type"),
        ("input { name: 'x' data_type: TYPE_FP32 }", "'x' has dims []"),
        ("input { name: 'x' data_type: TYPE_FP32 dims: [2, 0] }", "'x' has dims [2, 0]"),
        ("input { name: 'x' data_type: TYPE_FP32 dims: 1 reshape { shape: [1] } }", "reshape is not read here"),
        ("input { name: 'x' data_type: TYPE_FP32 dims: 1 optional: true }", "only false is offered here"),
        ("input { name: 'x' data_type: TYPE_FP32 dims: 1 allow_ragged_batch: true }", "only false is offered here"),
        ("input { name: 'x' data_type: TYPE_FP32 dims: 1 } " * 2, "'x' is declared twice"),
        ('default_model_filename: "../x.onnx"', "name a file in the version's folder"),
        ("instance_group { kind: KIND_GPU }", "kind is KIND_GPU; only KIND_AUTO or KIND_CPU is offered here"),
        ("instance_group { count: 0 }", "count is 0"),
        ("instance_group { gpus: [0] }", "gpus is not read here"),
        ("dynamic_batching { preserve_ordering: true }", "only false is offered here"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "larger than max_batch_size 4"),
        ("dynamic_batching { preferred_batch_size: 0 }", "preferred_batch_size is 0"),
        ("dynamic_batching { priority_levels: 11 }", "priority_levels is 11"),
        ("dynamic_batching { priority_levels: 3 }", "default_priority_level is 0 of 3"),
        ("dynamic_batching { priority_levels: 3 default_priority_level: 4 }", "default_priority_level is 4 of 3"),
        ("dynamic_batching { priority_queue_policy { key: 1 } }", "priority_queue_policy is not read here"),
        ("dynamic_batching { default_queue_policy { timeout_action: DELAY } }", "only REJECT is offered here"),
        ("version_policy { }", "the policy is empty"),
        ("version_policy { all { } latest { } }", "the policy is latest and all"),
        ("version_policy { specific { } }", "no version is listed"),
        ("version_policy { latest { num_versions: 0 } }", "num_versions is 0"),
        ("model_warmup { name: 'a' }", "a warm-up has no inputs"),
        ("model_warmup { inputs { key: 'x' value { data_type: TYPE_FP32 dims: -1 } } }", "dims is -1"),
        (
            "model_warmup { inputs { key: 'x' value { data_type: TYPE_FP32 input_data_file: 'f' } } }",
            "input_data_file is not read here",
        ),
        ("parameters { key: 'FORCE_CPU' value { string_value: '1' } }", "the parameter 'FORCE_CPU' is not read here"),
        ("parameters { key: 'intra_op_thread_count' value { string_value: 'x' } }", "give a number from 0 to 1024"),
        ("response_cache { enable: maybe }", "enable is maybe; it is true or false"),
        ("name: digits", "name is digits; it is text: put it in quotes"),
    ],
)
def test_what_is_not_offered_is_named_and_refused(text: str, fact: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value).startswith("config.pbtxt, line 1")
    assert fact in str(caught.value)


def test_a_refusal_tells_the_line_and_where_in_the_message() -> None:
    with pytest.raises(InputError, match=r"config\.pbtxt, line 4 in dynamic_batching\.default_queue_policy: "):
        read("\n\ndynamic_batching { default_queue_policy {\n max_queue: 4 } }")


def test_every_field_of_the_reference_schema_is_read_or_refused_by_name() -> None:
    """Nothing that Triton knows is skipped in silence: an unread field raises, a read one has been judged above."""
    for field in model_config_pb2.ModelConfig.DESCRIPTOR.fields:
        text = f"{field.name} {{ nonsense: 1 }}"
        with pytest.raises(InputError):
            read(text)


def test_the_documentation_names_every_field_and_parameter_that_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    fields = set(re.findall(r"([a-z_]+):?(?= [\[{\"0-9A-Zt])", FULL)) - {"key", "value", "string_value", "inputs"}
    for name in (*fields, *IDLE_PARAMETERS, THREADS, PROFILE_SIZES, "num_versions"):
        assert name in page, name


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_config(b"\xff", model="digits", source="config.pbtxt")
