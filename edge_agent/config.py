"""Everything that the daemon on a device can be told, as typed sections; each field says what it means.

How files, the environment, secrets and the command line become these values stands in `protocol/settings.py`;
docs/agent-configuration.md lists all fields, and a test compares it with this file. A field marked `reloadable` is
applied while the daemon serves (`edge_agent/steering.py`); the rest needs a restart. All that the daemon writes lies
under `state_dir`; the rest of the file system may be read-only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from protocol.control.objectives import Objective
from protocol.errors import InputError
from protocol.oip.service import is_local
from protocol.settings import Section, by_default, setting
from protocol.settings_sources import Layers, LogsSettings

PREFIX = "ISTHMUS_AGENT"
STATE_DIR = Path("/var/lib/isthmus")

_GATEWAY = r"^(tcp://([^:/\s]+|\[[0-9a-fA-F:.]+\]):\d{1,5}|srv://[^:/\s]+)$"
HIGHEST_PORT = 65535
_HOST_PORT = r"^([^:/\s]+|\[[0-9a-fA-F:.]+\]):\d{1,5}$"

GatewayUrl = Annotated[str, setting("", pattern=_GATEWAY)]


class BundleSettings(Section, frozen=True):
    """What is served."""

    path: Annotated[
        Path | None, setting("A bundle's folder; else the bundle that `edge-agent bundles` made the current one.")
    ] = None
    placements: Annotated[
        tuple[str, ...], setting("Use only these placements of it; none named allows all.", reloadable=True)
    ] = ()
    signatures: Annotated[
        Literal["auto", "required", "unsigned"],
        setting("Whether bundles must be signed; auto requires it of what came over the air and where a key is known."),
    ] = "auto"
    signers: Annotated[int, setting("So many of the keys that are believed must have signed.", ge=1, le=2)] = 1


class GatewaysSettings(Section, frozen=True):
    """Who finishes what the device begins. Without one, everything runs on the device."""

    endpoints: Annotated[
        tuple[GatewayUrl, ...],
        setting("Gateways to choose from.", wanted="a list, each tcp://HOST:PORT or srv://NAME", reloadable=True),
    ] = ()
    insecure: Annotated[bool, setting("Connect to other machines in plain text.", reloadable=True)] = False
    name_servers: Annotated[
        tuple[str, ...],
        setting("Ask these for srv:// names, each ADDRESS:PORT; none named asks the system's.", reloadable=True),
    ] = ()
    name: Annotated[str, setting("What gateways call this device where no key names it.", reloadable=True)] = (
        "edge-agent"
    )
    hedge: Annotated[
        bool,
        setting(
            "Begin on the device as well when a request's budget gets tight; the first answer counts.", reloadable=True
        ),
    ] = False
    wait_s: Annotated[
        float, setting("At the start, wait this long for a gateway before saying what is served.", ge=0, le=600)
    ] = 3.0


class KeysSettings(Section, frozen=True):
    """Who this device is, and whom it believes."""

    dir: Annotated[Path | None, setting("Folder with agent.key and server.pub; with it, all traffic is encrypted.")] = (
        None
    )
    server_key: Annotated[str, setting("A gateway's public key, or a file of such, instead of server.pub.")] = ""


class HttpSettings(Section, frozen=True):
    """The local API: the Open Inference Protocol, metrics and the status page."""

    enabled: Annotated[bool, setting("Serve HTTP.")] = True
    bind: Annotated[
        str,
        setting(
            "Where to listen; port 0 picks one, off listens on the Unix socket alone.",
            pattern=rf"{_HOST_PORT}|^off$",
            wanted="HOST:PORT or off",
        ),
    ] = "127.0.0.1:7490"
    unix_socket: Annotated[
        Path | None, setting("The Unix socket (mode 0660); else run/agent.sock under state_dir.")
    ] = None
    insecure: Annotated[bool, setting("Let any machine in, in plain text.")] = False
    tls_certificate: Annotated[Path | None, setting("PEM file of the certificate and its chain.")] = None
    tls_key: Annotated[Path | None, setting("PEM file of the certificate's private key.")] = None
    client_ca: Annotated[
        Path | None, setting("PEM file of those who may sign the certificates of clients on other machines.")
    ] = None
    max_body_mib: Annotated[int, setting("Largest body, also after it is unpacked.", ge=1, le=4096)] = 64
    max_connections: Annotated[
        int,
        setting(
            "Connections at once; idle ones make way, and 8 more may ask for health and metrics.", ge=1, le=100_000
        ),
    ] = 128
    header_timeout_s: Annotated[float, setting("A request's head must be here by then.", ge=0.1, le=3600)] = 10.0
    body_timeout_s: Annotated[float, setting("A request's body must be here by then.", ge=0.1, le=3600)] = 30.0
    keep_alive_s: Annotated[float, setting("An idle connection is closed after this.", ge=1, le=3600)] = 60.0


class GrpcSettings(Section, frozen=True):
    """The local API over gRPC (extra `grpc`), for applications on this device."""

    enabled: Annotated[bool, setting("Serve gRPC.")] = False
    bind: Annotated[str, setting("Where to listen, on this machine; port 0 picks one.", pattern=_HOST_PORT,
                                 wanted="HOST:PORT")] = "127.0.0.1:7491"  # fmt: skip
    max_message_mib: Annotated[int, setting("Largest message.", ge=1, le=2047)] = 64
    max_concurrent: Annotated[int, setting("Calls at once.", ge=1, le=100_000)] = 64


class RequestsSettings(Section, frozen=True):
    """Applications' requests."""

    deadline_ms: Annotated[
        float,
        setting("The budget of a request that names none (parameter `timeout`).", ge=1, le=86_400_000, reloadable=True),
    ] = 1000.0
    most_pending: Annotated[int, setting("More at once are refused as BUSY.", ge=1, le=100_000, reloadable=True)] = 64


