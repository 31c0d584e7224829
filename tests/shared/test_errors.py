"""Refusals and the words that logs, reports and metrics use for them."""

import re
from collections.abc import Iterator

import pytest

from flagcast_shared import errors


def all_below(kind: type[errors.Refused]) -> Iterator[type[errors.Refused]]:
    for each in kind.__subclasses__():
        yield each
        yield from all_below(each)


@pytest.mark.parametrize("kind", list(all_below(errors.Refused)))
def test_the_word_of_a_refusal_is_its_class_in_snake_case(kind: type[errors.Refused]) -> None:
    assert kind.attack == re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
