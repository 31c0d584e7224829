"""An OpenFeature provider for Python: the SDK's questions, answered by a Client in the application's own process.

Needs `openfeature-sdk`, which the extra `openfeature` of this distribution brings: `flagcast-agent[openfeature]`.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ErrorCode, ProviderNotReadyError
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

from .client import Change, Client
from .status import Freshness

__all__ = ["FlagcastProvider"]

READY_SECONDS: Final = 5.0
"""How long an application waits for its first flags at start: an agent that runs has them in milliseconds."""
STALE_SECONDS: Final = 0.1
"""The SDK says READY once `initialize` has returned; stale flags are told after that."""

# The client reads the wanted type off a default, which an application may leave out or get wrong: these stand in for it.
_BOOLEAN: Final[Any] = False
_STRING: Final[Any] = ""
_INTEGER: Final[Any] = 0
_FLOAT: Final[Any] = 0.0
_OBJECT: Final[Any] = MappingProxyType({})

_T = TypeVar("_T")


class FlagcastProvider(AbstractProvider):
    """Answers from `client`, which stays the caller's, or from one of its own, which it closes.

    The entity is the context's targeting key; its attributes become the texts that Flipt compares. A boolean flag answers a
    boolean, a variant flag the key of its variant as a string, or its attachment as a number or object. Where a percentage
    decides, a context without a targeting key gets the default, TARGETING_KEY_MISSING. Events: ready,
    configuration changed (with the flags that may answer otherwise), stale when the publisher has let its word expire or
    nothing more can be heard, and error while there are no flags at all.
    """

    def __init__(
        self, client: Client | None = None, *, namespace: str = "", ready_seconds: float = READY_SECONDS
    ) -> None:
        super().__init__()
        self._given = client
        self._client = client
        self._namespace = namespace
        self._ready_seconds = ready_seconds
        self._forget: Callable[[], None] | None = None
        self._condition: Freshness = "never synced"
        self._late: threading.Timer | None = None

    def get_metadata(self) -> Metadata:
        """The provider's name."""
        return Metadata("flagcast")

    def initialize(self, evaluation_context: EvaluationContext) -> None:  # noqa: ARG002  # the SDK's signature
        """Wait for the first flags. Raises ProviderNotReadyError without any; they are told as soon as they are there."""
        client = self._client
        if client is None:
            client = self._client = Client(namespace=self._namespace)
        if self._forget is None:
            self._forget = client.listen(self._tell)
        is_ready = client.wait_until_ready(self._ready_seconds)
        self._condition = self._condition_now(client)
        if not is_ready or self._condition == "never synced":
            raise ProviderNotReadyError(client.evaluate("", default=False, namespace=self._namespace).message)
        if self._condition == "stale":
            self._late = threading.Timer(STALE_SECONDS, self._tell_stale, [self._details(client.problem)])
            self._late.daemon = True
            self._late.start()

    def shutdown(self) -> None:
        """Hear nothing more, and close the client if it is the provider's own."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if self._forget is not None:
            self._forget()
            self._forget = None
        if self._given is None and self._client is not None:
            self._client.close()
            self._client = None

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,  # noqa: FBT001  # the SDK's signature
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        """A boolean flag."""
        return self._resolve(flag_key, _BOOLEAN, default_value, evaluation_context)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """The key of a variant flag's variant."""
        return self._resolve(flag_key, _STRING, default_value, evaluation_context)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """A variant's attachment, or key, as a whole number."""
        return self._resolve(flag_key, _INTEGER, default_value, evaluation_context)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """A variant's attachment, or key, as a number."""
        # The SDK takes floats alone.
        default = float(default_value) if isinstance(default_value, int) else default_value
        return self._resolve(flag_key, _FLOAT, default, evaluation_context)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """A variant's attachment, if it is an object."""
        return self._resolve(flag_key, _OBJECT, default_value, evaluation_context)

    def _resolve(
        self,
        flag_key: str,
        kind: Any,  # noqa: ANN401  # one of those above
        default: _T,
        evaluation_context: EvaluationContext | None,
    ) -> FlagResolutionDetails[_T]:
        client = self._client
        if client is None:
            return FlagResolutionDetails(
                default, ErrorCode.PROVIDER_NOT_READY, "the provider is not initialized", Reason.ERROR
            )
        context = evaluation_context or EvaluationContext()
        found = client.evaluate(
            flag_key, kind, context.targeting_key or "", context.attributes, namespace=self._namespace
        )
        if found.lacks_entity:
            found = found._replace(
                reason=Reason.ERROR.value,
                variant="",
                error=ErrorCode.TARGETING_KEY_MISSING.value,
                message=f"flag {flag_key!r} gives its values to percentages of targeting keys, and the context has none",
            )
        return FlagResolutionDetails(
            # Without a variant the flag gave no value.
            value=found.value if found.variant else default,
            error_code=ErrorCode(found.error) if found.error else None,
            error_message=found.message or None,
            reason=found.reason,
            variant=found.variant or None,
            flag_metadata={
                **found.metadata,
                "namespace": found.namespace,
                "epoch": found.epoch,
                "version": found.version,
                "age_seconds": found.age_seconds,
                "stale": found.is_stale,
                **({} if found.clock_is_trusted else {"clock_trusted": False}),
            },
        )

    def _condition_now(self, client: Client) -> Freshness:
        # Flags that are there but no longer followed may be old without anybody having said so.
        known = client.evaluate("", default=False, namespace=self._namespace)
        if known.error == "PROVIDER_NOT_READY":
            return "never synced"
        return "stale" if known.is_stale or client.problem else "fresh"

    def _tell(self, change: Change) -> None:
        client = self._client
        if client is None or change.namespace != (self._namespace or client.default_namespace):
            return
        former, self._condition = self._condition, self._condition_now(client)
        details = self._details(change.problem, change.version)
        if self._condition != former or (self._condition == "never synced" and change.problem):
            match self._condition:
                case "fresh":
                    self.emit_provider_ready(details)
                case "stale":
                    if former == "never synced":
                        self.emit_provider_ready(details)
                    self.emit_provider_stale(details)
                case "never synced":
                    details.error_code = ErrorCode.PROVIDER_NOT_READY
                    self.emit_provider_error(details)
        if change.keys and former != "never synced":
            details = self._details("", change.version)
            details.flags_changed = sorted(change.keys)
            self.emit_provider_configuration_changed(details)

    def _tell_stale(self, details: ProviderEventDetails) -> None:
        if self._condition == "stale":
            self.emit_provider_stale(details)

    def _details(self, problem: str, version: int = 0) -> ProviderEventDetails:
        return ProviderEventDetails(message=problem or None, metadata={"version": version} if version else {})
