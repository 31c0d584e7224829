"""The command `flagcast-agent`. The one place that reads arguments, prints for people and sets exit codes.

Exit codes: 0 it worked; 1 it did not, or the flag has no answer; 2 wrong usage or configuration; 3 no agent answers;
4 the flag was evaluated and has no value.
"""

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

from flagcast_shared.errors import FlagcastError, InvalidInput
from flagcast_shared.printing import json_text, printable, printable_line

from .limits import SYNC_MAX_SECONDS, SYNC_SECONDS

if TYPE_CHECKING:
    from .api.local import LocalClient
    from .api.questions import Question
    from .status import Caught

DEFAULT_FOLDER: Final = "/var/lib/flagcast"
FOLDER_VARIABLE: Final = "FLAGCAST_AGENT_DIR"
SOCKET_VARIABLE: Final = "FLAGCAST_AGENT_SOCKET"

PROTOCOLS: Final = ("auto", "5", "3.1.1")
ONCE_SECONDS: Final = 60.0
"""How long a single run may take: a slow connection, a large snapshot, and a while for a publisher to answer."""

OK: Final = 0
FAILED: Final = 1
WRONG_INPUT: Final = 2
NO_AGENT: Final = 3
NO_VALUE: Final = 4

_EPILOG: Final = f"""\
The folder that a device was provisioned with is --dir, else ${FOLDER_VARIABLE}, else {DEFAULT_FOLDER}.
Commands that ask a running agent find its socket in that folder's configuration; --socket or ${SOCKET_VARIABLE}
names it directly, for a user who may use the socket but not read the folder.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.perform(options))
    except InvalidInput as error:
        return _fail(error, WRONG_INPUT)
    except FlagcastError as error:
        return _fail(error, NO_AGENT if type(error).__name__ == "AgentNotReachable" else FAILED)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _echo(*lines: str, out: TextIO | None = None) -> None:
    # The one place that prints: every character does, and a line break within a line cannot forge another.
    print("\n".join(printable_line(line) for line in lines), file=out or sys.stdout, flush=True)


def _fail(error: Exception, code: int) -> int:
    _echo(f"flagcast-agent: error: {error}", out=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="flagcast-agent",
        description="Feature flags on this device: verified, persisted, answered with or without a network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the release and exit")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, prog="flagcast-agent"
    )

    run = _command(
        commands,
        "run",
        "follow the broker and answer applications, until SIGTERM",
        _run,
        "SIGUSR1 makes a running agent try to be up to date now, at most once a second.\n"
        "Exit codes: 0 ended by a signal; 1 the database or the socket cannot be used; 2 usage or configuration.\n"
        "With --once: 0 up to date, 1 not in time or the database cannot be used (the lines say why), 2 as above.\n"
        "What counts as up to date: flagcast-agent sync --help.",
    )
    _folder_option(run)
    run.add_argument(
        "--recover",
        action="store_true",
        help="set a corrupt or newer database aside and fetch everything again from the broker",
    )
    run.add_argument("--verbose", action="store_true", help="log more")
    run.add_argument(
        "--once",
        action="store_true",
        help="connect, become up to date, report, leave; answers no application meanwhile",
    )
    _timeout_option(run, ONCE_SECONDS, "with --once, how long that may take")

    sync = _command(
        commands,
        "sync",
        "have the running agent try to be up to date now, and wait until it is",
        _sync,
        "Exit codes: 0 up to date, 1 not in time (the lines say why), 2 usage or configuration, 3 no agent answers.\n"
        "Up to date: a head of every namespace was heard since, believed, and its content is held and on disk. A namespace\n"
        "of which nothing is held and nothing was heard for 10 s counts as one where nothing is published.",
    )
    _folder_option(sync)
    _socket_option(sync)
    _timeout_option(sync, SYNC_SECONDS, "how long to wait")
    _format_option(sync)

    status = _command(
        commands, "status", "what the running agent knows, how old that is, and its link", _status
    )
    _folder_option(status)
    _socket_option(status)
    _format_option(status)

    evaluate = _command(
        commands,
        "eval",
        "ask the running agent for a flag",
        _evaluate,
        "example: flagcast-agent eval new-dashboard --entity charger-17 --context site=oslo\n"
        "Prints the value, the reason in OpenFeature's words and the attachment. The agent does not count it as usage.\n"
        "Exit codes: 0 a value, 1 no answer, 2 usage or configuration, 3 no agent answers, 4 the flag has no value: an\n"
        "application gets its default.",
    )
    _question_options(evaluate)

    explain = _command(
        commands,
        "explain",
        "ask the running agent why an entity gets its answer",
        _explain,
        "example: flagcast-agent explain new-dashboard --entity charger-17 --context site=oslo",
    )
    _question_options(explain)

    flags = _command(commands, "flags", "list the flags of a namespace", _flags)
    _folder_option(flags)
    _socket_option(flags)
    flags.add_argument("--namespace", default="", help="the namespace (the agent's first one)")
    _format_option(flags)

    doctor = _command(
        commands,
        "doctor",
        "check this device: what is wrong, and what to do; needs no running agent",
        _doctor,
        "Exit codes: 0 nothing failed (warnings are printed), 1 a check failed.",
    )
    _folder_option(doctor)
    _format_option(doctor)

    provision = _command(
        commands,
        "provision",
        "write what a device starts from: configuration and trust anchor",
        _provision,
        "example: flagcast-agent provision /var/lib/flagcast --anchor root.cbor --device charger-17 --broker mqtts://broker",
    )
    provision.add_argument(
        "folder", metavar="DIR", type=Path, help="the folder to write; nothing in it is overwritten"
    )
    provision.add_argument(
        "--anchor", required=True, type=Path, metavar="FILE", help="the publisher's root, a file"
    )
    provision.add_argument("--device", required=True, metavar="ID", help="this device's id")
    provision.add_argument(
        "--broker", required=True, metavar="URL", help="mqtt://, mqtts://, ws:// or wss://HOST[:PORT][/PATH]"
    )
    provision.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="a namespace to follow; repeatable (default)",
    )
    provision.add_argument(
        "--protocol", choices=PROTOCOLS, default="auto", help="the broker's version of MQTT (%(default)s)"
    )
    provision.add_argument("--prefix", default="flagcast", help="the publisher's topic prefix (%(default)s)")
    provision.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE", help="a label; repeatable"
    )
    provision.add_argument(
        "--socket", default="", metavar="PATH", help="the socket for applications (agent.sock in DIR)"
    )
    provision.add_argument("--model", default="", help="the device's model, device.model in every context")
    provision.add_argument("--firmware", default="", help="its firmware, device.firmware in every context")
    return parser


class _Parser(argparse.ArgumentParser):
    # A script may pass on a stranger's words as arguments; what is wrong with them is printed.
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        _echo(f"{self.prog}: error: {message}", out=sys.stderr)
        self.exit(WRONG_INPUT)


class _Version(argparse.Action):
    # Reading the installed release costs an import that no other command needs.
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .config import agent_version

        _echo(f"flagcast-agent {agent_version()}")
        parser.exit()


def _command(
    commands: "argparse._SubParsersAction[_Parser]",
    name: str,
    summary: str,
    perform: object,
    epilog: str = "",
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=epilog
    )
    command.set_defaults(perform=perform)
    return command


def _timeout_option(command: argparse.ArgumentParser, default: float, what: str) -> None:
    command.add_argument(
        "--timeout", type=_seconds, default=default, metavar="SECONDS", help=f"{what} (%(default)s)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= SYNC_MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: allowed are numbers above 0 and up to {SYNC_MAX_SECONDS:g}"
        )
    return seconds


def _folder_option(command: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    command.add_argument(
        "--dir",
        dest="folder",
        type=Path,
        default=default,
        metavar="DIR",
        help="the device's folder (%(default)s)",
    )


def _socket_option(command: argparse.ArgumentParser) -> None:
    default = os.environ.get(SOCKET_VARIABLE)
    command.add_argument(
        "--socket",
        type=Path,
        default=Path(default) if default else None,
        metavar="PATH",
        help="the agent's socket",
    )


def _format_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format", choices=("text", "json"), default="text", help="how to print (%(default)s)"
    )


def _question_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("flag", metavar="FLAG", help="the flag's key")
    command.add_argument(
        "--entity", default="", metavar="ID", help="the entity that asks, such as a user or device id"
    )
    command.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a property of the context; repeatable",
    )
    command.add_argument("--namespace", default="", help="the namespace (the agent's first one)")
    _folder_option(command)
    _socket_option(command)
    _format_option(command)


def _run(options: argparse.Namespace) -> int:
    # A start makes next to nothing that is not kept: looking for garbage meanwhile would be a tenth of it.
    gc.disable()
    try:
        from . import config, daemon, logs

        settings = config.load(options.folder)
        logs.set_up(settings.log_format, verbose=options.verbose)
        if options.once:
            gc.enable()
            return _caught(daemon.run_once(settings, options.timeout, recover=options.recover), "text")
        return daemon.run(settings, recover=options.recover)  # collects garbage again once it answers
    finally:
        gc.enable()


def _sync(options: argparse.Namespace) -> int:
    return _caught(_client(options).sync(options.timeout), options.format)


def _caught(caught: "Caught", how: str) -> int:
    if how == "json":
        _print_json(caught.as_json())
    elif caught.is_current:
        _echo("up to date")
        for namespace in caught.status.namespaces:
            _echo(f"  {namespace.namespace}: {namespace.held}")
    else:
        _echo("not up to date")
        for line in caught.why:
            _echo(f"  {line}")
    return OK if caught.is_current else FAILED


def _status(options: argparse.Namespace) -> int:
    status = _client(options).status()
    if options.format == "json":
        _print_json(status.as_json())
    else:
        _echo(*status.as_text())
    return OK


def _evaluate(options: argparse.Namespace) -> int:
    evaluation = _client(options).evaluate(_question(options))
    if options.format == "json":
        _print_json(evaluation.as_json())
        return OK if evaluation.value else NO_VALUE
    columns = [evaluation.value or "(none)", evaluation.reason]
    if evaluation.attachment:
        columns.append(evaluation.attachment)
    # A tab in a variant's key must not make a column.
    _echo("\t".join(printable(column) for column in columns))
    return OK if evaluation.value else NO_VALUE


def _explain(options: argparse.Namespace) -> int:
    explained = _client(options).explain(_question(options))
    if options.format == "json":
        _print_json(
            {
                "namespace": explained.namespace,
                "epoch": explained.epoch,
                "version": explained.version,
                "explanation": json.loads(explained.json),
            }
        )
        return OK
    _echo(*explained.lines)
    return OK


def _flags(options: argparse.Namespace) -> int:
    listed = _client(options).flags(options.namespace)
    if options.format == "json":
        _print_json(
            {
                "namespace": listed.namespace,
                "epoch": listed.epoch,
                "version": listed.version,
                "flags": [
                    {
                        "key": flag.key,
                        "type": flag.type,
                        "enabled": flag.enabled,
                        "problem": flag.problem or None,
                    }
                    for flag in listed.flags
                ],
            }
        )
        return OK
    _echo(f"{listed.namespace}: version {listed.version}, {len(listed.flags)} flags")
    width = max((len(flag.key) for flag in listed.flags), default=0)
    for flag in listed.flags:
        # `enabled` of a boolean flag is no switch: its rollouts come first.
        words = ("otherwise on", "otherwise off") if flag.type == "boolean" else ("enabled", "disabled")
        state = words[0] if flag.enabled else words[1]
        _echo(f"  {flag.key:<{width}}  {flag.type:<8} {flag.problem or state}")
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from . import doctor

    findings = []
    for finding in doctor.examine(options.folder):
        findings.append(finding)
        if options.format == "text":
            _echo(finding.as_text())
    has_failed = any(finding.verdict == "failed" for finding in findings)
    if options.format == "json":
        _print_json({"ok": not has_failed, "checks": [finding.as_json() for finding in findings]})
    return FAILED if has_failed else OK


def _provision(options: argparse.Namespace) -> int:
    from flagcast_shared.errors import InvalidConfiguration, Refused
    from flagcast_shared.trust import anchor, anchor_environment

    from . import config

    data = config.read_anchor(options.anchor)
    try:
        environment = anchor_environment(data)
        root = anchor(data, environment)
    except Refused as error:
        raise InvalidConfiguration(f"{options.anchor}: not a trust anchor: {error}") from error
    labels = dict(_pair(text, "--label") for text in options.label)
    document: dict[str, object] = {
        "environment": environment,
        "prefix": options.prefix,
        "namespaces": options.namespace or ["default"],
        "device": {
            "id": options.device,
            "model": options.model,
            "firmware": options.firmware,
            "labels": labels,
        },
        "broker": {"url": options.broker, "protocol": options.protocol},
    }
    if options.socket:
        document["paths"] = {"socket": options.socket}
    # What is written must be what `run` will accept.
    config.parse(document, options.folder, "provision")
    written = config.write(options.folder, config.render(document), data)
    _echo(f"environment {environment}, root {root.number}, epoch {root.epoch}")
    for path in written:
        _echo(f"wrote {path}")
    _echo(f"next: flagcast-agent run --dir {options.folder}")
    return OK


def _client(options: argparse.Namespace) -> "LocalClient":
    from .api.local import LocalClient

    if options.socket is not None:
        return LocalClient(options.socket)
    from . import config

    return LocalClient(config.load(options.folder).socket)


def _question(options: argparse.Namespace) -> "Question":
    from .api.questions import Question

    context = dict(_pair(text, "--context") for text in options.context)
    return Question(options.flag, options.entity, context, options.namespace)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidInput(f"{option} {text!r}: allowed is NAME=VALUE")
    return name, value


def _print_json(value: object) -> None:
    _echo(*json_text(value, indent=2).split("\n"))


if __name__ == "__main__":
    sys.exit(main())
