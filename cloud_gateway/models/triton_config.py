"""`config.pbtxt`: the subset of Triton's ModelConfig that is served here, read field by field. Pure.

Whatever is not in the subset is named with its line and refused: a server that skips a field it does not know serves
something else than was asked for. A few fields are read and have no effect; `docs/models.md` says which, and why.
Meanings are those of Triton's model_config.proto and model_configuration.md.

    name, platform | backend, max_batch_size, default_model_filename
    input, output         { name data_type dims }
    instance_group        { count kind: KIND_CPU | KIND_AUTO }
    dynamic_batching      { max_queue_delay_microseconds preferred_batch_size priority_levels default_priority_level
                            default_queue_policy { default_timeout_microseconds max_queue_size } }
    version_policy        { latest { num_versions } | all { } | specific { versions } }
    model_warmup          { name batch_size count inputs { key value { data_type dims zero_data | random_data } } }
    response_cache        { enable }
    parameters            { key value { string_value } }
"""

from __future__ import annotations

from typing import NamedTuple

from cloud_gateway.models.field_reader import FieldReader, chosen, text, truth, whole, word
from cloud_gateway.models.settings import PRIORITIES, ModelSettings, VersionPolicy, WarmUpSample
from cloud_gateway.models.text_format import parse
from protocol.errors import InputError
from protocol.tensors import MAX_NAME_LENGTH, MAX_RANK, MAX_TENSORS, Dim, TensorSpec

