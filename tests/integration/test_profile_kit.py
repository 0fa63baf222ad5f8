"""Profiles of a real (toy) model: on this machine, and through a kit that only the engine's side ever opens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from edge_agent.agent import Agent, AgentConfig
from edge_agent.cli import app as agent
from edge_agent.cli_infer import _announce as announce
from partitioner.graph.cuts import prefix_candidates, separate
from partitioner.measuring.anchors import Predictor
from partitioner.measuring.kit import export
from partitioner.measuring.profile import ProfileOrder, load_for, profile, read, write
from partitioner.planning.build import Order, build
from partitioner.planning.clock import Machines
from partitioner.planning.explore import Search
from protocol import terminal
from protocol.bench import Silent
from protocol.bundle import sha256
from protocol.errors import BundleError, InputError
from protocol.kit import KIT, KIT_DIGEST, Kit, KitRun, run_kit
from protocol.sensors import peak_memory_nbytes
from tests import models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(models.residual(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def kit(model: Path) -> Path:
    target = model.parent / "kit"
    export(ProfileOrder(model, "cloud"), target, Silent())
    return target


@pytest.fixture
def copy(kit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kit, tmp_path / "kit"))


def test_a_profile_predicts_head_and_tail_of_every_cut(model: Path, tmp_path: Path) -> None:
    loaded, _ = load_for(ProfileOrder(model, "edge"), Silent())
    order = ProfileOrder(model, "edge", budget_s=0.0, precisions=("fp32", "int8"), memory=False, most_anchors=5)
    made = profile(order, Silent())
    write(tmp_path / "p.json", made)
    assert read(tmp_path / "p.json") == made
    assert made.model_digest == sha256(loaded.data)
    assert made.precisions == ("fp32", "int8")
    assert made.whole("int8") is not None
    predictors = [Predictor(made, loaded.topology, precision=p) for p in made.precisions]
    for candidate in prefix_candidates(loaded.topology):
        sides = separate(loaded.topology, candidate.cut)
        assert all(p.head_s(sides).seconds > 0 for p in predictors)


def test_peak_memory_is_that_of_a_fresh_process(tmp_path: Path) -> None:
    net = models.Net()
    net.add("MatMul", ["x", net.weight("w", 2048, 4096)], "y")
    wide = net.model({"x": (onnx.TensorProto.FLOAT, ["N", 2048])}, {"y": ["N", 4096]}).SerializeToString()
    ballast = np.ones(50_000_000, np.float32)  # ours, and none of the measured process's business
    peak = peak_memory_nbytes(wide, {"x": np.ones((1, 2048), np.float32)}, threads=1)
    assert peak is not None
    assert 32 << 20 < peak < ballast.nbytes  # 32 MiB of weights


def test_a_cloud_profile_knows_how_the_model_takes_batches(model: Path) -> None:
    order = ProfileOrder(model, "cloud", budget_s=0.0, memory=False, most_anchors=5)
    whole = profile(order, Silent()).whole()
    assert whole is not None
    assert [batch for batch, _ in whole.batches] == [1, 2, 4, 8, 16]


def test_a_kit_is_measured_without_any_graph_library(kit: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from protocol.kit import KitRun; from edge_agent.profiling import profile;"
        f"kit, out = map(pathlib.Path, ({str(kit)!r}, {str(tmp_path / 'p.json')!r}));"
        "profile(kit, out, KitRun(budget_s=0.0, memory=False));"
        "assert not {'onnx', 'onnx_ir', 'partitioner', 'scipy'} & set(sys.modules), 'a graph library was loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    made = read(tmp_path / "p.json")
    assert made.role == "cloud"
    assert {a.side for a in made.anchors} == {"whole", "tail"}
    assert any(a.batches for a in made.anchors if a.side == "tail")
    assert made.energy is None or made.energy.joules > 0


def test_a_kits_profile_predicts_like_one_of_this_machine(kit: Path, model: Path) -> None:
    loaded, _ = load_for(ProfileOrder(model, "cloud"), Silent())
    predictor = Predictor(run_kit(kit, KitRun(budget_s=0.0, memory=False), Silent()), loaded.topology)
    deep, shallow = (predictor.tail_s(separate(loaded.topology, (t,))).seconds for t in ("r3", "r1"))
    assert 0 < deep < shallow


@pytest.mark.parametrize("name", ["full.onnx", KIT, "feed.bin"])
def test_a_damaged_kit_is_refused_before_anything_is_measured(copy: Path, name: str, tmp_path: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match="changed or damaged"):
        run_kit(copy, KitRun(), Silent())
    with pytest.raises(SystemExit) as ended:
        terminal.run(lambda: agent([*map(str, ("profile", copy, "-o", tmp_path / "p.json"))], standalone_mode=False))
    assert ended.value.code == 4
    assert not (tmp_path / "p.json").exists()


def forge(kit: Path, change: dict[str, object]) -> None:
    """Change the list and its digest alike, as an attacker would."""
    listed = json.loads((kit / KIT).read_bytes()) | change
    raw = json.dumps(listed).encode()
    (kit / KIT).write_bytes(raw)
    (kit / KIT_DIGEST).write_text(f"{sha256(raw)}  {KIT}\n")


def test_a_kit_reads_only_plain_files_of_its_own(copy: Path) -> None:
    listed = json.loads((copy / KIT).read_bytes())["files"]
    entry = listed["full.onnx"]
    for name in ("../full.onnx", "/etc/passwd", "a/../../b"):
        forge(copy, {"files": {**listed, name: entry}})
        with pytest.raises(BundleError, match="plain paths"):
            Kit.open(copy)
    forge(copy, {"files": listed})
    (copy / "full.onnx").rename(copy.parent / "elsewhere.onnx")
    (copy / "full.onnx").symlink_to(copy.parent / "elsewhere.onnx")
    with pytest.raises(BundleError, match="symbolic link"):
        Kit.open(copy).verify()


def test_a_kit_whose_tensors_do_not_fit_their_headers_is_refused(copy: Path) -> None:
    whole = json.loads((copy / KIT).read_bytes())["whole"]
    whole["feed"]["headers"][0][2][-1] *= 1000
    forge(copy, {"whole": whole})
    kit = Kit.open(copy)
    with pytest.raises(BundleError, match=r"feed\.bin"):
        kit.feed(kit.manifest.whole.feed)


def test_a_later_kit_and_a_folder_that_is_none_are_named_as_such(copy: Path, tmp_path: Path) -> None:
    forge(copy, {"schema_version": 9})
    with pytest.raises(BundleError, match="schema version 9"):
        Kit.open(copy)
    with pytest.raises(BundleError, match="is no kit"):
        Kit.open(tmp_path)


def test_a_kit_is_not_written_over_anything(kit: Path, model: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        export(ProfileOrder(model, "edge"), kit, Silent())


def test_an_output_in_no_folder_is_refused_before_the_measurement(kit: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(agent, ["profile", str(kit), "-o", str(tmp_path / "none" / "p.json")])
    assert isinstance(result.exception, InputError)


# ---- the plan for one device, used on another ------------------------------------------------------------------------


@pytest.mark.parametrize("processor", ["some other board", ""])
def test_an_agent_says_when_the_plan_was_made_for_another_machine(
    model: Path, tmp_path: Path, processor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = profile(ProfileOrder(model, "edge", budget_s=0.0, memory=False, most_anchors=2), Silent())
    device = msgspec.structs.replace(made.machine, processor=processor or made.machine.processor)
    machines = Machines({"edge": msgspec.structs.replace(made, machine=device)})
    order = Order(model, tmp_path / "b", (("r1",),), Search(machines, memory=False), "fp32", bound=1.0)
    with Agent(AgentConfig(build(order, Silent()).target)) as running:
        announce(running, 0.1, json=False)
    said = capsys.readouterr().err
    assert ("planned for some other board" in said) == bool(processor)
