"""The typed client: it embeds the agent in the caller's process. Deadlines are mandatory, arrays go in and come out.

    with Client("bundle", gateway="tcp://127.0.0.1:7447") as client:
        answer = unwrap(client.infer({"image": frame}, deadline_s=0.5))

    async with AsyncClient("bundle", gateway="tcp://127.0.0.1:7447") as client:
        outcome = await client.infer({"image": frame}, deadline_s=0.5)

Several gateways are given as a list, or as srv://NAME of a DNS SRV record. `infer` returns an `Answer` or a `Refusal`
(a value: whoever is refused still has time to act); `unwrap` turns the latter into an exception for those who prefer
one. Both clients raise InputError for tensors that the model does not take.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer, Outcome, Refusal, RefusedError, unwrap
from protocol.tensors import Tensors

__all__ = ["Answer", "AsyncClient", "Client", "Outcome", "Refusal", "RefusedError", "unwrap"]


class Client:
    """Blocking calls; may be used by several threads at once. Keyword options are those of `AgentConfig`."""

    def __init__(
        self, bundle: str | os.PathLike[str], *, gateway: str | Sequence[str] | None = None, **options: Any
    ) -> None:
        self.agent = Agent(AgentConfig(bundle=Path(bundle), gateway=gateway, **options))

    def infer(self, inputs: Tensors, *, deadline_s: float, priority: int = 4) -> Outcome:
        """One request, answered or refused within `deadline_s` seconds; 0 is the most urgent, 9 the least.

        Raises InputError. Whoever is interrupted while it waits, by Ctrl-C for example, withdraws the request.
        """
        future = self.agent.submit(inputs, deadline_s=deadline_s, priority=priority)
        try:
            return future.result()
        finally:
            future.cancel()  # without effect on what has ended

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether a gateway has welcomed us; without one, requests are answered on the device."""
        return self.agent.wait_ready(timeout_s)

    def __enter__(self) -> Self:
        self.agent.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.agent.close()


class AsyncClient:
    """The same for asyncio: the socket stays on its own plain thread, only the result crosses to the event loop."""

    def __init__(
        self, bundle: str | os.PathLike[str], *, gateway: str | Sequence[str] | None = None, **options: Any
    ) -> None:
        self.agent = Agent(AgentConfig(bundle=Path(bundle), gateway=gateway, **options))

    async def infer(self, inputs: Tensors, *, deadline_s: float, priority: int = 4) -> Outcome:
        """One request, answered or refused within `deadline_s` seconds; 0 is the most urgent, 9 the least.

        Raises InputError.
        """
        # Cancelling this task cancels the agent's future, which withdraws the request.
        return await asyncio.wrap_future(self.agent.submit(inputs, deadline_s=deadline_s, priority=priority))

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether a gateway has welcomed us; without one, requests are answered on the device."""
        return await asyncio.to_thread(self.agent.wait_ready, timeout_s)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.agent.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.agent.close)
