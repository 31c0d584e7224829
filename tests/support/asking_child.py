"""An application that evaluates in process at full speed; made to be watched while its agent is killed.

Run as `python asking_child.py DATABASE FLAG`. Prints a line whenever the flag's answer changes; for every line of its input one
JSON object with the answer's age and whether it is stale; and at the end of its input one with how often it asked, how often it
had to take its default, and the longest pause between two answers.
"""

import json
import sys
import threading
import time

from flagcast_agent.client import Client


def main(database: str, flag: str) -> None:
    is_over, is_wanted = threading.Event(), threading.Event()
    threading.Thread(target=read_input, args=(is_over, is_wanted), daemon=True).start()
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
                say(answer)
            if is_wanted.is_set():
                is_wanted.clear()
                details = client.evaluate(flag, "the default", "entity")
                say(json.dumps({"age_seconds": details.age_seconds, "is_stale": details.is_stale}))
            last = time.perf_counter_ns()
        problem = client.problem
    say(json.dumps({"asked": asked, "defaults": defaults, "longest_ms": longest / 1e6, "problem": problem}))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def read_input(is_over: threading.Event, is_wanted: threading.Event) -> None:
    for _ in sys.stdin:
        is_wanted.set()
    is_over.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
