"""Every check, as a table, in the order in which they are made: what others build on comes first.

docs/doctor.md lists them with their remedies; a test compares. An id keeps its meaning for good.
"""

from __future__ import annotations

from edge_agent.doctor import (
    checks_bundle,
    checks_configuration,
    checks_installation,
    checks_machine,
    checks_network,
    checks_service,
    checks_storage,
)
from edge_agent.doctor.examination import Check
from protocol.errors import InputError

_LOADING_S = 60.0  # heads of a large model, from slow storage
_ASKING_S = 20.0
_DRIVER_S = 40.0  # one that hangs is given up after 30 s, in words of its own

CHECKS: tuple[Check, ...] = (
    Check("configuration.valid", "the settings are valid", checks_configuration.valid),
    Check("configuration.unread", "no variable of the environment goes unread", checks_configuration.unread),
    Check("configuration.file", "nobody else can change the settings", checks_configuration.settings_file),
    Check("configuration.keys", "the device's key is there and its own", checks_configuration.keys),
    Check("configuration.secrets", "secrets are not open to everybody", checks_configuration.secrets),
    Check("configuration.exposure", "only who should can reach the local API", checks_configuration.exposure),
    Check("configuration.socket", "the Unix socket can be used", checks_configuration.unix_socket),
    Check("installation.python", "Python is new enough", checks_installation.python),
    Check("installation.version", "one version is installed", checks_installation.version),
    Check("installation.requirements", "everything needed is installed", checks_installation.requirements),
    Check("installation.engine", "there is one ONNX Runtime", checks_installation.engine, 20.0),
    Check("installation.providers", "the asked-for providers are there", checks_installation.providers, _DRIVER_S),
    Check("installation.encryption", "connections can be encrypted", checks_installation.encryption),
    Check("installation.signatures", "signatures can be checked", checks_installation.signatures),
    Check("installation.images", "images can be coded", checks_installation.images),
    Check("installation.files", "the files are those that were installed", checks_installation.files, 20.0),
    Check("bundle.opens", "the bundle opens", checks_bundle.opens, 20.0),
    Check("bundle.hashes", "every file of it is whole", checks_bundle.hashes, _LOADING_S),
    Check("bundle.signature", "it is signed by somebody we know", checks_bundle.signature),
    Check("bundle.updates", "the last update went well", checks_bundle.updates),
    Check("bundle.age", "it is not old", checks_bundle.age),
    Check("bundle.heads", "every head loads, where it should run", checks_bundle.heads, _LOADING_S),
    Check("bundle.fallback", "the device can answer alone", checks_bundle.fallback),
    Check("bundle.known_answer", "its answers are the model's", checks_bundle.known_answer, _LOADING_S),
    Check("bundle.speed", "heads are as fast as planned", checks_bundle.speed, _LOADING_S),
    Check("bundle.machine", "the plan is this machine's", checks_machine.same_machine, 20.0),
    Check("machine.board", "the board is looked at", checks_machine.board),
    Check("machine.instructions", "8-bit products are fast", checks_machine.instructions),
    Check("machine.cores", "there are cores for the threads", checks_machine.cores),
    Check("machine.governor", "the clock may rise", checks_machine.governor),
    Check("machine.throttling", "nothing slows it down", checks_machine.throttling),
    Check("machine.temperature", "it is cool enough", checks_machine.temperature),
    Check("machine.power_mode", "it may use its power", checks_machine.power_mode),
    Check("machine.memory", "memory suffices", checks_machine.memory),
    Check("machine.swap", "it does not swap", checks_machine.swap),
    Check("machine.load", "others leave it the processor", checks_machine.load),
    Check("machine.clock", "the clock is credible", checks_machine.clock),
    Check("machine.clock_kept", "the clock is kept", checks_machine.clock_kept),
    Check("machine.entropy", "randomness is ready", checks_machine.entropy),
    Check("machine.open_files", "enough files may be open", checks_machine.open_files),
    Check("machine.wear", "the storage is not worn out", checks_machine.wear),
    Check("storage.state_dir", "the state directory can be written", checks_storage.state_dir),
    Check("storage.free", "there is room", checks_storage.free),
    Check("storage.inodes", "more files can be made", checks_storage.inodes),
    Check("storage.sync", "durable writes are fast", checks_storage.sync, 20.0),
    Check("storage.file_system", "what is written stays", checks_storage.file_system),
    Check("storage.root", "the root file system", checks_storage.root),
    Check("network.resolve", "gateways' names resolve", checks_network.resolve, _ASKING_S),
    Check("network.connect", "gateways accept connections", checks_network.connect, _ASKING_S),
    Check("network.handshake", "gateways shake hands", checks_network.handshake, _ASKING_S),
    Check("network.key", "gateways know this device", checks_network.key, _ASKING_S),
    Check("network.welcome", "gateways welcome it", checks_network.welcome, _ASKING_S),
    Check("network.segments", "gateways hold this bundle", checks_network.segments, _ASKING_S),
    Check("network.round_trip", "the round trip is as planned", checks_network.round_trip, _ASKING_S),
    Check("network.bandwidth", "the uplink is as planned", checks_network.bandwidth, _ASKING_S),
    Check("network.mtu", "packets are of a usual size", checks_network.mtu, _ASKING_S),
    Check("network.congestion", "TCP bears loss", checks_network.congestion),
    Check("network.idle_restart", "TCP keeps its speed over pauses", checks_network.idle_restart),
    Check("network.buffers", "TCP may fill the link", checks_network.buffers),
    Check("service.systemd", "it starts with the machine", checks_service.systemd),
    Check("service.watchdog", "it is started again when it hangs", checks_service.watchdog),
    Check("service.hardening", "the unit gives it no more than it needs", checks_service.hardening),
    Check("service.port", "the local API's port is free or ours", checks_service.port),
    Check("service.lock", "one daemon at most has the state directory", checks_service.lock),
    Check("service.daemon", "the daemon that runs is ready", checks_service.daemon),
    Check("service.offers", "it hears of updates", checks_service.offers),
)


def chosen(only: tuple[str, ...]) -> tuple[Check, ...]:
    """The checks with these ids or of these groups; all where none is named. Raises InputError for an unknown one."""
    known = {check.id for check in CHECKS} | {check.group for check in CHECKS}
    unknown = [name for name in only if name not in known]
    if unknown:
        groups = ", ".join(dict.fromkeys(check.group for check in CHECKS))
        raise InputError(
            f"there is no check {unknown[0]!r}", f"groups are {groups}; `edge-agent doctor --list` lists all"
        )
    return tuple(check for check in CHECKS if not only or check.id in only or check.group in only)
