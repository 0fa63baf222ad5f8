"""The text form of protocol buffers: read as the reference implementation reads it, or refused with its line."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from cloud_gateway.models.text_format import MOST_LEVELS, Message, Value, Word, parse
from protocol.errors import InputError

DENSENET = r"""
# the classifier
name: "densenet"
platform: "onnxruntime_onnx"  # comment
max_batch_size: 0x10
input [
  { name: "data_0", data_type: TYPE_FP32; format: FORMAT_NCHW dims: [ 3, 224, -1 ] },
  { name: 'da' "ta_\x31" data_type: TYPE_INT64 dims: 1 dims: 2 }
]
output: < name: "fc6\t\"1\"" data_type: TYPE_FP32 dims: [1000] label_filename: "l\303\244bels.txt" >
instance_group [ { count: 2 kind: KIND_CPU }, { count: 010 } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 preserve_ordering: true }
parameters: { key: "a" value: { string_value: "1" } }
parameters: { key: "b" value { string_value: "\u00e9\U0001F600\\" } }
response_cache { enable: True }
version_policy: { all { } }
metric_tags { key: "k" value: "v" }
"""


def as_proto(message: Message, descriptor: Any) -> dict[str, Any]:
    """What the fields mean under a schema, in the shape of `reference`."""
    found: dict[str, Any] = {}
    for field in message.fields:
        about = descriptor.fields_by_name[field.name]
        value = _meant(field.value, about)
        if about.message_type is not None and about.message_type.GetOptions().map_entry:
            found.setdefault(field.name, {})[value.get("key", "")] = value.get("value", {})
        elif _repeated(about):
            found.setdefault(field.name, []).append(value)
        else:
            found[field.name] = value
    return found


def _meant(value: Value, about: Any) -> Any:
    if isinstance(value, Message):
        return as_proto(value, about.message_type)
    if about.type == FieldDescriptor.TYPE_ENUM:
        return about.enum_type.values_by_name[value.text].number if isinstance(value, Word) else value
    if about.type == FieldDescriptor.TYPE_BOOL:
        return value.text in ("true", "True", "t") if isinstance(value, Word) else bool(value)
    return value


def _repeated(about: Any) -> bool:
    return bool(about.is_repeated)


def reference(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for about, value in message.ListFields():
        if about.message_type is not None and about.message_type.GetOptions().map_entry:
            inner = about.message_type.fields_by_name["value"].message_type
            found[about.name] = {k: reference(v) if inner else v for k, v in value.items()}
        elif _repeated(about):
            found[about.name] = [reference(v) if about.message_type else v for v in value]
        else:
            found[about.name] = reference(value) if about.message_type else value
    return found


def both_read(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return as_proto(parse(text, source="config.pbtxt"), model_config_pb2.ModelConfig.DESCRIPTOR), reference(config)


def test_a_whole_configuration_is_read_as_the_reference_reads_it() -> None:
    ours, theirs = both_read(DENSENET)
    assert ours == theirs
    assert ours["output"][0]["label_filename"] == "läbels.txt"


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(
    name=WORDS,
    dims=st.lists(st.integers(1, 2**63 - 1), max_size=4),
    rows=st.integers(1, 2**31 - 1),
    one=st.booleans(),
)
@settings(max_examples=150)
def test_whatever_the_reference_prints_is_read_back(name: str, dims: list[int], rows: int, one: bool) -> None:
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=rows)
    config.input.add(name=name, dims=dims, data_type="TYPE_FP16")
    config.parameters[name].string_value = name
    config.dynamic_batching.preferred_batch_size.extend(d % 2**31 for d in dims)
    text = text_format.MessageToString(config, as_one_line=one, as_utf8=not one, use_short_repeated_primitives=one)
    ours = as_proto(parse(text, source="config.pbtxt"), model_config_pb2.ModelConfig.DESCRIPTOR)
    assert ours == reference(text_format.Parse(text, model_config_pb2.ModelConfig()))


@pytest.mark.parametrize(
    ("text", "line", "fact"),
    [
        ('name: "a', 1, "is nothing that can stand here"),
        ("name: \n\n", 3, "ends in the middle of a field"),
        ("input [ { name: 'a' } { name: 'b' } ]", 1, "'{' stands where a comma or ] was expected"),
        ("input {\n name: 'a'", 2, "ends in the middle of a field"),
        ("\nmax_batch_size 4", 2, "'4' needs a colon before it"),
        ("a: }", 1, "'}' stands where a value was expected"),
        (": 4", 1, "':' stands where a field's name was expected"),
        ("[triton]: 4", 1, "'[' stands where a field's name was expected"),
        ("a: 09", 1, "begins like an octal number"),
        ("a: 12abc", 1, "'12abc' is nothing that can stand here"),
        ("a: " + "9" * 400, 1, "larger than any number"),
        (r'a: "\q"', 1, "is no escape"),
        (r'a: "\377"', 1, "is no text"),
        ("a: - -4", 1, "'-' stands where a value was expected"),
        ("a { >", 1, "'>' stands where a field's name was expected"),
        ("a {" * (MOST_LEVELS + 1), 1, "nested more than"),
        ("\x00", 1, "is nothing that can stand here"),
    ],
)
def test_broken_text_is_refused_with_its_line(text: str, line: int, fact: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, source="config.pbtxt")
    assert str(caught.value).startswith(f"config.pbtxt, line {line}: ")
    assert fact in str(caught.value)


@given(st.text(alphabet="ab:{}<>[],;\"'\\#-0129.eExfu \n", max_size=60))
@settings(max_examples=400)
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse(text, source="config.pbtxt"), Message)


def test_numbers_keep_their_kind_and_sign() -> None:
    message = parse("a: -5 b: 1.5e3f c: -0x1F d: .5 e: -inf f: 017", source="x")
    assert [field.value for field in message.fields] == [-5, 1500.0, -31, 0.5, Word("-inf"), 15]
