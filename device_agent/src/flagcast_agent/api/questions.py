"""A question about one flag, as every door of the agent understands it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from flagcast_agent.limits import QUESTION_MAX_BYTES
from flagcast_shared.errors import CallTooLarge


def require_question_size(body: bytes) -> None:
    """A request about one flag or all flags is within QUESTION_MAX_BYTES. Raises CallTooLarge."""
    if len(body) > QUESTION_MAX_BYTES:
        raise CallTooLarge(
            f"a request of {len(body)} bytes; at most {QUESTION_MAX_BYTES} about one flag or all"
        )


class Question(NamedTuple):
    """One evaluation as a caller asks for it; every text may be blank."""

    flag_key: str
    entity_id: str = ""
    context: Mapping[str, str] = MappingProxyType({})
    namespace: str = ""
    environment: str = ""
    request_id: str = ""
