"""An application that evaluates in process at full speed; made to be watched while its agent is killed.

Run as `python asking_child.py DATABASE FLAG`. Prints a line whenever the flag's answer changes, and at the end of its input one
JSON object: how often it asked, how often it had to take its default, and the longest pause between two answers.
"""

import json
import sys
import threading
import time

from flagcast_agent.client import Client


def main(database: str, flag: str) -> None:
    is_over = threading.Event()
    threading.Thread(target=wait_for_end, args=(is_over,), daemon=True).start()
    asked = defaults = longest = 0
    said = ""
    with Client(database) as client:
        client.wait_until_ready(30)
        last = time.perf_counter_ns()
        while not is_over.is_set():
            answer = client.variant(flag, "the default", "entity")
            now = time.perf_counter_ns()
            longest = max(longest, now - last)
            asked += 1
            defaults += answer == "the default"
            if answer != said:
                said = answer
                sys.stdout.write(f"{answer}\n")
                sys.stdout.flush()
            last = time.perf_counter_ns()
        details = client.evaluate(flag, "the default", "entity")
    result = {
        "asked": asked, "defaults": defaults, "longest_ms": longest / 1e6,
        "age_seconds": details.age_seconds, "is_stale": details.is_stale, "problem": client.problem,
    }  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n")


def wait_for_end(is_over: threading.Event) -> None:
    sys.stdin.read()
    is_over.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
