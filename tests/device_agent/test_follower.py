"""Whoever waits for the agent to be up to date costs the loop that answers nothing until there is news."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from publisher_simulator import PublisherSimulator

from flagcast_agent import config
from flagcast_agent.boot import boot
from flagcast_agent.follower import Follower
from flagcast_agent.sync.connection import BrokerLink
from flagcast_agent.sync.events import Effect, Event, Ticked, Woken

PATIENCE_SECONDS = 600.0


class Core:
    """Answers as many wishes as the test says, whatever happens."""

    def __init__(self) -> None:
        self.asked = 0
        self.answered = 0
        self.grants = 0
        self.connection = BrokerLink()

    def handle(self, event: Event, **_: object) -> Sequence[Effect]:
        self.asked += isinstance(event, Woken)
        self.answered = self.grants
        return []

    def why_not_current(self) -> tuple[str, ...]:
        return ("the link is backing off",)


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Follower, Core]]:
    (tmp_path / "root.cbor").write_bytes(PublisherSimulator().anchor)
    document = {
        "environment": "production",
        "device": {"id": "device-1"},
        "broker": {"url": "mqtt://127.0.0.1:1"},
    }
    settings = config.parse(document, tmp_path, "agent.toml")
    booted = boot(settings)
    follower, core = Follower(settings, booted), Core()
    monkeypatch.setattr(follower, "_sync", core)
    yield follower, core
    booted.store.close()


def tell(follower: Follower) -> None:
    """One event, in a thread that is not the loop's."""
    thread = threading.Thread(target=follower._feed, args=(Ticked(),))
    thread.start()
    thread.join()


async def begin(follower: Follower, count: int, seconds: float) -> "list[asyncio.Task[tuple[str, ...]]]":
    waiting = [asyncio.ensure_future(follower.catch_up(seconds)) for _ in range(count)]
    await asyncio.sleep(0)  # each runs until it waits
    assert len(follower._wishes) == count
    return waiting


def test_thousands_who_wait_wake_the_loop_once(followed: tuple[Follower, Core]) -> None:
    follower, core = followed
    count = 5_000

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        waiting = await begin(follower, count, PATIENCE_SECONDS)
        # All that will ever happen by itself: the end of everybody's patience, and no look before.
        timers = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]  # no public way to it
        assert len(timers) == count
        assert min(handle.when() for handle in timers) > loop.time() + PATIENCE_SECONDS / 2
        assert not loop._ready  # type: ignore[attr-defined]  # as above
        tell(follower)
        assert not loop._ready, "news of nothing wakes nobody"  # type: ignore[attr-defined]  # as above
        core.grants = count
        tell(follower)
        assert [await each for each in waiting] == [()] * count
        assert follower._wishes == {}

    asyncio.run(wait())


def test_a_wish_is_granted_by_its_number(followed: tuple[Follower, Core]) -> None:
    follower, core = followed

    async def wait() -> None:
        first, second, third = await begin(follower, 3, PATIENCE_SECONDS)
        core.grants = 2
        tell(follower)
        assert [await first, await second] == [(), ()]
        assert not third.done()
        third.cancel()
        await asyncio.wait([third])
        assert follower._wishes == {}
        core.grants = 3
        tell(follower)  # nobody waits for it any more
        await asyncio.sleep(0)

    asyncio.run(wait())


def test_who_has_waited_long_enough_hears_why(followed: tuple[Follower, Core]) -> None:
    follower, core = followed

    async def wait() -> None:
        assert await follower.catch_up(0.01) == ("the link is backing off",)
        assert follower._wishes == {}

    asyncio.run(wait())
    core.grants = 1
    tell(follower)  # the loop has ended
