"""The gateway: settings, lanes, engine threads, doors and observers put together.

with Gateway(load_settings(env=os.environ, overrides=from_flags(bundles=[path])).settings) as gateway:
    print(gateway.endpoint)

order of starting: port, keys, lanes and their first versions, engine threads, doors
order of ending:   refuse new work, finish what is held, doors, engine threads, lanes
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.authority import Authority
from cloud_gateway.access.enrolment import Enrolment
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.cached_desk import CachedDesk
from cloud_gateway.config import MIB, GatewaySettings
from cloud_gateway.desk import Desk
from cloud_gateway.doors.frontend import Frontend, Shutdown
from cloud_gateway.doors.supervisor import FrontProcess
from cloud_gateway.models.catalogue import Catalogue
from cloud_gateway.models.keeper import Keeper, VersionStatus
from cloud_gateway.models.lanes import Lane
from cloud_gateway.models.making import Making, gpu_memory_for_lanes
from cloud_gateway.models.overrides import overridden
from cloud_gateway.models.repository import Repository
from cloud_gateway.models.states import State
from cloud_gateway.models.worker import Worker
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.offers.offering import Brought, Offering
from cloud_gateway.parameters import defaults_of, engine_threads, front_plan, limits_of, policy_of, tracing_of
from cloud_gateway.seeing.health import DeepCheck
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.observer import Observer
from cloud_gateway.seeing.probe import Probe, remembered
from cloud_gateway.work import Crashed, Item, NotComputed
from protocol import sockets
from protocol.engines.catalogue import KINDS, Kinds
from protocol.errors import InputError
from protocol.messages import RejectCode
from protocol.seeing.health import Beats, known_input
from protocol.seeing.logs import Logs

if TYPE_CHECKING:
    from cloud_gateway.cache_redis import RedisShelf
    from cloud_gateway.doors.standard import StandardDoor

JOIN_S = 10.0
FIRST_LOAD_S = 3600.0


class Gateway:
    """Serves until closed. Constructing has no side effects; `start` loads, warms up, binds and serves."""

    def __init__(self, settings: GatewaySettings, *, logs: Logs | None = None, kinds: Kinds = KINDS) -> None:
        """`kinds` are the engines that settings may name."""
        models = settings.models
        if not models.bundles and models.repository is None:
            raise InputError(
                "nothing to serve", "name a bundle written by `partitioner split`, or a model folder with --models"
            )
        self.settings = settings
        self.drain_s = settings.drain.grace_s
        self.fatal: BaseException | None = None
        self.stopped = threading.Event()
        self.logs, self._owns_logs = logs or Logs(level="error"), logs is None
        self.log = self.logs.get()
        self.ledger = Ledger(now=time.monotonic(), most_scopes=settings.metrics.max_scopes)
        self.beats = Beats()
        scheduling = settings.scheduling
        workers = engine_threads(scheduling.threads) if scheduling.workers == "auto" else scheduling.workers
        self.desk = Desk(limits_of(settings), threads=workers)
        self.workshop = Workshop(
            told=self.told,
            crashed=self.crash,
            gpu_memory=lambda: gpu_memory_for_lanes(settings.engines, self.told),
        )
        self.catalogue = Catalogue(
            self.desk,
            defaults_of(settings, workers),
            orphaned=_refuse_orphans,
            engine=Making(settings.engines, self.workshop, kinds=kinds, found=self._found_engines),
            settings_of=lambda version: overridden(version.settings, settings, version.name),
            warmed=self._remember,
            closed=lambda lane: self.deep.forget(lane.key),
            forgotten=self.ledger.forget,
            told=self.told,
        )
        self.keeper = Keeper(
            self.catalogue,
            Repository(models.repository, models.bundles, policy=policy_of(settings)),
            mode=models.mode,
            poll_s=models.poll_s,
            load_at_start=models.load_at_start,
            changed=self._version_changed,
            warn=lambda warning: self.log.warning("model_folder", reason=warning),
            crashed=self.crash,
        )
        metrics = settings.metrics
        probe = Probe(self.desk, self.catalogue.lane, timeout_s=metrics.deep_timeout_s)
        self.deep = DeepCheck(probe.ask, timeout_s=metrics.deep_timeout_s, keep_s=metrics.deep_keep_s)
        self.observer = Observer(
            self.desk,
            self.catalogue,
            self.keeper,
            self.ledger,
            agents=lambda: self.frontend.agents,
            events=self.stats,
            workshop=self.workshop,
        )
        updates = settings.updates
        self.offering = Offering(
            lambda: [published.version for published in self.catalogue.published()],
            lambda brought: self.frontend.post_all([brought]),
            offer=updates.offer, rate=updates.mib_per_s * MIB, revocations=updates.revocations,
            server_keys=lambda: self.authority.server_keys(), told=self.told, crashed=self.crash,
        )  # fmt: skip
        self.cache, self._far = self._make_cache()
        self.tracing = tracing_of(settings)
        self._workers = [
            Worker(
                n,
                self.desk,
                self.ledger,
                keep=None if self.cache is None else self.cache.keep,
                crashed=self.crash,
            )
            for n in range(workers)
        ]
        access = settings.access
        folder = None if access.keys_dir is None else KeyFolder(access.keys_dir)
        self.authority = Authority(folder, insecure=settings.zmq.insecure, told=self.told, is_full=self._is_full)
        self.enrolment = Enrolment(
            folder,
            None if folder is None else AuditLog(access.audit_log or folder.audit_log),
            answer=lambda route, enrolled: self.frontend.post_all([Brought(route, enrolled)]),
            changed=self.authority.look_soon,
            told=self.told,
        )
        self._wanted = sockets.resolve(sockets.parse_endpoint(settings.zmq.bind))
        if folder is None:
            sockets.require_loopback(self._wanted, insecure=settings.zmq.insecure, doing="listening on")
        self.front: FrontProcess | None = None
        if settings.zmq.front == "process":
            self.front = FrontProcess(front_plan(settings, self._wanted), told=self.told, gave_up=self._crashed)
        self.standard: StandardDoor | None = None
        self._started = False
        self._closed = False

    def start(self) -> None:
        """Ready when it returns.

        Raises BundleError, EngineError, InputError or NetworkError, and leaves nothing running then.
        """
        sys.setswitchinterval(0.0005)
        self._context = sockets.make_context()
        try:
            self.authority.start(self._context, moved=lambda: self.frontend.move())
            # Bind first: a port in use should not cost a warm-up. Nobody is answered before the loop runs.
            socket, self.endpoint = self._bind()
            self.frontend = Frontend(
                socket, self.endpoint, self.catalogue, self.desk, self.ledger,
                authority=self.authority, enrolment=self.enrolment, cache=self.cache, tracing=self.tracing,
                offering=self.offering, beats=self.beats, told=self.told, crashed=self._crashed,
                relayed=self.front is not None,
            )  # fmt: skip
            try:
                self.standard = self._standard_door()
                self._load_first()
                if self.standard is not None:
                    self.standard.start()
            except BaseException:
                if self.standard is not None:
                    self.standard.close(0.0)
                if self.keeper.stop() and self.workshop.stop():
                    self.catalogue.close()
                socket.close(0)
                raise
        except BaseException:
            self.authority.stop()
            self._context.term()
            if self.front is not None:
                self.front.stop()
            self._close_logs()
            raise
        if self._far is not None:
            self._far.start()
        for worker in self._workers:
            worker.start()
        self.frontend.start()
        self.offering.start()
        self.enrolment.start()
        self._started = True
        if self.front is not None:
            try:
                self.front.start()
            except BaseException:
                self.close()
                raise

    def stats(self) -> dict[str, int]:
        """Counters since the start: requests, results, rejections by code, duplicates, wire errors, ..."""
        counts = dict(self.frontend.stats) | {f"access_{k}": n for k, n in self.authority.stats.items()}
        if self.standard is not None:
            counts |= self.standard.stats()
        counts |= {f"offers_{what}": n for what, n in self.offering.stats.items()}
        counts |= {f"enrolment_{what}": n for what, n in self.enrolment.stats.items()}
        if self.cache is not None:
            counts |= {f"cache_{what}": n for what, n in self.cache.counts.items()}
        if self.front is not None:
            counts |= {f"front_{what}": n for what, n in self.front.stats().items()}
        if self.tracing is not None:
            counts["traces_left_out"] = self.tracing.left_out
        return counts

    def close(self) -> None:
        """Drain: refuse new work, finish what is held (at most `drain.grace_s`), stop. Safe to call twice."""
        if self._closed or not self._started:
            return
        self._closed = True
        grace_s = self.drain_s
        self.offering.stop()
        self.enrolment.stop()
        self.desk.drain()
        self.frontend.post_all([Shutdown(grace_s)])
        # First, or who waits for a load or unload would hold the door open. False: a load is still under way, and would
        # meet what was taken from it.
        may_close = self.keeper.stop() and self.workshop.stop()
        if self.standard is not None:
            self.standard.close(grace_s)
        self.frontend.join(grace_s + 5)
        self.desk.stop()
        for worker in self._workers:
            worker.join(JOIN_S)
        if may_close:
            self.catalogue.close()
        self.authority.stop()
        if self._far is not None:
            self._far.stop()
        if self.tracing is not None:
            self.tracing.close()
        self._context.term()
        if self.front is not None:
            self.front.stop()  # not before the last answers are on their way to it
        self._close_logs()
        self.stopped.set()

    def _close_logs(self) -> None:
        """Others write to those that were handed in, and close them."""
        if self._owns_logs:
            self.logs.close()

    def told(self, event: str, text: str) -> None:
        """For rooms that do not know the log: something happened that an operator should see."""
        (self.log.info if event == "engine_build" else self.log.warning)(event, reason=text)

    def crash(self, error: BaseException) -> None:
        """A bug ended one of our threads: what is pending is answered, then the gateway stops. From any thread."""
        self.frontend.post_all([Crashed(error)])

    def retune_lanes(self, settings: GatewaySettings) -> None:
        """Schedule from now on as `settings.scheduling` says, lanes that are open and those to come."""
        self.catalogue.defaults = defaults = defaults_of(settings, self.desk.threads)
        for lane in self.catalogue.lanes.values():
            delay_s = lane.rules.delay_s if lane.rules.own_delay else defaults.delay_s
            self.desk.retune(lane, delay_s=delay_s, ageing_s=defaults.ageing_s, margin=defaults.margin)

    def _bind(self) -> tuple[sockets.Socket, sockets.Endpoint]:
        """The socket that the frontend serves, and where agents connect. Raises NetworkError."""
        if self.front is not None:
            self.front.listen()
            return sockets.hub(self._context, self.front.hub), self.front.endpoint
        secret = self.authority.secrets(self._wanted).get(self._wanted)
        return sockets.router(self._context, self._wanted, secret=secret, guarded=True)

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _load_first(self) -> None:
        """Load what is to be served at the start; a bundle that was named and cannot be served is an error."""
        self.keeper.start()
        self.keeper.wait_settled(FIRST_LOAD_S)
        known = {status.name for status in self.keeper.index()}
        if strangers := sorted(self.settings.models.override.keys() - known):
            here = f"here are {', '.join(sorted(known))}" if known else "there is none yet"
            self.told(
                "model_override", f"models.override names {', '.join(strangers)}, and no model is called so; {here}"
            )
        if self.settings.models.repository is None:
            for status in self.keeper.index():
                if status.state is State.ERROR and status.cause is not None:
                    raise status.cause

    def _standard_door(self) -> StandardDoor | None:
        """Its port is taken, and nobody answered yet."""
        if not (self.settings.http.enabled or self.settings.grpc.enabled):
            return None
        from cloud_gateway.doors.standard import StandardDoor  # the HTTP libraries are slow to import

        door = StandardDoor(self)
        door.bind()
        return door

    def _make_cache(self) -> tuple[CachedDesk | None, RedisShelf | None]:
        cache = self.settings.cache
        if not cache.enabled:
            return None, None
        far = None
        if cache.redis_url is not None:
            from cloud_gateway.cache_redis import RedisShelf

            url, timeout_s = cache.redis_url.reveal(), cache.redis_timeout_ms / 1e3
            far = RedisShelf(url, timeout_s=timeout_s, crashed=self.crash)
        kept = CachedDesk(
            self.desk.submit,
            size_nbytes=cache.size_mib * MIB,
            ttl_s=cache.ttl_s,
            wants=lambda segment: segment.may_cache,
            far=far,
        )
        return kept, far

    def _is_full(self) -> bool:
        """A front that is a process counts the connections themselves."""
        frontend: Frontend | None = getattr(self, "frontend", None)  # libzmq asks as soon as the port is bound
        return self.front is None and frontend is not None and frontend.agents >= self.settings.limits.connections

    def _remember(self, lane: Lane) -> None:
        inputs = known_input(lane.engine.inputs)
        outputs = remembered(lane, inputs)
        if outputs is not None:
            self.deep.remember(lane.key, inputs, outputs)

    def _found_engines(self, order: Sequence[str], absent: Mapping[str, str]) -> None:
        reasons: dict[str, list[str]] = {}
        for kind, why in absent.items():
            reasons.setdefault(why, []).append(kind)
        lacking = "; ".join(f"{', '.join(kinds)}: {why}" for why, kinds in reasons.items())
        self.log.info("engines", order=", ".join(order), absent=lacking)

    def _version_changed(self, status: VersionStatus) -> None:
        say = self.log.error if status.state is State.ERROR else self.log.info
        say("model", model=status.name, version=status.version, state=str(status.state), reason=status.reason)

    # ---- ends -------------------------------------------------------------------------------------------------------

    def _crashed(self, error: BaseException) -> None:
        self.fatal = error
        if self.standard is not None:
            self.standard.crash(error)
        traceback.print_exception(error, file=sys.stderr)
        self.log.error("crashed", reason=f"{type(error).__name__}: {error}")
        self.stopped.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _refuse_orphans(items: list[Item]) -> None:
    """Requests whose lane was closed under them; only a forced end does that."""
    for item in items:
        item.door.post_all([NotComputed(item, RejectCode.DRAINING, "the model was unloaded")])
