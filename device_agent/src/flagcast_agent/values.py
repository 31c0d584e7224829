"""What an application's values mean to Flipt's flags, and what a variant's attachment means to an application.

Flipt's context is texts, and its variant flags answer a key with an attachment in JSON. OpenFeature's callers bring values of
many types and ask for a string, a number or an object. This module holds the one translation between the two.
"""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flagcast_shared.answers import AGENT_METADATA
from flagcast_shared.context import context_text
from flagcast_shared.errors import TypeMismatch
from flagcast_shared.evaluation import Answer, BooleanAnswer, Resolution, VariantAnswer
from flagcast_shared.literals import parse_float

NO_CONTEXT: Final[Mapping[str, str]] = MappingProxyType({})

Metadata = dict[str, str | int | float | bool]
"""Metadata of an answer: names and values of the types that OpenFeature has for them."""

NO_METADATA: Final[Mapping[str, str | int | float | bool]] = MappingProxyType({})

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_WHOLE: Final = re.compile(r"[-+]?[0-9]+")
_WHOLE_MAX_CHARACTERS: Final = 40
# Beyond any number of 64 bits; Python refuses to read texts of thousands of digits.


def texts(context: Mapping[str, object]) -> Mapping[str, str]:
    """A context of texts, as Flipt compares them; the same object where it is one already. Null is left out."""
    for value in context.values():
        if type(value) is not str:
            return {str(key): context_text(each) for key, each in context.items() if each is not None}
    return context  # type: ignore[return-value]  # just looked at


def kind_of(value: object) -> str:
    """The name of a value's type in JSON's words, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


def reason_of(answer: Answer) -> Resolution:
    """The reason of an answer in OpenFeature's words, on the socket and in process.

    STATIC where neither a context nor another type of question could get another answer. Without a variant DEFAULT or
    DISABLED: providers take the caller's default for these two alone.
    """
    resolution = answer.resolution
    if isinstance(answer, BooleanAnswer):
        return resolution
    if not answer.variant_key:
        return resolution if resolution is Resolution.DISABLED else Resolution.DEFAULT
    if resolution is Resolution.STATIC and not _is_only_a_string(answer):
        return Resolution.DEFAULT
    return resolution


def integer_of(answer: VariantAnswer) -> int:
    """The attachment as a whole number, else the variant's key where it is written as one. Raises TypeMismatch."""
    value = _attached(answer)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    key = answer.variant_key
    if len(key) <= _WHOLE_MAX_CHARACTERS and _WHOLE.fullmatch(key):
        return int(key)
    raise _mismatch(answer, "a whole number")


def number_of(answer: VariantAnswer) -> float:
    """The attachment as a number, else the variant's key where it reads as one. Raises TypeMismatch."""
    value = _attached(answer)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _mismatch(answer, "a number of 64 bits") from None
    number = parse_float(answer.variant_key)
    if number is None or number - number != 0.0:
        raise _mismatch(answer, "a number")
    return number


def object_of(answer: VariantAnswer) -> dict[str, object]:
    """The attachment as an object, a fresh one for every caller. Raises TypeMismatch."""
    value = _attached(answer)
    if isinstance(value, dict):
        return value
    raise _mismatch(answer, "an object")


def _is_only_a_string(answer: VariantAnswer) -> bool:
    for read in (object_of, number_of):
        try:
            read(answer)
        except TypeMismatch:
            continue
        return False
    return True


def metadata_of(text: str) -> Metadata:
    """A flag's own metadata from its JSON text, a fresh dictionary; empty where the text is no JSON object.

    Left out are values of other types, and names that are the agent's.
    """
    if not text:
        return {}
    try:
        document = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {
        name: value
        for name, value in document.items()
        if name not in AGENT_METADATA and _is_unicode(name) and _is_sound(value)
    }


def _is_sound(value: object) -> bool:
    match value:
        case str():
            return _is_unicode(value)
        case float():
            # JSON can spell a number that no float64 holds, and has no word for infinity.
            return value - value == 0
        case _:
            return isinstance(value, int)


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, for which neither protobuf nor UTF-8 has bytes.
    return text.isascii() or _SURROGATE.search(text) is None


def _attached(answer: VariantAnswer) -> object:
    # None where there is no attachment, or none that is JSON.
    if not answer.attachment:
        return None
    try:
        return _DECODER.decode(answer.attachment)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _mismatch(answer: VariantAnswer, wanted: str) -> TypeMismatch:
    return TypeMismatch(
        f"flag {answer.flag_key!r}: neither the attachment nor the key of variant {answer.variant_key!r} is {wanted}"
    )
