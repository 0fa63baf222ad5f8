"""The OpenAPI document of a table of routes: made from the table itself, so it says what is really served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from protocol.oip.routes import Route

_STRING: dict[str, Any] = {"type": "string"}
_INTEGER: dict[str, Any] = {"type": "integer"}
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": ["boolean", "integer", "number", "string"]},
}


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "properties": properties}
    return {**found, "required": required.split()} if required else found


def _durations(*names: str, **others: Any) -> dict[str, Any]:
    return _object("", **others, **dict.fromkeys(names, _DURATION))


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TENSOR = {"name": _STRING, "datatype": _STRING, "shape": _list(_INTEGER)}
_METADATA = _list(_object("name datatype shape", **_TENSOR))
_DATA = _list({"description": "numbers or booleans, flat or nested as the shape says"})
_DURATION = _object("count ns", count=_INTEGER, ns=_INTEGER)
_TIMES = ("compute_input", "compute_infer", "compute_output")

SCHEMAS: dict[str, dict[str, Any]] = {
    "Server": _object("name version extensions", name=_STRING, version=_STRING, extensions=_list(_STRING)),
    "Model": _object(
        "name platform inputs outputs",
        name=_STRING,
        versions=_list(_STRING),
        platform=_STRING,
        inputs=_METADATA,
        outputs=_METADATA,
    ),
    "Infer": _object(
        "inputs",
        id=_STRING,
        parameters={**_PARAMETERS, "description": "timeout (microseconds), priority (1 first), binary_data_output"},
        inputs=_list(_object("name datatype shape", **_TENSOR, parameters=_PARAMETERS, data=_DATA)),
        outputs=_list(_object("name", name=_STRING, parameters=_PARAMETERS)),
    ),
    "Inferred": _object(
        "model_name outputs",
        model_name=_STRING,
        model_version=_STRING,
        id=_STRING,
        parameters=_PARAMETERS,
        outputs=_list(_object("name datatype shape", **_TENSOR, parameters=_PARAMETERS, data=_DATA)),
    ),
    "Config": {"type": "object", "description": "ModelConfig of Triton as JSON"},
    "Statistics": _object(
        "model_stats",
        model_stats=_list(
            _object(
                "name version",
                name=_STRING,
                version=_STRING,
                last_inference=_INTEGER,
                inference_count=_INTEGER,
                execution_count=_INTEGER,
                inference_stats=_durations("success", "fail", "queue", "cache_hit", "cache_miss", *_TIMES),
                batch_stats=_list(_durations(*_TIMES, batch_size=_INTEGER)),
            )
        ),
    ),
    "Index": _object(ready={"type": "boolean"}),
    "Entries": _list(_object("name", name=_STRING, version=_STRING, state=_STRING, reason=_STRING)),
    "Control": _object(parameters=_PARAMETERS),
    "Error": _object("error code", error=_STRING, code=_STRING, slack_us=_INTEGER, retry_after_us=_INTEGER),
}


def document(routes: Iterable[Route], *, version: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Isthmus: Open Inference Protocol v2",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "an API key"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    told: dict[str, Any] = {"application/json": _refer(route.gives)} if route.gives else {}
    if route.gives == "Inferred":
        told["application/octet-stream"] = {"schema": _STRING}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "x-role": route.role,
        "security": [] if route.role == "open" else [{"key": []}],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _STRING}
            for name in re.findall(r"{(\w+)}", route.path)
        ],
        "responses": {
            "200": {"description": "done", **({"content": told} if told else {})},
            "default": {"description": "refused", "content": {"application/json": _refer("Error")}},
        },
    }
    if route.takes:
        content: dict[str, Any] = {"application/json": _refer(route.takes)}
        if route.takes == "Infer":
            content["application/octet-stream"] = {"schema": _STRING}
        operation["requestBody"] = {"content": content}
    return operation


def _refer(schema: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{schema}"}}
