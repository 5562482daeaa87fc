"""The limiter: never more than its slots, never a longer queue, and no slot is lost by whoever gives up."""

from __future__ import annotations

import asyncio
import random

import pytest

from chassis.errors import DeadlineExceeded, Overloaded
from chassis.limits import Limiter


async def settle() -> None:
    """Let everybody who can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_whoever_finds_the_queue_full_is_refused_at_once() -> None:
    limiter = Limiter(slots=2, queue=1, name="s1")
    await limiter.acquire(1)
    await limiter.acquire(1)
    waiting = asyncio.create_task(limiter.acquire(1))
    await settle()
    with pytest.raises(Overloaded) as refused:
        await limiter.acquire(60)
    assert refused.value.facts == {"limiter": "s1"}
    assert (limiter.taken, limiter.free) == (2, 0)
    limiter.release()
    await waiting
    limiter.release()
    limiter.release()
    assert (limiter.taken, limiter.free) == (0, 2)


async def test_the_queue_is_first_come_first_served_and_nobody_overtakes() -> None:
    limiter = Limiter(slots=1, queue=10)
    served: list[int] = []

    async def work(number: int) -> None:
        async with limiter.slot(5):
            served.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(work(number))
    assert served == list(range(8))

    await limiter.acquire(1)
    waiting = asyncio.create_task(work(99))
    await settle()
    limiter.release()
    assert not limiter.try_acquire(), "the slot belongs to the one who waited"
    await waiting


async def test_a_wait_ends_with_its_timeout_and_takes_no_slot() -> None:
    limiter = Limiter(slots=1, queue=2)
    await limiter.acquire(1)
    with pytest.raises(DeadlineExceeded):
        await limiter.acquire(0.01)
    limiter.release()
    assert limiter.free == 1


async def test_a_cancelled_waiter_leaves_its_place_to_the_next() -> None:
    limiter = Limiter(slots=1, queue=2)
    await limiter.acquire(1)
    first, second = (asyncio.create_task(limiter.acquire(5)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    limiter.release()
    await second
    assert limiter.taken == 1


async def test_a_waiter_cancelled_in_the_moment_it_is_served_gives_the_slot_on() -> None:
    limiter = Limiter(slots=1, queue=2)
    await limiter.acquire(1)
    first, second = (asyncio.create_task(limiter.acquire(5)) for _ in range(2))
    await settle()
    limiter.release()
    first.cancel()
    await second
    assert first.cancelled()
    assert limiter.taken == 1


async def test_a_slot_comes_back_when_the_work_fails() -> None:
    limiter = Limiter(slots=1, queue=0)
    with pytest.raises(ZeroDivisionError):
        async with limiter.slot(1):
            raise ZeroDivisionError
    assert limiter.try_acquire()


@pytest.mark.parametrize("seed", range(20))
async def test_under_random_cancellation_slots_and_queue_hold_and_nothing_leaks(seed: int) -> None:
    dice = random.Random(seed)
    limiter = Limiter(slots=3, queue=5)
    working = most = refused = 0

    async def work() -> None:
        nonlocal working, most, refused
        try:
            async with limiter.slot(dice.choice([0.0, 0.001, 5])):
                working += 1
                most = max(most, working)
                try:
                    for _ in range(dice.randrange(6)):
                        await asyncio.sleep(0)
                finally:
                    working -= 1
        except (Overloaded, DeadlineExceeded):
            refused += 1

    tasks: list[asyncio.Task[None]] = []
    for _ in range(300):
        tasks.append(asyncio.create_task(work()))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.5:
            await asyncio.sleep(0)
        assert len(limiter._waiting) <= limiter.queue
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == limiter.slots
    assert refused > 0
    assert (limiter.taken, limiter.free, working) == (0, 3, 0)


@pytest.mark.parametrize(("slots", "queue"), [(0, 1), (-1, 1), (1, -1)])
def test_a_limiter_without_slots_cannot_be_made(slots: int, queue: int) -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Limiter(slots, queue)
