"""One request's time taken apart, and where another placement takes over: what both explanations are made of. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from protocol.latency import LinkState, PlacementCost

Stage = Literal["device", "encoding", "upload", "round trip", "cloud", "download"]
Condition = Literal["uplink_mbit", "rtt_s", "edge_factor", "cloud_factor", "queue_s"]


class Stages(msgspec.Struct, frozen=True):
    """Where one request's time goes, in seconds."""

    device_s: float
    encoding_s: float
    upload_s: float
    round_trip_s: float
    cloud_s: float
    download_s: float

    @property
    def total_s(self) -> float:
        return sum(self.named().values())

    def named(self) -> dict[Stage, float]:
        return {
            "device": self.device_s,
            "encoding": self.encoding_s,
            "upload": self.upload_s,
            "round trip": self.round_trip_s,
            "cloud": self.cloud_s,
            "download": self.download_s,
        }


class Flip(msgspec.Struct, frozen=True):
    """`id` wins once `condition` passes `at` in the direction `when`: Mbit/s, seconds, or times slower than now."""

    condition: Condition
    when: Literal["above", "below"]
    at: float
    id: str


def stages_of(cost: PlacementCost, link: LinkState) -> Stages:
    """The terms of `protocol.latency.latency_s`, one by one."""
    if not cost.crosses:
        return Stages(cost.edge_s, cost.encode_s, 0.0, 0.0, 0.0, 0.0)
    return Stages(
        device_s=cost.edge_s,
        encoding_s=cost.encode_s,
        upload_s=cost.up_nbytes / link.uplink_bytes_per_s,
        round_trip_s=link.rtt_s,
        cloud_s=cost.decode_s + link.queue_s + cost.tail_s,
        download_s=cost.down_nbytes / link.downlink_bytes_per_s,
    )
