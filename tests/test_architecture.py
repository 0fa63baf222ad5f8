"""The laws of the house, each a test that walks the source. A failure lists its culprits as file:line."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SHORES = ("partitioner", "edge_agent", "cloud_gateway")
PRODUCT = ("protocol", *SHORES)
ABOVE = ("benchmarks", "examples", "tests")
OURS = frozenset((*PRODUCT, *ABOVE))

# One door per library: which files may import it. What is not listed here may not be imported by the product at all.
DOORS: dict[str, tuple[str, ...]] = {
    "zmq": (
        "protocol/sockets.py",
        "edge_agent/connection.py",
        "edge_agent/doctor/probe.py",
        "edge_agent/bundles/courier.py",
        "edge_agent/trust/enrol.py",
        "cloud_gateway/doors/frontend.py",
        "cloud_gateway/doors/replies.py",
        "cloud_gateway/doors/relay.py",
    ),
    "onnxruntime": (
        "protocol/engines/ort.py",
        "protocol/engines/ort_cuda.py",
        "partitioner/crossing/half_tail.py",
        "partitioner/int8/quantise.py",
    ),
    "onnx": ("partitioner/*.py",),
    "onnx_ir": ("partitioner/*.py",),
    "msgspec": (
        "protocol/*.py",
        "partitioner/*.py",
        "cloud_gateway/models/*.py",
        "cloud_gateway/access/*.py",
        "cloud_gateway/cache_redis.py",
        "edge_agent/trust/store.py",
        "cloud_gateway/doors/standard.py",
        "edge_agent/bundles/record.py",
        "edge_agent/doctor/verdicts.py",
        "edge_agent/explaining.py",
        "cloud_gateway/remote.py",
        "cloud_gateway/seeing/status.py",
        "edge_agent/seeing/status.py",
        "edge_agent/store/payloads.py",
        "edge_agent/store/routes.py",
        "edge_agent/local_client.py",
        "edge_agent/local_messages.py",
        "edge_agent/serving/*.py",
    ),
    "typer": (
        "*/cli.py",
        "edge_agent/cli_*.py",
        "cloud_gateway/*_cli.py",
        "partitioner/*_cli.py",
        "partitioner/options.py",
        "protocol/settings_cli.py",
    ),
    "rich": ("*/cli.py", "partitioner/people/report.py", "partitioner/people/tables.py"),
    "backports": ("protocol/frames.py",),
    "compression": ("protocol/frames.py",),
    "scipy": ("partitioner/solver/bounded.py", "partitioner/solver/mincut.py", "partitioner/solver/network.py"),
    "structlog": ("protocol/seeing/logs.py",),
    "opentelemetry": ("cloud_gateway/seeing/tracing.py",),
    "PIL": ("protocol/images.py",),
    "watchfiles": ("cloud_gateway/models/watching.py",),
    "isal": ("protocol/wire.py",),
    "dns": ("edge_agent/resolver.py",),
    "cryptography": ("protocol/signers.py",),
    "grpc": ("protocol/oip/grpc_server.py",),
    "google": ("protocol/oip/contract.py", "protocol/oip/grpc_codec.py"),
    "uvicorn": ("protocol/oip/http_server.py", "protocol/oip/http_protocol.py"),
    "uvloop": ("protocol/oip/http_server.py",),
    "redis": ("cloud_gateway/cache_redis.py",),
    "optuna": ("cloud_gateway/tuning/optuna_search.py",),
    "pycuda": ("protocol/engines/cuda_memory.py",),
    "cuda": ("protocol/engines/cuda_runtime.py",),
    "tensorrt": ("protocol/engines/trt_library.py",),
    "tensorrt_rtx": ("protocol/engines/trt_library.py",),
    "numpy": ("*",),
}
# Doors for parts of the standard library: an event loop exists only at the rim, C calls only in the socket factory.
STDLIB_DOORS = {
    "asyncio": (
        "edge_agent/client.py",
        "edge_agent/local_client.py",
        "edge_agent/serving/*.py",
        "edge_agent/store/routes.py",
        "cloud_gateway/doors/administration.py",
        "protocol/oip/*.py",
        "protocol/seeing/routes.py",
        "cloud_gateway/doors/http_service.py",
        "cloud_gateway/doors/standard.py",
        "cloud_gateway/doors/turns.py",
    ),
    "sqlite3": (
        "edge_agent/store/database.py",
        "edge_agent/store/commits.py",
        "edge_agent/store/tables.py",
        "edge_agent/store/journal.py",
        "edge_agent/store/reading.py",
        "edge_agent/store/entering.py",
        "edge_agent/store/endings.py",
    ),
    "ctypes": (
        "protocol/sockets.py",
        "protocol/seeing/nvml.py",
        "protocol/engines/driver.py",
        "protocol/engines/cuda_memory.py",
        "cloud_gateway/doors/relay.py",
    ),
}

# Not even above the product, except where named.
NOWHERE: dict[str, tuple[str, ...]] = {
    "torch": ("examples/digits/train.py", "benchmarks/exports/networks.py"),
    "ray": (),
    "pickle": (),
    "cPickle": (),
    "cloudpickle": (),
    "dill": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
}

PURE_ROOMS = (
    "protocol/documents.py",
    "protocol/dsse.py",
    "protocol/errors.py",
    "protocol/latency.py",
    "protocol/graphs.py",
    "protocol/invitation.py",
    "protocol/messages.py",
    "protocol/onnx_scan.py",
    "protocol/oip/__init__.py",
    "protocol/oip/codec.py",
    "protocol/oip/encodings.py",
    "protocol/oip/openapi.py",
    "protocol/oip/origins.py",
    "protocol/oip/routes.py",
    "protocol/oip/service.py",
    "protocol/oip/tensors.py",
    "protocol/phrases.py",
    "protocol/plan.py",
    "protocol/profile.py",
    "protocol/seeing/exposition.py",
    "protocol/seeing/flood.py",
    "protocol/seeing/health.py",
    "protocol/seeing/snapshots.py",
    "protocol/seeing/sums.py",
    "protocol/seeing/windows.py",
    "protocol/settings_fields.py",
    "protocol/settings_layers.py",
    "protocol/stages.py",
    "protocol/tensors.py",
    "protocol/wire.py",
    "protocol/control/*.py",
    "edge_agent/bundles/download.py",
    "edge_agent/bundles/policy.py",
    "edge_agent/bundles/record.py",
    "edge_agent/bundles/update.py",
    "edge_agent/explaining.py",
    "edge_agent/knocking.py",
    "edge_agent/outcomes.py",
    "edge_agent/upload.py",
    "edge_agent/view.py",
    "edge_agent/seeing/chronicle.py",
    "edge_agent/seeing/figures.py",
    "edge_agent/seeing/standing.py",
    "edge_agent/store/pacing.py",
    "cloud_gateway/cache.py",
    "cloud_gateway/tuning/search.py",
    "cloud_gateway/tuning/traffic.py",
    "cloud_gateway/access/api_keys.py",
    "cloud_gateway/access/chain.py",
    "cloud_gateway/access/invitations.py",
    "cloud_gateway/access/limits.py",
    "cloud_gateway/access/roster.py",
    "cloud_gateway/access/zap.py",
    "protocol/pace.py",
    "cloud_gateway/scheduling/*.py",
    "cloud_gateway/seeing/figures.py",
    "cloud_gateway/seeing/standing.py",
    "cloud_gateway/seeing/trace_context.py",
    "cloud_gateway/doors/assembling.py",
    "cloud_gateway/doors/dedup.py",
    "cloud_gateway/doors/holdings.py",
    "cloud_gateway/doors/newcomers.py",
    "cloud_gateway/doors/routes.py",
    "cloud_gateway/doors/supervision.py",
    "cloud_gateway/models/field_reader.py",
    "cloud_gateway/models/lifecycle.py",
    "cloud_gateway/models/preference.py",
    "cloud_gateway/models/references.py",
    "cloud_gateway/models/settings.py",
    "cloud_gateway/models/states.py",
    "cloud_gateway/models/text_format.py",
    "cloud_gateway/models/triton_config.py",
    "cloud_gateway/models/wishes.py",
    "partitioner/measuring/anchors.py",
    "partitioner/solver/bounded.py",
    "partitioner/solver/budgets.py",
    "partitioner/solver/constraints.py",
    "partitioner/graph/cuts.py",
    "partitioner/int8/recipes.py",
    "partitioner/solver/hull.py",
    "partitioner/solver/mincut.py",
    "partitioner/solver/network.py",
    "partitioner/solver/parametric.py",
    "partitioner/solver/problem.py",
    "partitioner/people/neighbourhood.py",
    "partitioner/people/page/markup.py",
    "partitioner/people/page/scales.py",
    "partitioner/people/page/style.py",
    "partitioner/planning/select.py",
    "partitioner/people/simulate.py",
    "partitioner/graph/topology.py",
    "partitioner/people/traces.py",
    "partitioner/people/world.py",
)
IMPURE = frozenset(
    {"time", "threading", "socket", "zmq", "random", "asyncio", "secrets", "datetime", "os", "pathlib", "io", "select",
     "subprocess", "multiprocessing", "concurrent", "queue", "signal", "tempfile", "shutil", "logging"}
)  # fmt: skip

MOST_LINES = 400
VAGUE_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "misc"})


class Source(NamedTuple):
    name: str  # relative to the root, with slashes
    tree: ast.Module
    lines: int


class Import(NamedTuple):
    module: str  # dotted, as far as it is known: `from protocol import wire` is protocol.wire
    line: int

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def sources(*packages: str) -> tuple[Source, ...]:
    found = tuple(source for package in packages for source in _parsed(package))
    assert found, f"no source in {packages}: is this the repository's root? {ROOT}"
    return found


@functools.cache
def _parsed(package: str) -> tuple[Source, ...]:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text("utf-8")
        name = path.relative_to(ROOT).as_posix()
        found.append(Source(name, ast.parse(text, name), len(text.splitlines())))
    return tuple(found)


@functools.cache
def imports(source: Source) -> tuple[Import, ...]:
    """Every import, wherever it stands: at the top, in a function, or for type checking only."""
    return tuple(_imports(source))


def _imports(source: Source) -> Iterator[Import]:
    package = source.name.split("/")[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(f"{origin}.{alias.name}", node.lineno) for alias in node.names)


@functools.cache
def calls(source: Source) -> tuple[tuple[ast.Call, str], ...]:
    """Every call with what is called, written out: `np.load`, `context.socket`, `eval`."""
    nodes = ast.walk(source.tree)
    return tuple((node, ast.unparse(node.func)) for node in nodes if isinstance(node, ast.Call))


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def assert_none(culprits: list[str], law: str) -> None:
    assert not culprits, f"{law}:\n  " + "\n  ".join(culprits)


def forbidden_imports(packages: tuple[str, ...], forbidden: Callable[[Source, Import], bool]) -> list[str]:
    found = (
        f"{source.name}:{imported.line} imports {imported.module}"
        for source in sources(*packages)
        for imported in imports(source)
        if forbidden(source, imported)
    )
    return list(dict.fromkeys(found))


# ---- who may look at whom -------------------------------------------------------------------------------------------


def test_the_ground_floor_imports_none_of_the_rooms_above_it() -> None:
    culprits = forbidden_imports(("protocol",), lambda _, i: i.package in OURS - {"protocol"})
    assert_none(culprits, "protocol may import nothing of ours but itself")


@pytest.mark.parametrize("shore", SHORES)
def test_the_three_shores_never_import_each_other_or_what_is_built_on_them(shore: str) -> None:
    culprits = forbidden_imports((shore,), lambda _, i: i.package in OURS - {"protocol", shore})
    assert_none(culprits, f"{shore} may import nothing of ours but itself and protocol")


# The partitioner's rooms, from the ground up: each may import those before it, and itself.
ROOMS = ("graph", "solver", "judging", "int8", "measuring", "crossing", "planning", "people")


@pytest.mark.parametrize("room", ROOMS)
def test_the_partitioners_rooms_look_down_only(room: str) -> None:
    above = {f"partitioner.{name}" for name in ROOMS[ROOMS.index(room) + 1 :]}
    culprits = forbidden_imports((f"partitioner/{room}",), lambda _, i: ".".join(i.module.split(".")[:2]) in above)
    assert_none(
        culprits, f"{room} may import only {', '.join(ROOMS[: ROOMS.index(room)]) or 'nothing of the partitioner'}"
    )


# ---- one door per library -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", sorted({**DOORS, **STDLIB_DOORS}))
def test_a_library_is_imported_only_behind_its_door(library: str) -> None:
    door = {**DOORS, **STDLIB_DOORS}[library]
    culprits = forbidden_imports(PRODUCT, lambda s, i: i.package == library and not matches(s.name, door))
    assert_none(culprits, f"{library} may be imported only in {', '.join(door)}")


def test_no_door_stands_open_that_nobody_uses() -> None:
    used = {(i.package, source.name) for source in sources(*PRODUCT) for i in imports(source)}
    culprits = [
        f"{library}: {door}"
        for library, doors in {**DOORS, **STDLIB_DOORS}.items()
        for door in doors
        if not any(name == library and fnmatch(where, door) for name, where in used)
    ]
    assert_none(culprits, "close it: remove it from the table")


def test_every_library_that_the_product_imports_has_a_door() -> None:
    known = OURS | DOORS.keys() | sys.stdlib_module_names
    culprits = forbidden_imports(PRODUCT, lambda _, i: i.package not in known)
    assert_none(culprits, "a new library needs a door in this file, and a reason")


@pytest.mark.parametrize("library", sorted(NOWHERE))
def test_what_runs_foreign_code_or_belongs_to_another_house_is_imported_nowhere(library: str) -> None:
    allowed = NOWHERE[library]
    culprits = forbidden_imports((*PRODUCT, *ABOVE), lambda s, i: i.package == library and not matches(s.name, allowed))
    assert_none(culprits, f"{library} may be imported only in {', '.join(allowed) or 'nothing'}")


def test_nothing_is_imported_behind_the_back_of_these_tests() -> None:
    culprits = [
        f"{source.name}:{call.lineno} {called}"
        for source in sources(*PRODUCT)
        for call, called in calls(source)
        if called.split(".")[-1] in ("__import__", "import_module")
    ]
    assert_none(culprits, "import by statement")


# ---- pure rooms -----------------------------------------------------------------------------------------------------


def test_every_pure_room_in_the_list_exists() -> None:
    names = [source.name for source in sources(*PRODUCT)]
    gone = [room for room in PURE_ROOMS if not any(fnmatch(name, room) for name in names)]
    assert_none(gone, "renamed or removed: mend the list of pure rooms")


def test_pure_rooms_read_no_clock_socket_thread_file_or_chance() -> None:
    culprits = forbidden_imports(PRODUCT, lambda s, i: matches(s.name, PURE_ROOMS) and i.package in IMPURE)
    assert_none(culprits, "a pure room takes time and chance as arguments")


def test_pure_rooms_import_of_ours_only_pure_rooms() -> None:
    modules = {
        source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for source in sources(*PRODUCT)
        if matches(source.name, PURE_ROOMS)
    }

    def is_foreign(source: Source, imported: Import) -> bool:
        mine = imported.package in PRODUCT and matches(source.name, PURE_ROOMS)
        return mine and imported.module not in modules and imported.module.rpartition(".")[0] not in modules

    assert_none(forbidden_imports(PRODUCT, is_foreign), "what a pure room imports must be pure as well")


def test_pure_rooms_open_nothing_and_print_nothing() -> None:
    culprits = [
        f"{source.name}:{call.lineno} {called}"
        for source in sources(*PRODUCT)
        if matches(source.name, PURE_ROOMS)
        for call, called in calls(source)
        if called in ("open", "print", "input")
    ]
    assert_none(culprits, "a pure room has no doors to the outside")


# ---- safety ---------------------------------------------------------------------------------------------------------


def test_no_code_comes_from_data() -> None:
    culprits = [
        f"{source.name}:{call.lineno} {called}"
        for source in sources(*PRODUCT, *ABOVE)
        for call, called in calls(source)
        if called in ("eval", "exec", "builtins.eval", "builtins.exec", "torch.load")
    ]
    assert_none(culprits, "neither eval nor exec nor torch.load")


def test_numpy_never_unpickles() -> None:
    culprits = [
        f"{source.name}:{call.lineno} {called}({ast.unparse(keyword)})"
        for source in sources(*PRODUCT, *ABOVE)
        for call, called in calls(source)
        for keyword in call.keywords
        if keyword.arg == "allow_pickle"
        and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert_none(culprits, "allow_pickle may only be False")


def test_no_shell_reads_what_we_write() -> None:
    culprits = [
        f"{source.name}:{call.lineno} {called}"
        for source in sources(*PRODUCT, *ABOVE)
        for call, called in calls(source)
        if called in ("os.system", "os.popen")
        or any(
            k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in call.keywords
        )
    ]
    assert_none(culprits, "start programs with argument lists")


def test_sockets_and_contexts_are_made_only_in_the_factory() -> None:
    def makes_one(called: str) -> bool:
        owner, _, method = called.rpartition(".")
        return method == "socket" or called in ("zmq.Socket", "zmq.Context", "Context") or owner == "zmq.Context"

    culprits = [
        f"{source.name}:{call.lineno} {called}"
        for source in sources(*PRODUCT)
        if source.name not in ("protocol/sockets.py", "protocol/unix_sockets.py", "protocol/descriptors.py")
        for call, called in calls(source)
        if makes_one(called)
    ]
    assert_none(
        culprits,
        "a socket made elsewhere lacks the options that protocol/sockets.py sets; unix_sockets.py is for this machine, "
        "and descriptors.py borrows what libzmq has made",
    )


# ---- size and names -------------------------------------------------------------------------------------------------


def test_every_file_can_be_read_in_one_sitting() -> None:
    culprits = [f"{s.name}:{s.lines} is its last line" for s in sources(*PRODUCT) if s.lines > MOST_LINES]
    assert_none(culprits, f"at most {MOST_LINES} lines")


def test_every_module_says_in_its_name_what_it_is_about() -> None:
    culprits = [
        f"{s.name}:1" for s in sources(*PRODUCT, *ABOVE) if VAGUE_NAMES & set(Path(s.name).with_suffix("").parts)
    ]
    assert_none(culprits, "no utils, helpers, common, manager")


def test_every_file_begins_with_the_law_of_its_room() -> None:
    culprits = [f"{s.name}:1" for s in sources(*PRODUCT) if s.lines and not ast.get_docstring(s.tree)]
    assert_none(culprits, "a docstring first")


# ---- what a running daemon carries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["edge_agent.agent", "cloud_gateway.gateway"])
def test_a_daemon_loads_no_library_that_only_the_workbench_needs(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {"onnx", "onnx_ir", "scipy", "matplotlib", "sklearn", "sympy", "pandas", "torch", "typer", "partitioner"}
    assert not loaded & heavy, f"importing {module} loads {sorted(loaded & heavy)}"


def test_the_wire_format_needs_neither_sockets_nor_engines() -> None:
    code = "import protocol.wire, protocol.bundle, protocol.codecs, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"zmq", "onnxruntime"} & set(loaded.stdout.split())