DATA_TYPES = {
    "TYPE_BOOL": "bool",
    **{f"TYPE_{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
}
# Parameters of the onnxruntime backend that change its speed or memory, never an answer: the gateway sets these itself.
IDLE_PARAMETERS = (
    "inter_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern",
    "memory.enable_memory_arena_shrinkage",
)  # fmt: skip
THREADS = "intra_op_thread_count"
PROFILE_SIZES = "profile_batch_sizes"  # ours: "1,4,16"; Triton asks a TensorRT engine for them
MOST_ROWS = 4096
MOST_US = 3_600_000_000
_INT32 = 2**31 - 1
_DATA_TYPE = chosen(DATA_TYPES, "element types")


class _Batching(NamedTuple):
    delay_s: float | None = None
    preferred: tuple[int, ...] = ()
    levels: int = 0
    default_level: int = 0
    timeout_s: float | None = None
    most_waiting: int | None = None


def read_config(data: bytes, *, model: str, source: str, bundle: bool = False) -> ModelSettings:
    """The settings in a config.pbtxt of `model`; errors call the file `source`.

    A `bundle` states its own inputs, outputs and files; its config may say everything else.
    Raises InputError naming file, line and field.
    """
    try:
        written = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text", "save it as UTF-8") from error
    reader = FieldReader(parse(written, source=source), source)
    reader.only("name", text, model, "")
    rows = reader.one("max_batch_size", whole(0, MOST_ROWS), None if bundle else 0)
    tensors = {} if bundle else _tensors(reader, batched=bool(rows))
    batching = reader.part("dynamic_batching", _batching, _Batching())
    if rows is not None and batching.preferred and batching.preferred[-1] > rows:
        raise reader.error(
            "dynamic_batching",
            f"a preferred batch of {batching.preferred[-1]} is larger than max_batch_size {rows}",
            "raise max_batch_size or leave that size out",
        )
    groups = reader.parts("instance_group", _instances)
    threads, profile_sizes = _tuning(reader)
    settings = ModelSettings(
        max_batch_size=rows,
        instances=sum(groups) if groups else None,
        threads=threads,
        efficiency_delay_s=batching.delay_s,
        preferred_sizes=batching.preferred,
        profile_sizes=profile_sizes,
        default_timeout_s=batching.timeout_s,
        max_queue_requests=batching.most_waiting,
        priority_levels=batching.levels or PRIORITIES,
        default_priority=batching.default_level - 1 if batching.levels else PRIORITIES // 2,
        version_policy=reader.part("version_policy", _version_policy, None),
        response_cache=reader.part("response_cache", _response_cache, None),
        warm_up=reader.parts("model_warmup", _warm_up),
        inputs=tensors.get("input", ()),
        outputs=tensors.get("output", ()),
        model_filename="model.onnx" if bundle else _filename(reader),
    )
    reader.part("model_transaction_policy", lambda r: r.only("decoupled", truth, False), False)
    reader.done()
    return settings


def _tensors(reader: FieldReader, *, batched: bool) -> dict[str, tuple[TensorSpec, ...]]:
    reader.only("platform", text, "", "onnxruntime_onnx")
    reader.only("backend", text, "", "onnxruntime")
    tensors = {
        "input": reader.parts("input", lambda r: _input(r, batched)),
        "output": reader.parts("output", lambda r: _output(r, batched)),
    }
    for kind, specs in tensors.items():
        names = [spec.name for spec in specs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise reader.error(kind, f"{twice!r} is declared twice", "leave one of them")
        if len(specs) > MAX_TENSORS:
            raise reader.error(kind, f"{len(specs)} tensors are declared", f"at most {MAX_TENSORS} are served")
    return tensors


def _input(reader: FieldReader, batched: bool) -> TensorSpec:
    for off in ("is_shape_tensor", "allow_ragged_batch", "optional", "is_non_linear_format_io"):
        reader.only(off, truth, False)
    reader.only("format", word, "FORMAT_NONE", "FORMAT_NCHW", "FORMAT_NHWC")
    return _tensor(reader, batched)


def _output(reader: FieldReader, batched: bool) -> TensorSpec:
    for off in ("is_shape_tensor", "is_non_linear_format_io"):
        reader.only(off, truth, False)
    reader.one("label_filename", text, "")
    return _tensor(reader, batched)


def _tensor(reader: FieldReader, batched: bool) -> TensorSpec:
    name = reader.one("name", text, "")
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise reader.error("name", "a tensor has no name", "name it as the model does")
    dtype = reader.one("data_type", _DATA_TYPE, "")
    if not dtype:
        raise reader.error("data_type", f"{name!r} has no data_type", f"give one of {', '.join(DATA_TYPES)}")
    dims: tuple[Dim, ...] = tuple(None if d == -1 else d for d in reader.all("dims", whole(-1, _INT32)))
    if not dims or 0 in dims or len(dims) + batched > MAX_RANK:
        raise reader.error("dims", f"{name!r} has dims {list(dims)}", f"give 1 to {MAX_RANK - batched}, -1 where free")
    return TensorSpec(name, dtype, (None, *dims) if batched else dims)


def _filename(reader: FieldReader) -> str:
    name = reader.one("default_model_filename", text, "") or "model.onnx"
    if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
        raise reader.error(
            "default_model_filename", f"default_model_filename is {name!r}", "name a file in the version's folder"
        )
    return name


def _instances(reader: FieldReader) -> int:
    reader.one("name", text, "")
    reader.only("kind", word, "KIND_AUTO", "KIND_CPU")
    reader.only("passive", truth, False)
    return reader.one("count", whole(1, 256), 1)


def _response_cache(reader: FieldReader) -> bool | None:
    return reader.one("enable", truth, False)


def _batching(reader: FieldReader) -> _Batching:
    reader.only("preserve_ordering", truth, False)
    levels = reader.one("priority_levels", whole(0, PRIORITIES), 0)
    level = reader.one("default_priority_level", whole(0, PRIORITIES), 0)
    if level > levels or (levels and not level):
        raise reader.error(
            "default_priority_level",
            f"default_priority_level is {level} of {levels} priority_levels",
            "give one of the levels; 1 goes first",
        )
    no_policy: tuple[float | None, int | None] = (None, None)
    timeout_s, most_waiting = reader.part("default_queue_policy", _queue_policy, no_policy)
    delay_us: int | None = reader.one("max_queue_delay_microseconds", whole(0, MOST_US), None)
    return _Batching(
        delay_s=None if delay_us is None else delay_us / 1e6,
        preferred=tuple(sorted(set(reader.all("preferred_batch_size", whole(1, MOST_ROWS))))),
        levels=levels,
        default_level=level,
        timeout_s=timeout_s,
        most_waiting=most_waiting,
    )


def _queue_policy(reader: FieldReader) -> tuple[float | None, int | None]:
    reader.only("timeout_action", word, "REJECT")
    reader.one("allow_timeout_override", truth, False)
    timeout_us = reader.one("default_timeout_microseconds", whole(0, MOST_US), 0)
    return (timeout_us / 1e6 or None), (reader.one("max_queue_size", whole(0, _INT32), 0) or None)


def _version_policy(reader: FieldReader) -> VersionPolicy | None:
    given = [kind for kind in ("latest", "all", "specific") if reader.has(kind)]
    if len(given) != 1:
        raise reader.error(
            (given or [""])[-1],
            f"the policy is {' and '.join(given) or 'empty'}",
            "give one of latest { num_versions: 1 }, all { } and specific { versions: [1] }",
        )
    count = reader.part("latest", lambda r: r.one("num_versions", whole(1, _INT32), 1), 1)
    none: tuple[int, ...] = ()
    versions = reader.part("specific", lambda r: r.all("versions", whole(1, 2**63 - 1)), none)
    reader.part("all", lambda r: None, None)
    if given == ["specific"]:
        if not versions:
            raise reader.error("specific", "no version is listed", "list those to serve")
        return VersionPolicy("specific", versions=tuple(sorted(set(versions))))
    return VersionPolicy("all") if given == ["all"] else VersionPolicy("latest", count)


def _warm_up(reader: FieldReader) -> WarmUpSample:
    batch = reader.one("batch_size", whole(0, MOST_ROWS), 0)
    pairs = reader.parts("inputs", _warm_up_input)
    if not pairs:
        raise reader.error("inputs", "a warm-up has no inputs", "give every input of the model with its dims")
    return WarmUpSample(
        name=reader.one("name", text, ""),
        inputs=tuple(spec for spec, _ in pairs),
        batch_size=batch,
        count=reader.one("count", whole(0, 1000), 1) or 1,
        random=any(random for _, random in pairs),
    )


def _warm_up_input(reader: FieldReader) -> tuple[TensorSpec, bool]:
    name = reader.one("key", text, "")
    nothing: tuple[str, tuple[int, ...], bool] = ("", (), False)
    dtype, dims, random = reader.part("value", _warm_up_value, nothing)
    if not name or not dtype:
        raise reader.error("key", "a warm-up input has no name or no data_type", "give key and value")
    return TensorSpec(name, dtype, dims), random


def _warm_up_value(reader: FieldReader) -> tuple[str, tuple[int, ...], bool]:
    dims = reader.all("dims", whole(1, _INT32))
    dtype = reader.one("data_type", _DATA_TYPE, "")
    reader.only("zero_data", truth, False, True)
    random = reader.one("random_data", truth, False)
    if len(dims) > MAX_RANK:
        raise reader.error("dims", f"{len(dims)} dims", f"at most {MAX_RANK} are served")
    return dtype, dims, random


def _tuning(reader: FieldReader) -> tuple[int | None, tuple[int, ...]]:
    """Threads of each engine, and the batch sizes that the engine was built for."""
    known = (THREADS, PROFILE_SIZES, *IDLE_PARAMETERS)
    threads: int | None = None
    sizes: tuple[int, ...] = ()
    for key, value in reader.parts("parameters", _parameter):
        if key not in known:
            raise reader.error("parameters", f"the parameter {key!r} is not read here", f"known: {', '.join(known)}")
        if key == THREADS:
            threads = _number(reader, key, value, 1024) or None
        elif key == PROFILE_SIZES:
            sizes = tuple(sorted({_number(reader, key, part.strip(), MOST_ROWS) for part in value.split(",")} - {0}))
    return threads, sizes


def _number(reader: FieldReader, key: str, written: str, most: int) -> int:
    if not (written.isascii() and written.isdigit() and len(written) <= 9 and int(written) <= most):
        raise reader.error("parameters", f"{key} is {written!r}", f"give a number from 0 to {most}")
    return int(written)


def _parameter(reader: FieldReader) -> tuple[str, str]:
    return reader.one("key", text, ""), reader.part("value", lambda r: r.one("string_value", text, ""), "")
