"""The command `flagcast`: reads the command line, prints, and says by its exit code how it ended.

0  done
1  failed, or refused: an error in the flags, a ledger that is busy, a message on the broker that is not believed
2  the command line or a configuration cannot be used
3  the broker is not there, does not let us, or does not do what was asked
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flagcast_shared.errors import FlagcastError, InvalidInput
from flagcast_shared.ids import parse_namespace
from flagcast_shared.limits import PROVENANCE_MAX_ENTRIES, PROVENANCE_TEXT_MAX_CHARACTERS
from flagcast_shared.topics import HeadAddress

from . import clock, project
from .mqtt import BrokerError
from .planner import Action, Plan
from .project import Project

if TYPE_CHECKING:
    from .publisher import OnBroker

DONE: Final = 0
FAILED: Final = 1
UNUSABLE: Final = 2
NO_BROKER: Final = 3

_PROJECT_VARIABLE: Final = "FLAGCAST_PROJECT"
_DIGEST_DIGITS: Final = 16
# Enough of a digest for people; JSON has all of it.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `argv` is without the program's name."""
    arguments = _parser().parse_args(argv)
    command: _Command = arguments.command
    try:
        return command.run(arguments)
    except BrokerError as error:
        return _fail(error, NO_BROKER)
    except InvalidInput as error:
        return _fail(error, UNUSABLE)
    except FlagcastError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return 130  # as a shell says it: 128 + SIGINT
    except BrokenPipeError:
        # The reader of a pipe has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _init(arguments: argparse.Namespace) -> int:
    from . import publisher

    made = publisher.found(arguments.folder, arguments.environment, arguments.broker, arguments.prefix)
    print(f"made a project for environment {made.environment!r} in {made.folder}")
    print(f"  {made.folder / project.CONFIG_NAME}    what is published where; every key is explained in it")
    print(f"  {made.root_file(1)}    the trust anchor: provision devices with it")
    print(f"  {made.publisher_key}    signs flags; keep it on this machine")
    print(f"  {made.root_key}    names the publisher's keys; keep a copy, and move it off this machine")
    print(f"next: flagcast publish FLAGS --project {arguments.folder}")
    return DONE


def _validate(arguments: argparse.Namespace) -> int:
    from . import validate

    return validate.run(arguments.path, arguments.format, sys.stdout, strict=arguments.strict)


def _publish(arguments: argparse.Namespace) -> int:
    from . import publisher, validate
    from .findings import as_text

    settings = project.load(arguments.project)
    provenance = _provenance(arguments)
    remove = frozenset(parse_namespace(name) for name in arguments.remove)
    compilation = validate.load(arguments.path)
    for each in compilation.findings:
        print(as_text(each), file=sys.stderr)
    if compilation.has_errors:
        print(f"flagcast: error: {arguments.path} has errors; nothing was published", file=sys.stderr)
        return FAILED
    wanted = publisher.Wanted(compilation.namespaces, provenance, remove, arguments.refresh)
    if arguments.dry_run:
        outcome = publisher.preview(settings, wanted, say=_note)
        for plan in outcome.plans:
            _show_plan(plan)
    else:
        outcome = publisher.publish(settings, wanted, say=_note, show=_show_plan)
    for namespace in outcome.left_alone:
        print(
            f"{namespace}: not in {arguments.path}, left as it is; take its flags away with --remove {namespace}"
        )
    issued = sum(plan.head_draft is not None for plan in outcome.plans)
    if arguments.dry_run:
        print("dry run: nothing was published")
    elif issued:
        cleared = f"; {_count(outcome.cleared, 'old message')} cleared" if outcome.cleared else ""
        print(
            f"published {_count(issued, 'namespace')} to {settings.broker.url}, read back and confirmed{cleared}"
        )
    else:
        print(f"nothing to publish; {settings.broker.url} is up to date")
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    from . import publisher

    settings = project.load(arguments.project)
    seen = publisher.read_broker(settings)
    if arguments.format == "json":
        print(json.dumps(_seen_as_json(settings, seen), indent=2))
    else:
        _print_seen(settings, seen)
    is_whole = all(live.records is not None for live in seen.live.values())
    return DONE if is_whole and not seen.refused else FAILED


