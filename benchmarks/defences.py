"""Every defence of a device is noticed when it is gone: each is taken away alone, and a test has to fail.

The defences, and the change of the sources that takes each away, stand in tests/support/defence_list.py. The sources are copied
to a temporary folder and changed there; the checkout is only read. What counts as noticed is a test that ran and failed: a
change that breaks an import, a fixture or a name is a mistake in the list and counts as "broken".

`--quick` takes away a sample, and leaves out what needs a broker.
"""

import compileall
import importlib
import importlib.util
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from xml.etree import ElementTree as ET

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from defence_list import DEFENCES, Defence

from harness import Goal, Options, Row, run

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "shared/src/flagcast_shared",
    "device_agent/src/flagcast_agent",
    "broker_bridge/src/flagcast_bridge",
)
ATTACKS = "attacks"
ATTACKS_BY_A_BROKER = "brokers/test_attacks.py"
WIDER = (
    "attacks",
    "device_agent/test_sync.py",
    "device_agent/test_sync_current.py",
    "device_agent/test_store.py",
    "device_agent/test_client.py",
    "shared",
    "vectors",
    "properties",
)
"""What is tried, in this order, where a defence's own test does not notice."""
QUICK_SAMPLE = 12
NAME_MAX_CHARACTERS = 110
"""A test's name with its parameters, where they are readable."""
ATTACKS_MIN = 40
AT_ONCE = 2
MEMORY_MAX_BYTES = 768 * 2**20
"""A bomb that is let through must not take the machine along. Enough for the agent and its threads' stacks."""
TEST_TIMEOUT_SECONDS = 60
RUN_TIMEOUT_SECONDS = 900
NOT_IMPORTED = 90
"""The exit code of a run where the changed sources cannot be imported, or are not what is imported."""
TOO_LONG = 91
"""The same for a run that had to be ended."""
PRELOADED = (
    "cbor2",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "sqlite_utils",
    "h2.connection",
    "paho.mqtt.client",
)
"""What most tests import of others."""
_OF_THE_LIST = ("NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError", "SyntaxError")
# Errors that no defence of ours ever stood against: the change itself is wrong.


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of tests came to: how many ran, which failed and how.

    `broken` says why that tells nothing, `skipped` why none of them ran.
    """

    tests: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    broken: str = ""
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`caught` is the test that noticed, blank where none did. `broken` and `skipped` say why that is not known."""

    defence: Defence
    caught: str = ""
    broken: str = ""
    skipped: str = ""

    @property
    def has_survived(self) -> bool:
        return not (self.caught or self.broken or self.skipped)

    @property
    def said(self) -> str:
        if self.caught:
            name = self.caught if len(self.caught) <= NAME_MAX_CHARACTERS else self.caught.partition("[")[0]
            return name if self.is_by_its_own else f"{name}, not {self.defence.test}"
        return "BROKEN" if self.broken else self.skipped or "SURVIVED"

    @property
    def is_by_its_own(self) -> bool:
        return self.caught.partition("[")[0] == self.defence.test.partition("[")[0]


