"""A question about one flag, as every door of the agent understands it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Question(NamedTuple):
    """One evaluation as a caller asks for it; every text may be blank."""

    flag_key: str
    entity_id: str = ""
    context: Mapping[str, str] = MappingProxyType({})
    namespace: str = ""
    environment: str = ""
    request_id: str = ""
