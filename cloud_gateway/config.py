"""Everything that a gateway can be told, as typed sections; each field says what it means and what it may be.

A field marked `reloadable` is applied while it serves (`protocol/settings_reload.py`); the rest needs a restart.
How files, the environment, secrets and the command line become these values stands in `protocol/settings.py`;
docs/configuration.md lists all fields, and a test compares it with this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from protocol.settings import Secret, Section, setting
from protocol.settings_fields import key_of
from protocol.settings_sources import Layers, LogsSettings

PREFIX = "ISTHMUS_GATEWAY"

MIB = 1024 * 1024

Count = Annotated[int, setting("", ge=1, le=1_000_000)]
BatchBound = Annotated[int, setting("", ge=1, le=4096)]
Delay = Annotated[float, setting("", ge=0, le=10_000)]
Mebibytes = Annotated[int, setting("", ge=1, le=1024 * 1024)]
Auto = Literal["auto"]
_TCP = r"^tcp://([^:/\s]+|\[[0-9a-fA-F:.]+\]):\d{1,5}$"
_HOST_PORT = r"^([^:/\s]+|\[[0-9a-fA-F:.]+\]):\d{1,5}$"
_URL = r"^https?://[^\s]+$"


HalfTails = Literal["auto", "never"]
Profiles = Literal["auto", "one"]
EngineName = Literal["tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime-cpu"]


class ZmqSettings(Section, frozen=True):
    """Where agents connect."""

    bind: Annotated[str, setting("Where agents connect; port 0 picks one.", pattern=_TCP, wanted="tcp://HOST:PORT")] = (
        "tcp://127.0.0.1:7447"
    )
    insecure: Annotated[bool, setting("Listen off this machine in plain text.")] = False
    front: Annotated[
        Literal["thread", "process"],
        setting("Run the socket in a thread, or in a supervised process of its own that may crash alone."),
    ] = "thread"
    memory_limit_mib: Annotated[int, setting("Memory of a front that is a process.", ge=256, le=1024 * 1024)] = 2048


class HttpSettings(Section, frozen=True):
    """The standard API over HTTP, with metrics and the status page."""

    enabled: Annotated[bool, setting("Serve HTTP.")] = True
    bind: Annotated[str, setting("Where to listen; port 0 picks one.", pattern=_HOST_PORT, wanted="HOST:PORT")] = (
        "127.0.0.1:7480"
    )
    insecure: Annotated[bool, setting("Listen off this machine without TLS.")] = False
    unix_socket: Annotated[Path | None, setting("Listen on this Unix socket as well (mode 0660).")] = None
    tls_certificate: Annotated[Path | None, setting("PEM file of the certificate and its chain.")] = None
    tls_key: Annotated[Path | None, setting("PEM file of the certificate's private key.")] = None
    client_ca: Annotated[Path | None, setting("PEM file of those who may sign client certificates.")] = None
    max_body_mib: Annotated[int, setting("Largest body, also after it is unpacked.", ge=1, le=4096)] = 64
    max_connections: Annotated[
        int,
        setting(
            "Connections at once; idle ones make way, and 8 more may ask for health and metrics.", ge=1, le=100_000
        ),
    ] = 512
    header_timeout_s: Annotated[float, setting("A request's head must be here by then.", ge=0.1, le=3600)] = 10.0
    body_timeout_s: Annotated[float, setting("A request's body must be here by then.", ge=0.1, le=3600)] = 30.0
    keep_alive_s: Annotated[float, setting("An idle connection is closed after this.", ge=1, le=3600)] = 60.0
    status_page: Annotated[bool, setting("Serve the status page at /status.")] = True


class GrpcSettings(Section, frozen=True):
    """The standard API over gRPC (extra `grpc`)."""

    enabled: Annotated[bool, setting("Serve gRPC.")] = False
    bind: Annotated[str, setting("Where to listen; port 0 picks one.", pattern=_HOST_PORT, wanted="HOST:PORT")] = (
        "127.0.0.1:7481"
    )
    insecure: Annotated[bool, setting("Listen off this machine without TLS.")] = False
    tls_certificate: Annotated[Path | None, setting("PEM file of the certificate and its chain.")] = None
    tls_key: Annotated[Path | None, setting("PEM file of the certificate's private key.")] = None
    client_ca: Annotated[Path | None, setting("PEM file of those who may sign client certificates.")] = None
    max_message_mib: Annotated[int, setting("Largest message.", ge=1, le=2047)] = 64
    max_concurrent: Annotated[int, setting("Calls at once.", ge=1, le=100_000)] = 512


class ModelOverride(Section, frozen=True):
    """What one model has otherwise than the rest; None leaves it to [scheduling] and [cache]."""

    max_batch_size: Annotated[BatchBound | Auto | None, setting("Instead of scheduling.max_batch_size.")] = None
    instances: Annotated[Count | None, setting("Instead of scheduling.instances.")] = None
    threads: Annotated[Count | None, setting("Instead of scheduling.threads.")] = None
    efficiency_delay_ms: Annotated[Delay | None, setting("Instead of scheduling.efficiency_delay_ms.")] = None
    engines: Annotated[tuple[EngineName, ...], setting("Instead of engines.order; empty leaves it at that.")] = ()
    gpu_memory_mib: Annotated[
        Mebibytes | None, setting("Memory of the GPU for each of its engines; else as its size suggests.")
    ] = None
    half: Annotated[HalfTails | None, setting("Instead of engines.half.")] = None
    cache: Annotated[bool | None, setting("Whether its answers are cached where the cache is enabled.")] = None


class ModelsSettings(Section, frozen=True):
    """What is served."""

    repository: Annotated[Path | None, setting("Folder with NAME/VERSION/ for every model.")] = None
    bundles: Annotated[tuple[Path, ...], setting("Bundles to serve besides, each by itself.")] = ()
    mode: Annotated[
        Literal["explicit", "poll", "watch"],
        setting(
            "Models come and go on request, when the folder is looked at again, or when the system reports a change."
        ),
    ] = "explicit"
    load_at_start: Annotated[
        tuple[str, ...], setting("Explicit mode: names to load at the start; * stands for all.")
    ] = ("*",)
    poll_s: Annotated[
        float, setting("Poll mode: look at the folder this often.", ge=0.1, le=86400, reloadable=True)
    ] = 5.0
    policy: Annotated[
        Literal["latest", "specific", "all"], setting("Which versions of a model are served.", reloadable=True)
    ] = "latest"
    keep: Annotated[int, setting("Policy latest: so many versions.", ge=1, le=100, reloadable=True)] = 1
    versions: Annotated[tuple[Count, ...], setting("Policy specific: these versions.", reloadable=True)] = ()
    warm_up_s: Annotated[float, setting("Measuring a lane at its start may take so long.", ge=0.01, le=600)] = 1.5
    override: Annotated[dict[str, ModelOverride], setting("What single models have otherwise, by name.")] = {}  # noqa: RUF012 - msgspec copies an empty dict for every struct


class SchedulingSettings(Section, frozen=True):
    """How work is put on engines."""

    workers: Annotated[
        Count | Auto, setting("Threads that run engines; auto is as many as fit, one processor left to the doors.")
    ] = "auto"
    threads: Annotated[int, setting("Intra-op threads of each engine.", ge=1, le=1024)] = 1
    max_batch_size: Annotated[
        BatchBound | Auto, setting("Bound of a batch; auto stops where measured batches no longer pay.")
    ] = "auto"
    instances: Annotated[
        Count | Auto, setting("Batches of one lane that may run at once; auto is as many as there are workers.")
    ] = "auto"
    efficiency_delay_ms: Annotated[
        float, setting("Let work wait this long for company; 0 never waits.", ge=0, le=10_000, reloadable=True)
    ] = 0.0
    ageing_s: Annotated[
        float, setting("Waiting this long raises work by one priority.", ge=0.001, le=3600, reloadable=True)
    ] = 0.5
    merge: Annotated[
        Literal["auto", "never"],
        setting("Let cuts of one model share batches where their bundle has a common suffix and it measures faster."),
    ] = "auto"
    quantile: Annotated[float, setting("Quantile of measured durations that predictions use.", ge=0.5, le=0.999)] = 0.9
    margin: Annotated[
        float, setting("Predictions are this many times what was measured.", ge=1, le=10, reloadable=True)
    ] = 1.0


class LimitsSettings(Section, frozen=True):
    """Bounds, so that one sender cannot hold the others. Rates belong to keys: `cloud-gateway keys add`."""

    pending_requests: Annotated[int, setting("Requests held at once.", ge=1, le=1_000_000, reloadable=True)] = 1024
    pending_mib: Annotated[int, setting("Payload held at once.", ge=1, le=1024 * 1024, reloadable=True)] = 256
    credit_requests: Annotated[
        int, setting("Requests that one agent may have in flight.", ge=1, le=100_000, reloadable=True)
    ] = 32
    credit_mib: Annotated[
        int, setting("Payload that one agent may have in flight.", ge=1, le=65536, reloadable=True)
    ] = 32
    connections: Annotated[
        int, setting("Agents connected at once, where the front is a process.", ge=1, le=100_000)
    ] = 1024


class DrainSettings(Section, frozen=True):
    """Shutting down."""

    grace_s: Annotated[
        float, setting("How long shutdown waits for what is in flight.", ge=0, le=86400, reloadable=True)
    ] = 10.0


class EnginesSettings(Section, frozen=True):
    """What runs the graphs."""

    order: Annotated[
        tuple[EngineName, ...],
        setting("Engines in order of preference; without any, all that this machine has, fastest first."),
    ] = ()
    device: Annotated[int, setting("Number of the GPU.", ge=0, le=63)] = 0
    gpu_memory_mib: Annotated[
        Mebibytes | Auto, setting("Memory of the GPU for all lanes; auto is nine tenths of what it has.")
    ] = "auto"
    plans_dir: Annotated[
        Path | None, setting("Folder where plans that were built here are kept; else they are built at every start.")
    ] = None
    profiles: Annotated[
        Profiles,
        setting(
            "Build TensorRT's plans with kernels for single rows beside those for batches (auto), or for all in one."
        ),
    ] = "auto"
    retry_s: Annotated[
        float,
        setting(
            "An engine that failed rests this long before it is tried again; each time twice as long.", ge=0.01, le=3600
        ),
    ] = 2.0
    longest_retry_s: Annotated[float, setting("It rests no longer than this.", ge=0.01, le=86400)] = 300.0
    tolerance: Annotated[
        float,
        setting(
            "An engine serves if its answer differs from the last one's in the order by this share of the largest "
            "value at most.",
            ge=0,
            le=1,
        ),
    ] = 0.02
    half: Annotated[
        HalfTails,
        setting("Run tails in float16, where their bundle holds that form, on engines that gain by it: auto or never."),
    ] = "auto"
    half_tolerance: Annotated[
        float, setting("Instead of tolerance, for an engine that runs a tail's float16 form.", ge=0, le=1)
    ] = 0.1


class CacheSettings(Section, frozen=True):
    """Answers that are kept for equal requests."""

    enabled: Annotated[bool, setting("Keep answers.")] = False
    size_mib: Annotated[int, setting("Size of the cache in this process.", ge=1, le=1024 * 1024, reloadable=True)] = 64
    ttl_s: Annotated[float, setting("An answer is kept this long.", ge=0.001, le=31_536_000, reloadable=True)] = 60.0
    redis_url: Annotated[
        Secret | None,
        setting("Keep answers in this Redis as well (extra `redis`).", wanted="redis://[:PASSWORD@]HOST:PORT[/DB]"),
    ] = None
    redis_timeout_ms: Annotated[float, setting("Redis is asked for at most this long.", ge=1, le=10_000)] = 20.0


class AccessSettings(Section, frozen=True):
    """Who may do what."""

    keys_dir: Annotated[
        Path | None, setting("Folder of the gateway's keys and of who may connect; with it, plain text is refused.")
    ] = None
    admin: Annotated[bool, setting("Serve routes that load and unload models.")] = False
    audit_log: Annotated[
        Path | None, setting("File of the hash-chained record of admin actions; else keys_dir/audit.log.")
    ] = None
    failed_attempts_per_minute: Annotated[
        int, setting("Wrong credentials that one address may show.", ge=1, le=100_000, reloadable=True)
    ] = 10


class MetricsSettings(Section, frozen=True):
    """What is measured."""

    enabled: Annotated[bool, setting("Serve metrics at /metrics.")] = True
    max_scopes: Annotated[
        int, setting("Placements of versions with labels of their own; more count as other.", ge=1, le=10_000)
    ] = 64
    deep_timeout_s: Annotated[float, setting("Deep health gives up on an engine after this.", ge=0.1, le=600)] = 5.0
    deep_keep_s: Annotated[float, setting("A verdict of deep health stands this long.", ge=0, le=3600)] = 10.0


class TracingSettings(Section, frozen=True):
    """Spans of sampled requests (extra `tracing`)."""

    enabled: Annotated[bool, setting("Export spans.")] = False
    endpoint: Annotated[
        str, setting("Where OTLP over HTTP is taken.", pattern=_URL, wanted="http://HOST:PORT/v1/traces")
    ] = "http://127.0.0.1:4318/v1/traces"
    service_name: Annotated[str, setting("What traces call this gateway.")] = "isthmus-gateway"
    headers: Annotated[
        Secret | None, setting("Headers for the collector.", wanted="NAME=VALUE, several with commas")
    ] = None


class SuperviseSettings(Section, frozen=True):
    """A front that is a process of its own is started again when it ends."""

    max_restarts: Annotated[int, setting("More restarts within window_s end the gateway.", ge=0, le=10_000)] = 10
    window_s: Annotated[float, setting("The time in which restarts are counted.", ge=1, le=86400)] = 60.0
    pause_s: Annotated[float, setting("Wait this long before a restart.", ge=0, le=600)] = 0.2


class UpdatesSettings(Section, frozen=True):
    """Bundles that devices may fetch from here (docs/updates.md)."""

    offer: Annotated[
        tuple[str, ...], setting("Models whose served bundle is offered; * stands for all.", reloadable=True)
    ] = ()
    mib_per_s: Annotated[
        float, setting("Files leave this fast, for all devices together.", ge=0.001, le=100_000, reloadable=True)
    ] = 4.0
    revocations: Annotated[
        Path | None, setting("The signed list of bundles that nobody may run any more; devices are told of it.")
    ] = None


class GatewaySettings(Section, frozen=True):
    """All of it."""

    zmq: Annotated[ZmqSettings, setting("Where agents connect.")] = ZmqSettings()
    http: Annotated[HttpSettings, setting("The standard API over HTTP, metrics and the status page.")] = HttpSettings()
    grpc: Annotated[GrpcSettings, setting("The standard API over gRPC.")] = GrpcSettings()
    models: Annotated[ModelsSettings, setting("What is served.")] = ModelsSettings()
    scheduling: Annotated[SchedulingSettings, setting("How work is put on engines.")] = SchedulingSettings()
    limits: Annotated[LimitsSettings, setting("Bounds, so that one sender cannot hold the others.")] = LimitsSettings()
    drain: Annotated[DrainSettings, setting("Shutting down.")] = DrainSettings()
    engines: Annotated[EnginesSettings, setting("What runs the graphs.")] = EnginesSettings()
    cache: Annotated[CacheSettings, setting("Answers kept for equal requests.")] = CacheSettings()
    access: Annotated[AccessSettings, setting("Who may do what.")] = AccessSettings()
    logs: Annotated[LogsSettings, setting("What is logged.")] = LogsSettings()
    metrics: Annotated[MetricsSettings, setting("What is measured.")] = MetricsSettings()
    tracing: Annotated[TracingSettings, setting("Spans of sampled requests.")] = TracingSettings()
    supervise: Annotated[SuperviseSettings, setting("When the front's process ends.")] = SuperviseSettings()
    updates: Annotated[UpdatesSettings, setting("Bundles that devices may fetch.")] = UpdatesSettings()

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        for name, door in (("http", self.http), ("grpc", self.grpc)):
            if (door.tls_certificate is None) != (door.tls_key is None):
                given, missing = ("tls_key", "tls_certificate") if door.tls_key else ("tls_certificate", "tls_key")
                yield f"{name}.{given}", f"{name}.{given} is set without {name}.{missing}", "TLS needs both"
            elif door.client_ca is not None and door.tls_certificate is None:
                fact = f"{name}.client_ca is set but {name} has no certificate of its own"
                yield f"{name}.client_ca", fact, f"set {name}.tls_certificate and {name}.tls_key"
        if self.models.policy == "specific" and not self.models.versions:
            fact = "models.policy is specific but models.versions names none"
            yield "models.policy", fact, "list the versions to serve"
        if self.models.repository is None and self.models.mode != "explicit":
            fact = f"models.mode is {self.models.mode} but there is no models.repository"
            yield "models.mode", fact, "name the folder to look at"
        orders = {"engines.order": self.engines.order}
        orders |= {key_of(("models", "override", n, "engines")): o.engines for n, o in self.models.override.items()}
        for key, order in orders.items():
            for twice in sorted({name for name in order if order.count(name) > 1}):
                yield key, f"{key} names {twice} twice", "name each engine once, the preferred first"
        if self.engines.longest_retry_s < self.engines.retry_s:
            yield "engines.retry_s", "engines.retry_s is more than engines.longest_retry_s", "raise the longest"
        if self.access.admin and self.access.keys_dir is None:
            fact = "access.admin is set but access.keys_dir is not"
            yield "access.admin", fact, "make keys with `cloud-gateway keys init`: administration needs an API key"


_LAYERS = Layers(GatewaySettings, PREFIX)
sources = _LAYERS.sources
load_settings = _LAYERS.load


def from_flags(
    *,
    bundles: Sequence[Path] = (),
    repository: Path | None = None,
    bind: str | None = None,
    http: str | None = None,
    grpc: str | None = None,
    insecure: bool | None = None,
    keys: Path | None = None,
    threads: int | None = None,
    max_batch_size: int | None = None,
    drain_s: float | None = None,
    log_level: str | None = None,
) -> dict[str, object]:
    """Flags of `cloud-gateway serve` as overrides for `load`; what is None (or no bundle) was not given.

    `http` and `grpc` are HOST:PORT, or `off`.
    """
    wanted: dict[str, object] = {
        "models.bundles": [str(path) for path in bundles] or None,
        "models.repository": None if repository is None else str(repository),
        "zmq.bind": bind,
        "zmq.insecure": insecure,
        "access.keys_dir": None if keys is None else str(keys),
        "scheduling.threads": threads,
        "scheduling.max_batch_size": max_batch_size,
        "drain.grace_s": drain_s,
        "logs.level": log_level,
    }
    for door, where in (("http", http), ("grpc", grpc)):
        if where is not None:
            wanted[f"{door}.enabled"] = where != "off"
            wanted[f"{door}.bind"] = None if where == "off" else where
    return {key: value for key, value in wanted.items() if value is not None}
