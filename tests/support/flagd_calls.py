"""flagd's service as a foreign client calls it: grpcio, and messages of either version."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from admitted import Content
from local_server import ENTRIES

from flagcast_agent.api.protos import flagd_evaluation_v1_pb2, flagd_evaluation_v2_pb2
from flagcast_shared.ids import FlagKey, SegmentKey, VariantKey
from flagcast_shared.model import (
    BooleanFlag,
    Distribution,
    Join,
    Match,
    Rule,
    Segment,
    Variant,
    VariantFlag,
)

grpc: Any = importlib.import_module("grpc")  # it ships no types

VERSIONS = ("v1", "v2")
MESSAGES: dict[str, Any] = {"v1": flagd_evaluation_v1_pb2, "v2": flagd_evaluation_v2_pb2}


def choosing(key: str, variant: str, attachment: str = "", *, enabled: bool = True) -> VariantFlag:
    """A flag without rules that gives everybody one variant."""
    return VariantFlag(
        FlagKey(key), enabled, (Variant(VariantKey(variant), attachment),), default=VariantKey(variant)
    )


EVERYBODY = Segment(SegmentKey("everybody"), Match.ALL, ())
FLAGS: Content = (
    *ENTRIES,
    EVERYBODY,
    choosing("ten", "small", "10"),
    choosing("ratio", "small", "0.25"),
    choosing("written", "42"),
    choosing("half-written", "0.5"),
    choosing("huge", "big", "1" + "0" * 30),
    choosing("settings", "full", '{"depth":{"list":[1,null,"x",true]},"n":2}'),
    choosing("plain", "red"),
    choosing("list", "many", "[1,2]"),
    choosing("off-with-default", "red", enabled=False),
    VariantFlag(FlagKey("off-without"), enabled=False, variants=(Variant(VariantKey("a")),)),
    VariantFlag(
        FlagKey("empty-rule"),
        enabled=True,
        variants=(Variant(VariantKey("a")),),
        rules=(Rule((SegmentKey("everybody"),), Join.OR, ()),),
    ),
    VariantFlag(
        FlagKey("shared-out"),
        enabled=True,
        variants=(Variant(VariantKey("a")), Variant(VariantKey("b"))),
        rules=(
            Rule(
                (SegmentKey("everybody"),),
                Join.OR,
                (Distribution(VariantKey("a"), 500), Distribution(VariantKey("b"), 1000)),
            ),
        ),
    ),
)


class Failed(Exception):
    """The call's status is not OK."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code
        self.why = why


class FlagdClient:
    """One channel to the agent's socket."""

    def __init__(self, channel: Any, version: str) -> None:
        self._channel = channel
        self._version = version
        self.messages = MESSAGES[version]

    def resolve(
        self, method: str, key: str, context: dict[str, object] | None = None, *, selector: str = ""
    ) -> Any:
        """A Resolve call's response. Raises Failed."""
        request = getattr(self.messages, f"{method}Request")(flag_key=key)
        if context is not None:
            request.context.update(context)
        return self.call(method, request, selector=selector)

    def call(self, method: str, request: Any, *, selector: str = "") -> Any:
        """A unary call's response. Raises Failed."""
        kind = getattr(self.messages, f"{method}Response")
        call = self._channel.unary_unary(self._path(method), response_deserializer=kind.FromString)
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            return call(data, timeout=100, metadata=(("flagd-selector", selector),) if selector else None)
        except grpc.RpcError as error:
            raise Failed(error.code().name, error.details()) from None

    def events(self, *, selector: str = "") -> Any:
        """The event stream; an iterator that can be cancelled."""
        call = self._channel.unary_stream(
            self._path("EventStream"), response_deserializer=self.messages.EventStreamResponse.FromString
        )
        return call(b"", timeout=100, metadata=(("flagd-selector", selector),) if selector else None)

    def _path(self, method: str) -> str:
        return f"/flagd.evaluation.{self._version}.Service/{method}"


@contextmanager
def calling(path: Path, version: str = "v2") -> Iterator[FlagdClient]:
    """A client of its own connection."""
    with grpc.insecure_channel(
        f"unix:{path}",
        options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 4 << 20)],
    ) as channel:
        yield FlagdClient(channel, version)


def named(event: Any) -> dict[str, str]:
    """The flags of a configuration change, with what happened to each."""
    flags = event.data.fields["flags"].struct_value.fields
    return {key: flags[key].struct_value.fields["type"].string_value for key in flags}


def switch(key: str, *, enabled: bool) -> BooleanFlag:
    """A boolean flag without rollouts."""
    return BooleanFlag(FlagKey(key), enabled)
