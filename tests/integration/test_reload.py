"""Settings that change while a whole gateway serves: every reloadable field has its effect, a wrong file has none."""

from __future__ import annotations

import signal
from pathlib import Path

from cloud_gateway.config import MIB, GatewaySettings, load_settings
from cloud_gateway.gateway import Gateway
from cloud_gateway.steering import Steering
from protocol.messages import AskOffers
from protocol.settings import documented
from tests.processes import running
from tests.waiting import until

START = '[zmq]\nbind = "tcp://127.0.0.1:0"\n[http]\nbind = "127.0.0.1:0"\n[cache]\nenabled = true\n'
# Every reloadable field with a value that is not its default; a new one belongs here, and below where its effect shows.
CHANGED: dict[str, object] = {
    "models.poll_s": 7.0, "models.policy": "all", "models.keep": 3, "models.versions": [4],
    "scheduling.efficiency_delay_ms": 4.0, "scheduling.ageing_s": 2.0, "scheduling.margin": 1.5,
    "limits.pending_requests": 77, "limits.pending_mib": 7, "limits.credit_requests": 5, "limits.credit_mib": 3,
    "drain.grace_s": 1.5, "cache.size_mib": 2, "cache.ttl_s": 9.0, "access.failed_attempts_per_minute": 4,
    "logs.level": "warning", "logs.repeat_interval_s": 3.0, "updates.offer": ["*"], "updates.mib_per_s": 2.0,
}  # fmt: skip


def test_every_reloadable_field_takes_effect_while_serving(toy_bundle: Path) -> None:
    assert CHANGED.keys() == {key for key, leaf in documented(GatewaySettings) if leaf.reloadable}
    start: dict[str, object] = {
        "models.bundles": [str(toy_bundle)], "zmq.bind": "tcp://127.0.0.1:0", "http.bind": "127.0.0.1:0",
        "cache.enabled": True,
    }  # fmt: skip
    wanted = dict(start)
    with Gateway(load_settings(env={}, overrides=start).settings) as gateway:
        steering = Steering(gateway, lambda: load_settings(env={}, overrides=wanted), watched=[])
        assert steering.reloader.reload().outcome == "unchanged"
        assert gateway.offering.ask(b"device", AskOffers()) is not None  # that nothing is offered
        wanted |= CHANGED
        done = steering.reloader.reload()
        assert (done.outcome, set(done.applied)) == ("applied", CHANGED.keys())
        limits = gateway.desk.limits
        assert limits == (77, 7 * MIB, 5, 3 * MIB)
        assert gateway.drain_s == 1.5
        assert (gateway.logs.level, gateway.logs.repeat_interval_s) == ("warning", 3.0)
        assert (gateway.catalogue.defaults.delay_s, gateway.catalogue.defaults.ageing_s) == (0.004, 2.0)
        assert gateway.catalogue.defaults.margin == 1.5
        assert gateway.offering.pace.rate == 2 * MIB
        assert gateway.offering.ask(b"device", AskOffers()) is None  # it has to look: the answer comes by message


def test_sighup_with_a_wrong_file_keeps_serving_as_before_and_says_why(toy_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(START)
    with running("cloud-gateway", "serve", str(toy_bundle), "--config", str(file), "--json") as process:
        assert process.json()["event"] == "ready"

        def heard(*words: str) -> None:
            """Wait until the log has a line with all of these."""
            until(
                lambda: any(all(word in line for word in words) for line in list(process.errors)), f"not told {words}"
            )

        file.write_text(START + "[limits]\npendng_requests = 7\n")
        process.popen.send_signal(signal.SIGHUP)
        heard("settings_reloaded", "nothing changed", "did you mean limits.pending_requests?")
        file.write_text(START.replace("[http]", "front = 'process'\n[http]") + "[limits]\npending_requests = 7\n")
        process.popen.send_signal(signal.SIGHUP)
        heard("settings_reloaded", "applied limits.pending_requests", "zmq.front will change with a restart")
        process.popen.send_signal(signal.SIGTERM)
        assert process.json()["event"] == "stopped"
        assert process.wait() == 0
