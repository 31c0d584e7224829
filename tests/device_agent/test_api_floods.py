"""A real agent under floods of HTTP/1.1 and HTTP/2: its memory and its other clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from devices import Device
from http_floods import Flood, answering_agent, attack, every_flood

from flagcast_agent.limits import HELD_MAX_BYTES

SECONDS = 1.0
MEMORY_MEBIBYTES = 2 * HELD_MAX_BYTES / 2**20
"""Bytes held for all clients, and as many again for answers in the making and for what the allocator keeps."""
STALLED_MILLISECONDS = 5_000.0
"""Far longer than an answer takes on a busy machine, and far shorter than the flood's clients would wait."""
FAIR_TIMES = 100
"""Times that another process may wait for its large answer: twice in itself, 255 times behind every connection of the flood."""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder: Path = tmp_path_factory.mktemp("d")
    with answering_agent(folder, 2_000) as device:
        yield device


@pytest.mark.parametrize("flood", every_flood(), ids=lambda flood: flood.name.replace(" ", "-"))
def test_a_flood_takes_neither_the_agents_memory_nor_its_time(agent: Device, flood: Flood) -> None:
    suffered = attack(agent.socket, SECONDS, flood)
    assert suffered.resident_most - suffered.resident_before < MEMORY_MEBIBYTES, suffered
    assert suffered.answers > 10, suffered
    assert suffered.longest < STALLED_MILLISECONDS, suffered
    if flood.asks_for_all and not flood.is_leaving:
        assert suffered.longest < FAIR_TIMES * suffered.quiet, suffered
    assert agent.enabled("on") == (True,)
