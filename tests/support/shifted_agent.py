"""An agent whose clocks a test can set while it runs.

Run as `python shifted_agent.py FILE flagcast-agent COMMAND...`. FILE holds JSON: by how many seconds the device's own clock
(`wall`) and the monotonic one (`passed`) are ahead; it is read at every look at a clock.
"""

import json
import sys
import time
from pathlib import Path

from flagcast_agent import cli, clock, follower


def main(file: Path, arguments: list[str]) -> int:
    real_wall, real_monotonic = time.time, clock.monotonic  # noqa: TID251  # what is shifted
    real_wall_ns = time.time_ns  # by which Python 3.13 dates log records

    def ahead(name: str) -> float:
        return float(json.loads(file.read_text(encoding="utf-8"))[name])

    # The whole process goes by the shifted clock, its log lines too.
    time.time = lambda: real_wall() + ahead("wall")  # noqa: TID251  # as above
    time.time_ns = lambda: real_wall_ns() + int(ahead("wall")) * 10**9  # as above
    clock.monotonic = lambda: real_monotonic() + ahead("passed")
    follower.IDLE_SECONDS = 0.2  # type: ignore[misc]  # so that a test waits less for the next look at the clock
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[3:]))