def _log(arguments: argparse.Namespace) -> int:
    from .ledger import Ledger

    settings = project.load(arguments.project)
    if not settings.ledger.exists():
        entries = []
    else:
        ledger = Ledger(settings.ledger, settings.environment)
        try:
            entries = ledger.entries()
        finally:
            ledger.close()
    if arguments.format == "json":
        print(
            json.dumps(
                [
                    {
                        "namespace": each.namespace,
                        "sequence": each.sequence,
                        "epoch": each.epoch,
                        "version": each.version,
                        "action": each.action,
                        "state": each.state,
                        "digest": each.digest.hex(),
                        "reserved": clock.as_text(each.reserved),
                        "published": None if each.published is None else clock.as_text(each.published),
                        "provenance": dict(each.provenance),
                    }
                    for each in entries
                ],
                indent=2,
            )
        )
        return DONE
    if not entries:
        print("nothing was issued yet")
    for each in entries:
        origin = " ".join(f"{key}={value}" for key, value in each.provenance.items())
        print(
            f"{clock.as_text(each.reserved)}  {each.namespace}  head {each.sequence}  version {each.version}"
            f"  {each.action}  {each.state}  {each.digest.hex()[:_DIGEST_DIGITS]}  {origin}".rstrip()
        )
    return DONE


def _broker(arguments: argparse.Namespace) -> int:
    from . import broker

    _note(
        "warning: an open broker without persistence, for development only; use mosquitto for anything real"
    )
    broker.run(arguments.bind, lambda line: print(line, flush=True), is_verbose=arguments.verbose)
    return DONE


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run

    return run(arguments.flags)


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    help: str
    epilog: str
    run: Callable[[argparse.Namespace], int]
    add: Callable[[argparse.ArgumentParser], None]


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="the project's folder; made if it is not there"
    )
    parser.add_argument(
        "--environment",
        required=True,
        metavar="NAME",
        help="what is published for, e.g. production; signed into everything",
    )
    parser.add_argument(
        "--broker",
        default="mqtt://127.0.0.1:1883",
        metavar="URL",
        help="mqtt://HOST[:PORT] or mqtts://HOST[:PORT] (default: %(default)s)",
    )
    parser.add_argument(
        "--prefix",
        default="flagcast",
        metavar="LEVEL",
        help="the first level of every topic (default: %(default)s)",
    )


def _add_validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a flags file, or a folder of them")
    _add_format(parser)
    parser.add_argument("--strict", action="store_true", help="a warning counts as an error")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a flags file, or a folder of them")
    _add_project(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would change and publish nothing")
    parser.add_argument(
        "--refresh", action="store_true", help="issue new heads even where the old ones stay fresh"
    )
    parser.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="publish this namespace as empty; may be given several times",
    )
    parser.add_argument(
        "--provenance",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="where this release comes from, e.g. commit=1a2b3c; stands in every head; may be given several times",
    )


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_project(parser)
    _add_format(parser)


def _add_broker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bind",
        default="127.0.0.1:1883",
        metavar="HOST:PORT",
        help="where to listen; port 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="log connections and messages")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flags",
        type=Path,
        default=Path("examples"),
        metavar="PATH",
        help="the flags to publish (default: %(default)s)",
    )


def _add_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--project",
        type=Path,
        default=Path(os.environ.get(_PROJECT_VARIABLE) or "."),
        metavar="DIR",
        help=f"the project's folder (default: ${_PROJECT_VARIABLE}, else the current folder)",
    )


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="how to print (default: %(default)s)"
    )