class PlannerSettings(Section, frozen=True):
    """What is best."""

    objective: Annotated[
        str,
        setting(
            "What a placement is to be the best in.",
            wanted="latency, deadline, energy, bytes or cloud, or weights such as energy=2/J,bytes=0.1/MB",
            reloadable=True,
        ),
    ] = "latency"


class DeviceSettings(Section, frozen=True):
    """What runs on the device."""

    threads: Annotated[int, setting("Intra-op threads of the heads.", ge=1, le=1024, reloadable=True)] = 1
    providers: Annotated[
        tuple[Literal["tensorrt-native", "tensorrt", "cuda", "cpu"], ...],
        setting("What may run the heads, the preferred first.", reloadable=True),
    ] = ("cpu",)
    plans_dir: Annotated[
        Path | None,
        setting("Folder where tensorrt-native keeps what it built; else plans under state_dir.", reloadable=True),
    ] = None
    slowdown: Annotated[
        float, setting("Drill: act as a device that is this many times slower.", ge=1, le=1e6, reloadable=True)
    ] = 1.0
    fault_file: Annotated[
        Path | None, setting("Drill: while this file exists, the head of every cut fails.", reloadable=True)
    ] = None


class HealthSettings(Section, frozen=True):
    """A known question, asked along the way of a request; its answer feeds systemd's watchdog."""

    every_s: Annotated[
        float, setting("Ask this often, or three times in WatchdogSec.", ge=0.1, le=3600, reloadable=True)
    ] = 10.0
    timeout_s: Annotated[float, setting("No answer by then is a bad one.", ge=0.1, le=3600, reloadable=True)] = 5.0


class StoreSettings(Section, frozen=True):
    """Requests that may be answered late, kept on the disk until they are."""

    enabled: Annotated[bool, setting("Take requests for late answers at /v2/isthmus/store.")] = False
    most_requests: Annotated[int, setting("Requests and answers kept at once.", ge=1, le=10_000_000)] = 10_000
    most_mib: Annotated[int, setting("Their tensors may take so much.", ge=1, le=1024 * 1024)] = 256
    life_s: Annotated[float, setting("A request waits this long unless it says otherwise.", ge=1, le=31_536_000)] = (
        86_400.0
    )
    keep_s: Annotated[float, setting("An answer waits this long for its caller.", ge=1, le=31_536_000)] = 86_400.0
    full: Annotated[
        Literal["refuse", "drop-oldest"], setting("What becomes of a new request where there is no room.")
    ] = "refuse"


class UpdatesSettings(Section, frozen=True):
    """Bundles that gateways offer. Nothing is fetched while no key is known to check their signatures with."""

    enabled: Annotated[bool, setting("Ask gateways for bundles.")] = True
    automatic: Annotated[
        bool, setting("Take what is offered; else only what `edge-agent bundles` asks for.", reloadable=True)
    ] = True
    model: Annotated[
        str, setting("Only bundles of this model; else of the one that runs, any for the first.", reloadable=True)
    ] = ""
    check_every_s: Annotated[float, setting("Ask this often.", ge=1, le=31_536_000, reloadable=True)] = 3600.0
    mib_per_s: Annotated[float, setting("Fetch no faster than this.", ge=0.001, le=100_000)] = 1.0
    most_mib: Annotated[int, setting("All bundles together may take so much.", ge=1, le=1024 * 1024)] = 4096
    reserve_mib: Annotated[int, setting("They leave so much of the disk to others.", ge=0, le=1024 * 1024)] = 64
    try_s: Annotated[float, setting("A new bundle must answer a known question in this time.", ge=1, le=3600)] = 120.0
    try_mib: Annotated[int, setting("It must do so with this much memory.", ge=64, le=1024 * 1024)] = 2048
    trial_answers: Annotated[int, setting("It is proven after so many good answers.", ge=1, le=1_000_000)] = 20
    trial_s: Annotated[float, setting("It is not proven before it has served so long.", ge=0, le=86_400)] = 60.0


class DrainSettings(Section, frozen=True):
    """Shutting down."""

    grace_s: Annotated[
        float, setting("How long shutdown waits for what is in flight.", ge=0, le=86400, reloadable=True)
    ] = 5.0


