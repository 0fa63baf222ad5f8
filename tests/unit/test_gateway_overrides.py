"""What the gateway's settings say of one model wins over what its folder says, field by field."""

from __future__ import annotations

import pytest

from cloud_gateway.config import load_settings
from cloud_gateway.models.overrides import overridden
from cloud_gateway.models.settings import ModelSettings

OWN = ModelSettings(max_batch_size=4, instances=2, threads=3, efficiency_delay_s=0.1, max_queue_requests=7)


def of(override: dict[str, object], name: str = "m") -> ModelSettings:
    overrides = {f'models.override."m".{key}': value for key, value in override.items()}
    return overridden(OWN, load_settings(env={}, overrides=overrides).settings, name)


def test_without_an_override_a_model_keeps_its_own() -> None:
    assert of({}) is OWN
    assert of({"threads": 9}, "other") is OWN


@pytest.mark.parametrize(
    ("key", "value", "field", "wanted"),
    [
        ("max_batch_size", 8, "max_batch_size", 8),
        ("max_batch_size", "auto", "max_batch_size", None),
        ("instances", 1, "instances", 1),
        ("threads", 1, "threads", 1),
        ("cache", False, "response_cache", False),
        ("efficiency_delay_ms", 2.5, "efficiency_delay_s", 0.0025),
        ("efficiency_delay_ms", 0, "efficiency_delay_s", 0.0),
    ],
)
def test_each_field_is_replaced_alone(key: str, value: object, field: str, wanted: object) -> None:
    changed = of({key: value})
    assert getattr(changed, field) == wanted
    others = [f for f in ModelSettings.__struct_fields__ if f != field]
    assert [getattr(changed, f) for f in others] == [getattr(OWN, f) for f in others]