COMMANDS: Final = (
    _Command(
        "init",
        "make a project: a configuration, a root key and a publisher's key",
        "example:\n  flagcast init fleet --environment production --broker mqtts://mqtt.example.com",
        _init,
        _add_init,
    ),
    _Command(
        "validate",
        "say everything that is wrong with a flags file",
        "example:\n  flagcast validate features.yml --format json",
        _validate,
        _add_validate,
    ),
    _Command(
        "publish",
        "compile, show the difference to what is live, sign, publish, and read back",
        "examples:\n  flagcast publish features.yml --project fleet --dry-run\n"
        '  flagcast publish flags/ --project fleet --provenance commit="$(git rev-parse HEAD)"',
        _publish,
        _add_publish,
    ),
    _Command(
        "show",
        "show what is live on the broker, verified",
        "example:\n  flagcast show --project fleet --format json",
        _show,
        _add_show,
    ),
    _Command(
        "log",
        "show every number ever issued",
        "example:\n  flagcast log --project fleet",
        _log,
        _add_show,
    ),
    _Command(
        "broker",
        "run an embedded MQTT broker for development",
        "example:\n  flagcast broker --bind 127.0.0.1:0",
        _broker,
        _add_broker,
    ),
    _Command(
        "demo",
        "publish, receive, verify, persist and answer, all on this machine",
        "example:\n  flagcast demo --flags examples",
        _demo,
        _add_demo,
    ),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flagcast",
        description="Publish feature flags, signed, to devices that are often offline.",
        epilog="exit codes: 0 done, 1 failed or refused, 2 command line or configuration, 3 broker\n\n"
        "example:\n  flagcast init fleet --environment test && flagcast publish features.yml --project fleet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flagcast {version('flagcast-bridge')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        added = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add(added)
        added.set_defaults(command=command)
    return parser


def _show_plan(each: Plan) -> None:
    stable = each.head.stable
    if each.action is Action.UNCHANGED:
        print(f"{each.namespace}: unchanged at version {stable.version}, head {each.head.sequence}")
        return
    was = f"was {each.previous}" if each.previous is not None else "nothing before"
    print(
        f"{each.namespace}: {each.action}, version {stable.version} ({was}), head {each.head.sequence}: {each.why}"
    )
    for identity in each.diff.added:
        print(f"  + {identity.kind} {identity.key}")
    for changed in each.diff.changed:
        print(f"  ~ {changed.id.kind} {changed.id.key}: {changed.what}")
    for identity in each.diff.removed:
        print(f"  - {identity.kind} {identity.key}")
    if each.content is not None:
        how = ""
        if each.head.inline is not None:
            how = (
                f"; {len(each.head.inline.body)} bytes for devices at version {each.head.inline.from_version}"
            )
        elif stable.deltas:
            how = f"; a delta for devices at version {stable.deltas[0]}"
        size = f"{stable.size} bytes in {_count(stable.parts, 'part')}"
        print(f"  holds {_count(len(each.content.records), 'record')}, {size}{how}")


def _seen_as_json(settings: Project, seen: "OnBroker") -> Mapping[str, object]:
    now = clock.now()
    return {
        "environment": settings.environment,
        "broker": settings.broker.url,
        "root": seen.root.number,
        "root_expires": clock.as_text(seen.root.expires),
        "namespaces": [
            {
                "namespace": name,
                "epoch": live.head.epoch,
                "sequence": live.head.sequence,
                "version": live.head.stable.version,
                "digest": live.head.stable.digest.hex(),
                "issued": clock.as_text(live.head.issued),
                "expires": clock.as_text(live.head.expires),
                "is_fresh": now < live.head.expires,
                "is_whole": live.records is not None,
                "records": None if live.records is None else len(live.records),
                "bytes": live.head.stable.size,
                "parts": live.head.stable.parts,
                "provenance": dict(live.head.provenance),
            }
            for name, live in sorted(seen.live.items())
        ],
        "refused": [
            {"topic": settings.topics.of(address), "attack": error.attack, "why": str(error)}
            for address, error in seen.refused.items()
        ],
    }


def _print_seen(settings: Project, seen: "OnBroker") -> None:
    now = clock.now()
    print(
        f"environment {settings.environment} on {settings.broker.url}, verified by root {seen.root.number} of {settings.folder}"
    )
    if not seen.live and not seen.refused:
        print("nothing is published")
    for name, live in sorted(seen.live.items()):
        head, stable = live.head, live.head.stable
        size = f"{stable.size} bytes in {_count(stable.parts, 'part')}"
        print(f"\n{name}")
        print(f"  version   {stable.version} (epoch {head.epoch}), head {head.sequence}")
        print(f"  digest    {stable.digest.hex()[:_DIGEST_DIGITS]}...")
        print(f"  issued    {clock.as_text(head.issued)}")
        print(
            f"  expires   {clock.as_text(head.expires)} ({'fresh' if now < head.expires else 'STALE: publish again'})"
        )
        if live.records is None:
            print(f"  content   NOT WHOLE on the broker, of {size}: publish again")
        else:
            print(f"  content   {_count(len(live.records), 'record')}, {size}")
        for key, value in head.provenance.items():
            print(f"  {key:<9} {value}")
    for address, error in seen.refused.items():
        print(f"\nREFUSED {settings.topics.of(address)}: {error.attack}: {error}")
    if any(isinstance(address, HeadAddress) for address in seen.refused):
        print("Devices refuse this too; publish again to replace it.")


def _provenance(arguments: argparse.Namespace) -> Mapping[str, str]:
    given: dict[str, str] = {}
    for pair in arguments.provenance:
        name, equals, text = pair.partition("=")
        if not equals or not name or max(len(name), len(text)) > PROVENANCE_TEXT_MAX_CHARACTERS:
            raise InvalidInput(
                f"--provenance {pair!r}: allowed is NAME=TEXT, each of at most {PROVENANCE_TEXT_MAX_CHARACTERS} characters"
            )
        given[name] = text
    if len(given) > PROVENANCE_MAX_ENTRIES:
        raise InvalidInput(
            f"--provenance: {len(given)} entries; at most {PROVENANCE_MAX_ENTRIES} are allowed"
        )
    return given or {"source": arguments.path.resolve().name[:PROVENANCE_TEXT_MAX_CHARACTERS]}


def _note(line: str) -> None:
    print(f"flagcast: {line}", file=sys.stderr, flush=True)


def _fail(error: FlagcastError, code: int) -> int:
    print(f"flagcast: error: {error}", file=sys.stderr)
    return code


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
