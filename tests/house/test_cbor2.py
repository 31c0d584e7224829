"""Devices without a wheel of cbor2 6, as on 32-bit ARM, run cbor2 5: the wire is the same with both."""

from importlib.metadata import version

import pytest
from oracles import PATIENCE_SECONDS, run_on_oracles


def test_both_versions_of_cbor2_are_at_hand() -> None:
    other = run_on_oracles("-c", "from importlib.metadata import version; print(version('cbor2'))")
    assert version("cbor2").startswith("6.")
    assert other.startswith("5.")


@pytest.mark.timeout(PATIENCE_SECONDS + 100)
def test_the_wire_is_the_same_with_cbor2_5() -> None:
    said = run_on_oracles(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/vectors", "tests/properties/test_bytes.py"
    )
    assert "passed" in said
