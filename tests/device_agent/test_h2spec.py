"""h2spec, the conformance suite of HTTP/2 and HPACK, against the agent's TCP port."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from local_server import running

H2SPEC = Path(sys.prefix) / "h2spec" / "h2spec"
EXCEPTIONS = {
    # One socket serves both versions, so what is no preface of HTTP/2 is HTTP/1.1, and is refused as such.
    "Sends invalid connection preface",
}


@pytest.mark.skipif(not H2SPEC.exists(), reason="needs Go, and h2spec, which tools/need-h2spec.sh builds")
def test_every_case_passes_but_those_with_a_reason(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    with running() as server:
        subprocess.run(
            [H2SPEC, "-h", "127.0.0.1", "-p", str(server.port), "-o", "20", "--junit-report", report],
            capture_output=True,
            check=False,
            timeout=300,
        )
    cases = list(ET.parse(report).getroot().iter("testcase"))  # of a program of ours
    failed = {
        case.get("classname")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert len(cases) > 140
    assert failed == EXCEPTIONS
