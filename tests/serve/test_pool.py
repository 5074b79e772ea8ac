"""Which models are in memory: loaded when used, given up when idle or for room, never with work on them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from kamado.errors import ClosedError, MemoryBudgetError, ModelNotFoundError
from kamado.serve.models.contract import ChatRequest, Event, Finish, Message, OverloadedError, TextPart
from kamado.serve.models.service import Limits, Service

from .fake import FakeWorld, Wait, text


def request(words: str, asker: str = "a") -> ChatRequest:
    return ChatRequest((Message("user", (TextPart(words),)),), asker=asker)


def service_of(world: FakeWorld, **settings: Any) -> Service:
    return Service(world.library, world.loader, **settings)


async def answer(service: Service, words: str, model: str = "fake", **more: Any) -> list[Event]:
    return [event async for event in service.chat(model, request(words), **more)]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def names(service: Service) -> list[str]:
    return [item.info.name for item in service.loaded()]


def test_one_load_serves_all_who_ask_at_once() -> None:
    async def work() -> None:
        world = FakeWorld()
        service = service_of(world)
        await asyncio.gather(*(answer(service, "hi") for _ in range(5)))
        assert world.loader.num_loads == 1
        await service.close()
        assert world.model.is_closed

    run(work())


def test_an_idle_model_is_given_up_after_its_time() -> None:
    async def work() -> None:
        world = FakeWorld()
        service = service_of(world, keep_alive=0.05)
        await answer(service, "hi")
        assert names(service) == ["fake"]
        while names(service):
            await asyncio.sleep(0.01)
        while service.pool.slots:
            await asyncio.sleep(0.01)
        assert world.model.is_closed
        await answer(service, "hi", keep_alive=0)
        assert names(service) == []
        await service.load("fake", pinned=True)
        await answer(service, "hi", keep_alive=0)
        assert names(service) == ["fake"]
        assert service.loaded()[0].expires_at is None

    run(work())


def gated() -> tuple[asyncio.Event, FakeWorld]:
    """A world whose slow answer waits for the event."""
    gate = asyncio.Event()
    return gate, FakeWorld({"slow": [Wait(event=gate), *text("done")]})


async def begun(service: Service) -> asyncio.Task[Any]:
    """A slow answer that runs, its model loaded."""
    running = asyncio.create_task(answer(service, "slow"))
    while not service.loaded():
        await asyncio.sleep(0)
    return running


def test_the_least_recently_used_makes_room_and_pinned_ones_stay() -> None:
    async def work() -> None:
        world = FakeWorld()
        world.loader.bytes_of = {"fake": 600, "other": 600}
        service = service_of(world, memory_bytes=1000)
        await service.load("other")
        await answer(service, "hi")
        assert names(service) == ["fake"]
        await service.load("fake", pinned=True)
        with pytest.raises(MemoryBudgetError):
            await service.load("other")
        assert names(service) == ["fake"]

    run(work())


def test_a_model_with_work_is_waited_for_and_then_refused() -> None:
    async def work() -> None:
        gate, world = gated()
        world.loader.bytes_of = {"fake": 600, "other": 600}
        service = service_of(world, memory_bytes=1000, load_wait=0.05)
        running = await begun(service)
        with pytest.raises(OverloadedError) as caught:
            await service.load("other")
        assert not caught.value.is_queue
        assert caught.value.retry_after > 0
        gate.set()
        assert Finish("stop") in await running
        await service.load("other")
        assert names(service) == ["other"]

    run(work())


def test_unloading_waits_for_work_and_new_work_loads_anew() -> None:
    async def work() -> None:
        gate, world = gated()
        service = service_of(world)
        running = await begun(service)
        unloading = asyncio.create_task(service.unload("fake"))
        await asyncio.sleep(0.01)
        assert not unloading.done()
        second = asyncio.create_task(answer(service, "hi"))
        gate.set()
        assert await unloading
        await asyncio.gather(running, second)
        assert world.loader.num_loads == 2
        assert not await service.unload("other")

    run(work())


def test_a_load_that_fails_fails_for_all_and_may_be_tried_again() -> None:
    async def work() -> None:
        world = FakeWorld()
        world.loader.error = MemoryBudgetError("too big")
        service = service_of(world)
        results = await asyncio.gather(*(answer(service, "hi") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, MemoryBudgetError) for result in results)
        world.loader.error = None
        assert await answer(service, "hi")
        with pytest.raises(ModelNotFoundError):
            await answer(service, "hi", model="nothing")
        assert service.num_active == 0

    run(work())


def test_one_key_cannot_take_the_whole_queue() -> None:
    async def work() -> None:
        _, world = gated()
        service = service_of(world, limits=Limits(max_requests=3, max_requests_per_key=1))
        stream = service.chat("fake", request("slow", "a"))
        first = asyncio.create_task(anext(stream))
        await first
        with pytest.raises(OverloadedError, match="one key"):
            await anext(service.chat("fake", request("hi", "a")))
        assert [event async for event in service.chat("fake", request("hi", "b"))]
        await stream.aclose()
        assert service.num_active == 0

    run(work())


def test_closing_refuses_what_comes_after() -> None:
    async def work() -> None:
        service = service_of(FakeWorld())
        await answer(service, "hi")
        await service.close()
        with pytest.raises(ClosedError):
            await answer(service, "hi")

    run(work())


def test_a_load_waits_for_a_model_that_is_being_closed() -> None:
    """It holds its memory until it is closed, though it is on no list of models with work."""

    async def work() -> None:
        world = FakeWorld()
        service = service_of(world, memory_bytes=1500)
        await answer(service, "hi")
        gate = asyncio.Event()
        close = world.model.close

        async def slow_close() -> None:
            await gate.wait()
            await close()

        world.model.close = slow_close  # type: ignore[method-assign]
        unload = asyncio.create_task(service.unload("fake"))
        other = asyncio.create_task(service.load("other"))
        await asyncio.sleep(0.02)
        assert not other.done()
        gate.set()
        assert await unload
        assert (await other).name == "other"
        await service.close()

    run(work())
