"""The device's daemon as a process: started, asked, stopped, killed, on a machine where it may write to one folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.processes import BIN, ROOT, finished, running
from tests.waiting import until

# Everything is mounted read-only but the folder that is given, which has to be a mount of its own for that.
CONFINED = """
set -e
mount --bind "$1" "$1"
for place in $(awk '{print $2}' /proc/self/mounts | sort -u); do
  [ "$place" = "$1" ] || mount -o remount,ro,bind "$place" 2>/dev/null || true
done
if touch "$2" 2>/dev/null; then echo "the root is still writable" >&2; exit 77; fi
shift 2
exec "$@"
"""


def run(bundle: Path, state: Path, *options: str) -> tuple[str, ...]:
    return ("edge-agent", "run", "--bundle", str(bundle), "--state-dir", str(state), "--http", "127.0.0.1:0", "--json",
            *options)  # fmt: skip


def test_it_says_where_it_serves_answers_and_ends_cleanly_on_sigterm(
    toy_bundle: Path, tmp_path: Path, toy_samples: npt.NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "samples.npz", x=toy_samples[:4])
    np.save(tmp_path / "one.npy", toy_samples[0])
    with running(*run(toy_bundle, tmp_path / "s")) as daemon:
        ready = daemon.json()
        assert (ready["event"], ready["endpoint"], ready["model"]) == ("ready", "edge-only", "model")
        monkeypatch.setenv("ISTHMUS_AGENT__STATE_DIR", str(tmp_path / "s"))  # as the settings of a device say it
        one = finished("edge-agent", "infer", str(tmp_path / "one.npy"))
        assert json.loads(one.stdout)["kind"] == "edge-only"
        many = finished("edge-agent", "infer", str(tmp_path / "samples.npz"), "--socket", f"http://{ready['http']}",
                        "--concurrency", "2")  # fmt: skip
        assert many.stdout.splitlines()[0] == "ready edge-only"
        assert [json.loads(line)["index"] for line in many.stdout.splitlines()[1:]] == [0, 1, 2, 3]
        asked = finished("edge-agent", "status", "--socket", ready["socket"])
        assert asked.stdout.startswith("model: well, up ")
        status = json.loads(finished("edge-agent", "status", "--socket", ready["socket"], "--json").stdout)
        assert status["bundle"]["digest"] == ready["bundle"]
        daemon.popen.send_signal(signal.SIGTERM)
        stopped = daemon.json()
        assert daemon.wait() == 0
    assert stopped["event"] == "stopped"
    assert stopped["counts"]["answered"] == 5
    assert not Path(ready["socket"]).exists()


def test_after_a_kill_it_starts_again_over_what_was_left(toy_bundle: Path, tmp_path: Path) -> None:
    with running(*run(toy_bundle, tmp_path / "s")) as daemon:
        socket = Path(daemon.json()["socket"])
        daemon.popen.send_signal(signal.SIGKILL)
        daemon.wait()
        assert socket.exists()
    with running(*run(toy_bundle, tmp_path / "s")) as daemon:
        assert daemon.json()["socket"] == str(socket)
        second = finished(*run(toy_bundle, tmp_path / "s"))
        assert second.returncode == 3
        assert "belongs to another edge-agent" in second.stderr


def test_it_needs_no_home_and_writes_to_its_folder_alone(toy_bundle: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed here")
    state = tmp_path / "state"
    state.mkdir()
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*namespace, "true"], capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    command = [*namespace, "sh", "-c", CONFINED, "sh", str(state), str(ROOT / "written-by-a-test"),
               str(BIN / "edge-agent"), *run(toy_bundle, state)[1:]]  # fmt: skip
    env = {"PATH": os.environ["PATH"]} | {k: v for k, v in os.environ.items() if k == "PYTHONPATH"}
    process = subprocess.Popen(command, env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line and process.wait(30) == 77:
            pytest.skip("this machine's mounts stay writable")
        ready = json.loads(line)
        assert ready["event"] == "ready"
        asked = finished("edge-agent", "status", "--socket", ready["socket"], "--json")
        assert json.loads(asked.stdout)["ready"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.communicate()[1]
    finally:
        process.kill()
        process.communicate()
    assert sorted(path.name for path in state.iterdir()) == ["bundles", "run"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--set", "htp.bind=off"), 3, "did you mean http.bind?"),
        (("--bundle", "no-such-bundle"), 4, "no bundle at no-such-bundle"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_with_its_code(
    toy_bundle: Path, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    done = finished(*run(toy_bundle, tmp_path / "s", *options))
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in done.stderr


def test_without_a_bundle_it_says_what_it_waits_for_and_ends_cleanly(tmp_path: Path) -> None:
    command = ("edge-agent", "run", "--gateway", "tcp://127.0.0.1:1", "--state-dir", str(tmp_path / "s"), "--http",
               "127.0.0.1:0", "--json")  # fmt: skip
    with running(*command) as daemon:
        waiting = daemon.json()
        assert waiting["event"] == "waiting"
        assert "it waits for the first one from tcp://127.0.0.1:1" in waiting["reason"]
        asked = finished("edge-agent", "status", "--socket", waiting["socket"])
        assert asked.stdout.startswith("no model: unwell: no bundle serves on this device")
        daemon.popen.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
    none = finished("edge-agent", "run", "--state-dir", str(tmp_path / "s"), "--http", "127.0.0.1:0")
    assert none.returncode == 3
    assert "no gateway is named; name one with --bundle" in none.stderr


def test_asking_where_nobody_runs_is_one_sentence(tmp_path: Path) -> None:
    done = finished("edge-agent", "status", "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == 6
    assert "start one with `edge-agent run`" in done.stderr


def test_sighup_reads_the_settings_again(toy_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("")
    with running(*run(toy_bundle, tmp_path / "s", "--config", str(file))) as daemon:
        daemon.json()
        file.write_text("requests.deadline_ms = 70\nhttp.max_connections = 9\n")
        daemon.popen.send_signal(signal.SIGHUP)
        until(lambda: "http.max_connections will change with a restart" in "".join(daemon.errors), "nobody read them")
        daemon.popen.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
