"""Two general COSE libraries judge our messages, and we judge theirs. They need an environment of their own."""

import re

from oracles import run_on_oracles


def test_pycose_and_cwt_agree_on_what_is_signed_and_differ_where_our_profile_is_stricter() -> None:
    said = run_on_oracles("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/properties/cose_oracles.py")
    found = re.search(r"(\d+) passed", said)
    assert found is not None, said
    assert int(found[1]) > 40