class Workbench:
    """Copies of the three packages in a temporary folder, and processes that run tests on them. A context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="flagcast-defences-", ignore_cleanup_errors=True)
        self._scratch = Path(self._folder.name)
        self._workers: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        self.whole = self._scratch / "whole"
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, self.whole / Path(package).name, ignore=shutil.ignore_patterns("__pycache__")
            )
        compileall.compile_dir(self.whole, quiet=2)
        for _ in range(AT_ONCE):
            self._workers.put(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__)), "--worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for _ in range(AT_ONCE):
            self._workers.get().communicate()
        self._folder.cleanup()

    @contextmanager
    def without(self, defence: Defence) -> Iterator[Path]:
        """A copy with one defence less. Raises ValueError where the list no longer fits the sources."""
        copy = Path(tempfile.mkdtemp(dir=self._scratch)) / "without"
        # With its compiled modules, which fit as long as the sources' times are the same.
        shutil.copytree(self.whole, copy)
        path = copy.joinpath(*Path(defence.file).parts[2:])
        path.write_text(defence.taken_from(path.read_text(encoding="utf-8")), encoding="utf-8")
        Path(importlib.util.cache_from_source(str(path))).unlink()
        yield copy
        shutil.rmtree(copy.parent)

    def run(
        self,
        copy: Path,
        tests: Sequence[str],
        *,
        module: str = "flagcast_shared.trust",
        until_first: bool = True,
    ) -> Outcome:
        """Run tests, relative to tests/, on a copy whose `module` is the changed one."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        report, said = folder / "report.xml", folder / "said"
        arguments = [
            *(["-x"] if until_first else []), "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist",
            "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), f"--junitxml={report}",
            f"--timeout={TEST_TIMEOUT_SECONDS}", f"--basetemp={folder / 'tests'}",
            *(str(ROOT / "tests" / test) for test in tests),
        ]  # fmt: skip
        worker = self._workers.get()
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            print(json.dumps([str(copy), module, str(said), arguments]), file=worker.stdin, flush=True)
            code = int(worker.stdout.readline())
        finally:
            self._workers.put(worker)
        if code == TOO_LONG:
            return Outcome(broken=f"no end within {RUN_TIMEOUT_SECONDS} s")
        if code < 0:
            # What was let through took the whole process along, as it would have taken the agent.
            return Outcome(failed=((tests[0], f"its process was ended by signal {-code}"),))
        if code not in (0, 1) or not report.exists():
            return Outcome(broken=f"exit code {code}: {said.read_text(errors='replace').strip()[-2000:]}")
        return _read(report)


def _read(report: Path) -> Outcome:
    failed, errors, skipped, tests, broken = [], [], [], 0, ""
    for case in ET.parse(report).getroot().iter("testcase"):
        tests += 1
        name = f"{'/'.join(case.get('classname', '').split('.')[1:])}.py::{case.get('name', '')}"
        failure, error, skip = case.find("failure"), case.find("error"), case.find("skipped")
        if failure is not None:
            why = failure.get("message", "")
            if why.startswith(_OF_THE_LIST):
                broken = broken or f"{name}: {why}"
            failed.append((name, why))
        elif error is not None:
            errors.append(f"{name}: {error.get('message', '')}")
        elif skip is not None:
            skipped.append(f"skipped: {skip.get('message', '')}")
    # What fails after a test has failed is its fixture, which finds what the test left behind.
    broken = broken or (errors[0] if errors and not failed else "")
    return Outcome(tests, tuple(failed), broken, skipped[0] if len(skipped) == tests else "")


def _module_of(defence: Defence) -> str:
    return ".".join(Path(defence.file).with_suffix("").parts[2:])


def judge(bench: Workbench, defence: Defence, *, wider: Sequence[str] = WIDER) -> Verdict:
    """Take one defence away; its own test first, then whatever else might notice."""
    with bench.without(defence) as copy:
        for test in (defence.test, *wider):
            outcome = bench.run(copy, [test], module=_module_of(defence))
            if outcome.broken:
                return Verdict(defence, broken=outcome.broken)
            if outcome.failed:
                return Verdict(defence, caught=outcome.failed[0][0])
            if outcome.skipped:
                return Verdict(defence, skipped=outcome.skipped)
        return Verdict(defence)


