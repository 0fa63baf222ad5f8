"""How fast and how much: buckets that fill with time, and what each tenant has in flight. `now` is monotonic seconds.

A bucket holds one second's worth (at least one request), so that a caller that was silent may be brisk for a moment. A
body may be larger than the bucket: the bucket then goes into debt, and the next request waits until it is paid.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from cloud_gateway.access.roster import Allowance

MOST_ADDRESSES = 10_000


@dataclass(slots=True)
class Bucket:
    """`rate_per_s` flows in, at most `size` stays."""

    rate_per_s: float
    size: float
    level: float
    at: float

    @classmethod
    def full(cls, rate_per_s: float, *, size: float, now: float) -> Bucket:
        return cls(rate_per_s, size, size, now)

    def wait_s(self, need: float, *, now: float) -> float:
        """How long until `need` (or as much as the bucket can hold) is there; 0 if it is. Takes nothing."""
        self._fill(now)
        lacking = min(need, self.size) - self.level
        return max(lacking / self.rate_per_s, 0.0)

    def take(self, amount: float, *, now: float) -> None:
        """Take `amount`, into debt if that is more than is there."""
        self._fill(now)
        self.level -= amount

    def _fill(self, now: float) -> None:
        self.level = min(self.size, self.level + (now - self.at) * self.rate_per_s)
        self.at = now


@dataclass(slots=True)
class _Use:
    allowance: Allowance
    requests: Bucket | None
    nbytes: Bucket | None


@dataclass(frozen=True, slots=True)
class Excess:
    """What was too much, and when to come back; None if coming back is of no use."""

    reason: str
    retry_after_s: float | None


class Meter:
    """What every tenant uses up. One entry per tenant that has an allowance; a changed allowance begins anew."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}
        self._in_flight: Counter[str] = Counter()

    def enter(self, tenant: str, allowance: Allowance, *, nbytes: int, now: float) -> Excess | None:
        """Count a request in, or say why it may not come in. What came in must `leave`."""
        use = self._use(tenant, allowance, now)
        if allowance.body_nbytes is not None and nbytes > allowance.body_nbytes:
            return Excess(f"{nbytes} bytes are more than this key's {allowance.body_nbytes} a request", None)
        if allowance.concurrent is not None and self._in_flight[tenant] >= allowance.concurrent:
            return Excess(f"this key has {allowance.concurrent} requests in flight, its limit", 0.05)
        if use.requests is not None and (wait_s := use.requests.wait_s(1, now=now)) > 0:
            return Excess(f"this key may send {allowance.requests_per_s:g} requests a second", wait_s)
        if use.nbytes is not None and (wait_s := use.nbytes.wait_s(nbytes, now=now)) > 0:
            return Excess(f"this key may send {allowance.bytes_per_s:g} bytes a second", wait_s)
        if use.requests is not None:
            use.requests.take(1, now=now)
        if use.nbytes is not None:
            use.nbytes.take(nbytes, now=now)
        self._in_flight[tenant] += 1
        return None

    def leave(self, tenant: str) -> None:
        self._in_flight[tenant] -= 1
        if self._in_flight[tenant] <= 0:
            del self._in_flight[tenant]

    def in_flight(self, tenant: str) -> int:
        return self._in_flight[tenant]

    def _use(self, tenant: str, allowance: Allowance, now: float) -> _Use:
        use = self._uses.get(tenant)
        if use is None or use.allowance != allowance:
            rate, flow = allowance.requests_per_s, allowance.bytes_per_s
            use = self._uses[tenant] = _Use(
                allowance,
                Bucket.full(rate, size=max(rate, 1.0), now=now) if rate else None,
                Bucket.full(flow, size=flow, now=now) if flow else None,
            )
        return use


class Failures:
    """How often each address has shown a wrong credential. Remembers the addresses that did so last."""

    def __init__(self, *, per_minute: int, most_addresses: int = MOST_ADDRESSES) -> None:
        self.per_minute = per_minute
        self._most = most_addresses
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def wait_s(self, address: str, *, now: float) -> float:
        """How long this address has to wait before it may fail again; 0 if it need not."""
        bucket = self._buckets.get(address)
        return bucket.wait_s(1, now=now) if bucket is not None else 0.0

    def failed(self, address: str, *, now: float) -> None:
        bucket = self._buckets.get(address)
        if bucket is None or bucket.size != self.per_minute:
            bucket = Bucket.full(self.per_minute / 60, size=float(self.per_minute), now=now)
            self._buckets[address] = bucket
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(address)
        bucket.take(1, now=now)

    def __len__(self) -> int:
        return len(self._buckets)
