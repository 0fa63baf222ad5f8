from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cloud_gateway.doors.turns import Turns


def on_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 10))

    run.__name__ = test.__name__
    return run


async def waiting(turns: Turns, tenant: str, told: list[str], name: str, *, first: bool = False) -> None:
    await turns.wait(tenant, first=first)
    told.append(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@on_a_loop
async def test_every_leave_gives_one_turn_in_the_order_of_coming() -> None:
    turns, told = Turns(), list[str]()
    turns.enter("a")
    turns.enter("a")
    tasks = [asyncio.create_task(waiting(turns, "a", told, name)) for name in "xyz"]
    await settle()
    assert told == []
    turns.leave("a")
    await settle()
    assert told == ["x"]
    turns.leave("a")
    await settle()
    assert told == ["x", "y"]
    tasks[2].cancel()
    await settle()
    assert not turns.is_queued("a")


@on_a_loop
async def test_who_has_waited_already_stands_in_front() -> None:
    turns, told = Turns(), list[str]()
    turns.enter("a")
    tasks = [asyncio.create_task(waiting(turns, "a", told, "late"))]
    await settle()
    tasks.append(asyncio.create_task(waiting(turns, "a", told, "again", first=True)))
    await settle()
    turns.leave("a")
    await settle()
    assert told == ["again"]
    tasks[0].cancel()


@on_a_loop
async def test_tenants_do_not_wait_for_one_another() -> None:
    turns, told = Turns(), list[str]()
    turns.enter("a")
    turns.enter("b")
    task = asyncio.create_task(waiting(turns, "a", told, "x"))
    await settle()
    turns.leave("b")
    await settle()
    assert told == []
    assert (turns.may_wait("a"), turns.may_wait("b")) == (True, False)
    turns.leave("a")
    await task
    assert told == ["x"]


@on_a_loop
async def test_a_turn_that_meets_one_who_has_gone_passes_to_the_next() -> None:
    turns, told = Turns(), list[str]()
    turns.enter("a")
    gone, next_one = (asyncio.create_task(waiting(turns, "a", told, name)) for name in ("gone", "next"))
    await settle()
    turns.leave("a")  # the turn is given ...
    gone.cancel()  # ... to one who goes before it can take it
    await settle()
    assert told == ["next"]
    assert next_one.done()


@on_a_loop
async def test_a_turn_that_cannot_be_used_is_passed_on() -> None:
    turns, told = Turns(), list[str]()
    turns.enter("a")
    tasks = [asyncio.create_task(waiting(turns, "a", told, name)) for name in "xy"]
    await settle()
    turns.leave("a")
    await settle()
    turns.pass_on("a")
    await asyncio.gather(*tasks)
    assert told == ["x", "y"]


@on_a_loop
async def test_giving_up_tells_everybody() -> None:
    turns, told = Turns(), list[str]()
    tasks = [asyncio.create_task(waiting(turns, tenant, told, tenant)) for tenant in "ab"]
    await settle()
    turns.give_up(lambda: ValueError("over"))
    for task in tasks:
        with pytest.raises(ValueError, match="over"):
            await task
    assert not turns.is_queued("a")
