"""What those who run batches ask of any engine, whether it stands in an order of preference or alone."""

from __future__ import annotations

from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Room
from cloud_gateway.models.trial import TryAnotherError
from protocol.engines.base import Engine
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors


def answered(engine: Engine, tensors: Tensors) -> dict[str, Array]:
    """What the engine, or the next in its order, makes of the gateway's own tensors. Raises EngineError."""
    try:
        return engine.infer(tensors)
    except TryAnotherError as error:
        with error.engine.using(error.instead):
            outputs = answered(engine, tensors)
        error.engine.convict(error)
        return outputs


def doubt(engine: Engine, error: EngineError) -> None:
    """What the engine gave this thread is no answer. Raises TryAnotherError where another one may be asked."""
    if isinstance(engine, PreferredEngine):
        engine.doubt(error)


def room_of(engine: Engine) -> Room | None:
    """Where this thread's next batch should lie, if its engine has a place of its own for it."""
    return engine.room if isinstance(engine, PreferredEngine) else None


def what_ran(engine: Engine) -> str:
    """The description of what ran this thread's last batch."""
    return engine.ran if isinstance(engine, PreferredEngine) else engine.description


def may_hang(engine: Engine) -> bool:
    """Whether a run of what serves may hang, with nothing to end it: no thread that others wait for runs that."""
    return isinstance(engine, PreferredEngine) and engine.may_hang


def may_be_half(engine: Engine) -> bool:
    """Whether its answers may be those of the float16 form."""
    return isinstance(engine, PreferredEngine) and engine.may_be_half


def serving_of(engine: Engine) -> str:
    """What serves, whatever this thread runs on, where there is a choice."""
    return engine.serving if isinstance(engine, PreferredEngine) else ""


def kind_of(engine: Engine) -> str:
    """What this thread's next batch runs on, where there is a choice."""
    return engine.kind if isinstance(engine, PreferredEngine) else ""