def measure(options: Options) -> Iterator[Row]:
    """One row per defence with the test that noticed, then the sums."""
    chosen: Sequence[Defence] = DEFENCES
    if options.quick:
        without_a_broker = [defence for defence in DEFENCES if not defence.test.startswith("brokers/")]
        chosen = without_a_broker[:: -(-len(without_a_broker) // QUICK_SAMPLE)]
    # Where nothing is taken away nothing may fail, or the rest would say nothing.
    suites = [] if options.quick else [ATTACKS_BY_A_BROKER, ATTACKS]
    others = {
        each.test.partition("[")[0] for each in chosen if options.quick or not each.test.startswith(ATTACKS)
    }
    with Workbench() as bench, ThreadPoolExecutor(AT_ONCE) as pool:
        whole = [
            pool.submit(bench.run, bench.whole, tests, until_first=False)
            for tests in (*([each] for each in suites), sorted(others))
        ]
        judged = {pool.submit(judge, bench, defence): number for number, defence in enumerate(chosen)}
        verdicts: dict[int, Verdict] = {}
        for done in as_completed(judged):
            verdict = verdicts[judged[done]] = done.result()
            said = f"{verdict.said}: {verdict.broken}" if verdict.broken else verdict.said
            print(f"[{len(verdicts)}/{len(chosen)}] {verdict.defence.name}: {said}", file=sys.stderr)
        outcomes = [each.result() for each in whole]
    for outcome in outcomes:
        for name, why in (*outcome.failed, *([("", outcome.broken)] if outcome.broken else [])):
            print(f"with every defence in its place: {name}: {why}", file=sys.stderr)
    ordered = [verdicts[number] for number in range(len(chosen))]
    for verdict in ordered:
        fails = None if verdict.broken or verdict.skipped else int(bool(verdict.caught))
        yield Row(verdict.defence.name, fails, "test fails", verdict.said, goal=Goal(">=", 1))
    not_alone = sum(bool(each.caught) and not each.is_by_its_own for each in ordered)
    none = Goal("<=", 0)
    yield Row("defences", len(ordered), "", note=f"of {len(DEFENCES)}" if options.quick else "")
    yield Row("removals that no test notices", sum(each.has_survived for each in ordered), "", goal=none)
    yield Row("removals that their own test does not notice", not_alone, "", goal=none)
    yield Row("removals that break something else", sum(bool(each.broken) for each in ordered), "", goal=none)
    yield Row("removals whose test cannot run here", sum(bool(each.skipped) for each in ordered), "")
    attacking = sum(each.tests for each in outcomes[: len(suites)]) or None
    yield Row(
        "attack tests",
        attacking,
        "",
        goal=Goal(">=", ATTACKS_MIN),
        note="--quick does not run them" if options.quick else "",
    )
    failing = sum(len(each.failed) + bool(each.broken) for each in outcomes)
    yield Row("tests that fail with every defence in its place", failing, "", goal=none)


def _work() -> int:
    # Starting Python and pytest takes longer than most tests. Both are loaded here once, and nothing of ours; each run is a fork.
    import _pytest.config

    for name in (*PRELOADED, *(f"_pytest.{plugin}" for plugin in _pytest.config.default_plugins)):
        importlib.import_module(name)
    for line in sys.stdin:
        copy, module, said, arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run_tests(Path(copy), module, Path(said), arguments))
        print(_code_of(child), flush=True)
    return 0


def _code_of(child: int) -> int:
    deadline = time.monotonic() + RUN_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TOO_LONG


def _run_tests(copy: Path, module: str, said: Path, arguments: list[str]) -> int:
    os.setsid()
    with said.open("wb") as output, Path(os.devnull).open("rb") as nothing:
        for number, file in enumerate((nothing, output, output)):
            os.dup2(file.fileno(), number)
    sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX_BYTES, MEMORY_MAX_BYTES))
    os.chdir(said.parent)
    os.environ["PYTHONPATH"] = str(copy)  # for the agents and readers that tests start
    sys.path[0] = str(copy)
    code = NOT_IMPORTED
    try:
        for name in (*(Path(package).name for package in PACKAGES), module):
            found = importlib.import_module(name).__file__
            assert found is not None
            assert Path(found).is_relative_to(copy), f"{name} is imported from {found}"
        import pytest

        code = int(pytest.main(arguments))
    except BaseException:  # noqa: BLE001  # whatever the changed module raises: it cannot be imported
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.path.pop(0)
        sys.exit(_work())
    sys.exit(run("What notices when a defence is gone", measure))
