"""A process that admits one update after another and prints each version once it is on disk; made to be killed.

Run as `python updating_child.py DATABASE`. It goes on from what the database holds.
"""

import sys
from dataclasses import replace
from pathlib import Path

from agent_shell import AgentShell
from publisher_simulator import Content, PublisherSimulator

from flagcast_shared.ids import FlagKey, Sequence
from flagcast_shared.model import BooleanFlag

FLAGS = 60


def entries_of(version: int) -> list[BooleanFlag]:
    """The content of a version: every flag changes in half of the versions, and one exists in this version alone."""
    every = [
        BooleanFlag(FlagKey(f"flag-{number}"), enabled=bool((version >> (number % 3)) & 1))
        for number in range(FLAGS)
    ]
    return [*every, BooleanFlag(FlagKey(f"only-{version}"), enabled=True)]


def content_of(publisher: PublisherSimulator, version: int) -> Content:
    return publisher.make_content(entries_of(version), version=version)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(path: Path) -> None:
    publisher = PublisherSimulator()
    agent = AgentShell(path, publisher)
    agent.connect()
    held = agent.sync.trusted.holdings.get(publisher.namespace)
    version = 0
    if held is not None:
        version = held.version
        publisher.contents.append(content_of(publisher, version))
        publisher.heads.append(replace(held.head, sequence=Sequence(version)))
    say(f"held {version}")
    while True:
        version += 1
        content = publisher.release(*entries_of(version), inline=version % 2 == 0)
        agent.hear()
        assert agent.sync.trusted.holdings[publisher.namespace].version == content.version == version
        say(str(version))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