class AgentSettings(Section, frozen=True):
    """All of it."""

    state_dir: Annotated[Path, setting("All that the daemon writes lies under this folder.")] = by_default(STATE_DIR)
    bundle: Annotated[BundleSettings, setting("What is served.")] = BundleSettings()
    gateways: Annotated[GatewaysSettings, setting("Who finishes what the device begins.")] = GatewaysSettings()
    keys: Annotated[KeysSettings, setting("Who this device is, and whom it believes.")] = KeysSettings()
    http: Annotated[HttpSettings, setting("The local API over HTTP.")] = HttpSettings()
    grpc: Annotated[GrpcSettings, setting("The local API over gRPC.")] = GrpcSettings()
    requests: Annotated[RequestsSettings, setting("Applications' requests.")] = RequestsSettings()
    planner: Annotated[PlannerSettings, setting("What is best.")] = PlannerSettings()
    device: Annotated[DeviceSettings, setting("What runs on the device.")] = DeviceSettings()
    health: Annotated[HealthSettings, setting("Known answers and the watchdog.")] = HealthSettings()
    store: Annotated[StoreSettings, setting("Requests that may be answered late.")] = StoreSettings()
    updates: Annotated[UpdatesSettings, setting("Bundles over the air.")] = UpdatesSettings()
    logs: Annotated[LogsSettings, setting("What is logged.")] = LogsSettings()
    drain: Annotated[DrainSettings, setting("Shutting down.")] = DrainSettings()

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        http = self.http
        if (http.tls_certificate is None) != (http.tls_key is None):
            given, missing = ("tls_key", "tls_certificate") if http.tls_key else ("tls_certificate", "tls_key")
            yield f"http.{given}", f"http.{given} is set without http.{missing}", "TLS needs both"
        elif http.client_ca is not None and http.tls_certificate is None:
            fact = "http.client_ca is set but http has no certificate of its own"
            yield "http.client_ca", fact, "set http.tls_certificate and http.tls_key"
        for door, bind in (("http", http.bind), ("grpc", self.grpc.bind)):
            if bind != "off" and int(bind.rpartition(":")[2]) > HIGHEST_PORT:
                yield f"{door}.bind", f"{door}.bind {bind} names no port", f"take one of 0 to {HIGHEST_PORT}"
        is_open = http.bind != "off" and not _is_here(http.bind)
        if is_open and not http.insecure and http.client_ca is None:
            fact = f"http.bind {http.bind} would let any machine use this device"
            remedy = "set http.client_ca, http.tls_certificate and http.tls_key: who holds a certificate may ask"
            yield "http.bind", fact, f"{remedy}; or listen on 127.0.0.1"
        if not _is_here(self.grpc.bind):
            fact = f"grpc.bind {self.grpc.bind} is not on this machine"
            yield "grpc.bind", fact, "gRPC serves this device alone: use 127.0.0.1"
        order = self.device.providers
        if not order or len(set(order)) < len(order):
            fact = f"device.providers names {'nothing' if not order else 'one of them twice'}"
            yield "device.providers", fact, "name each at most once and one at least; cpu runs everything"
        try:
            Objective.parse(self.planner.objective)
        except InputError as error:
            yield "planner.objective", error.fact, error.remedy
        if self.health.timeout_s > 6 * self.health.every_s:
            fact = f"health.timeout_s {self.health.timeout_s:g} is more than six times health.every_s"
            yield "health.timeout_s", fact, "a hang would be noticed late: ask less often or wait less long"


_LAYERS = Layers(AgentSettings, PREFIX)
sources = _LAYERS.sources
load_settings = _LAYERS.load


def from_flags(
    *,
    bundle: Path | None = None,
    gateways: Sequence[str] = (),
    state_dir: Path | None = None,
    http: str | None = None,
    socket: Path | None = None,
    grpc: str | None = None,
    deadline_ms: float | None = None,
    threads: int | None = None,
    slowdown: float | None = None,
    placements: str | None = None,
    fault_file: Path | None = None,
    keys: Path | None = None,
    server_key: str | None = None,
    insecure: bool | None = None,
    wait_s: float | None = None,
) -> dict[str, object]:
    """Flags of `edge-agent run` as overrides for `load`; what is None (or no gateway) was not given.

    `http` is HOST:PORT or `off`: the Unix socket alone. `grpc` is HOST:PORT.
    """
    wanted: dict[str, object] = {
        "bundle.path": _text(bundle),
        "bundle.placements": placements or None,
        "gateways.endpoints": list(gateways) or None,
        "gateways.insecure": insecure,
        "gateways.wait_s": wait_s,
        "keys.dir": _text(keys),
        "keys.server_key": server_key,
        "http.bind": http,
        "http.unix_socket": _text(socket),
        "grpc.enabled": None if grpc is None else True,
        "grpc.bind": grpc,
        "requests.deadline_ms": deadline_ms,
        "device.threads": threads,
        "device.slowdown": slowdown,
        "device.fault_file": _text(fault_file),
        "state_dir": _text(state_dir),
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _is_here(bind: str) -> bool:
    """Whether HOST:PORT is this machine alone; a name may mean any."""
    host = bind.rpartition(":")[0].strip("[]")
    return host == "localhost" or is_local(host)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
