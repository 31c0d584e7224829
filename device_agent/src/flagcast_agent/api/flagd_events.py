"""Events of flagd's EventStream, encoded once for all streams that tell of the same."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from flagcast_agent.limits import EVENT_MAX_FLAGS, SLICE_NAMES
from flagcast_shared.evaluation import CompiledFlags
from flagcast_shared.ids import FlagKey

from .changes import ChangeKind
from .protos import flagd_evaluation_v2_pb2 as flagd

READY: Final = "provider_ready"
CHANGED: Final = "configuration_change"
KEEP_ALIVE: Final = "keep_alive"

Flags = Mapping[FlagKey, ChangeKind]
Encode = Callable[[str, Flags], Awaitable[bytes]]
"""Makes an event of its type and flags; one without flags has no data."""


async def as_message(kind: str, flags: Flags) -> bytes:
    """An event as protobuf's message."""
    message = flagd.EventStreamResponse(type=kind)
    if flags:
        listed = message.data.fields["flags"].struct_value.fields
        for entries in _in_parts(flags, SLICE_NAMES):
            for key, change in entries:
                listed[key].struct_value.fields["type"].string_value = change
            await asyncio.sleep(0)
    return message.SerializeToString()


async def as_json(kind: str, flags: Flags) -> bytes:
    """The same in protobuf's JSON."""
    parts = []
    for entries in _in_parts(flags, SLICE_NAMES):
        text = json.dumps(
            {key: {"type": change} for key, change in entries}, separators=(",", ":"), ensure_ascii=False
        )
        parts.append(text[1:-1])
        await asyncio.sleep(0)
    event = f'"type":"{kind}"'
    if parts:
        event += f',"data":{{"flags":{{{",".join(parts)}}}}}'
    return f"{{{event}}}".encode("utf-8", "replace")


class WrittenEvents:
    """Encoded configuration changes, as long as a stream may send them.

    Writing ten thousand names takes ten milliseconds, and hundreds of streams may begin at once. One of them writes, in slices
    between which others are answered; the others wait for it and send the same bytes.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._readers = 0
        # What was written last, and what of.
        self._all: dict[Encode, tuple[Sequence[object], Sequence[bytes]]] = {}
        self._changes: dict[Encode, tuple[Flags, Sequence[bytes]]] = {}

    @contextlib.contextmanager
    def reader(self) -> Iterator[None]:
        """The time in which a stream may send them."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._all.clear()
                self._changes.clear()

    async def all(
        self, encode: Encode, known: Sequence[CompiledFlags], removed: Sequence[FlagKey]
    ) -> Sequence[bytes]:
        """Events of all known flags, and of those that were removed.

        A flag that is back is news to whoever tells of removed ones only a moment later: it is known here.
        """
        async with self._lock:
            of, events = self._all.get(encode, ((), ()))
            if not events or len(of) != len(known) + 1 or of[-1] != removed or any(map(_is_other, of, known)):
                flags = dict.fromkeys(removed, ChangeKind.DELETE)
                for each in known:
                    flags.update(dict.fromkeys(each.flags, ChangeKind.WRITE))
                events = await _written(encode, flags)
                self._all[encode] = ((*known, removed), events)
            return events

    async def change(self, encode: Encode, flags: Flags) -> Sequence[bytes]:
        """Events of one change."""
        async with self._lock:
            of, events = self._changes.get(encode, ({}, ()))
            if of is not flags:
                events = await _written(encode, flags)
                self._changes[encode] = (flags, events)
            return events


def _is_other(one: object, two: object) -> bool:
    return one is not two


async def _written(encode: Encode, flags: Flags) -> Sequence[bytes]:
    if len(flags) <= EVENT_MAX_FLAGS:
        return (await encode(CHANGED, flags),)
    return [await encode(CHANGED, dict(part)) for part in _in_parts(flags, EVENT_MAX_FLAGS)]


def _in_parts(flags: Flags, size: int) -> Iterator[Sequence[tuple[FlagKey, ChangeKind]]]:
    entries = iter(flags.items())
    while part := tuple(islice(entries, size)):
        yield part
