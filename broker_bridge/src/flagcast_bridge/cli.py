"""The command `flagcast`: reads the command line, prints, and says by its exit code how it ended.

0  done
1  failed, or refused: an error in the flags, a ledger that is busy, a message on the broker that is not believed
2  the command line or a configuration cannot be used
3  the broker is not there, does not let us, or does not do what was asked
4  another bridge is at work, or has taken over
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flagcast_shared.errors import FlagcastError, InvalidInput
from flagcast_shared.ids import Namespace, RecordId, Version, parse_device, parse_namespace
from flagcast_shared.limits import (
    LABELS_MAX,
    NUMBER_MAX,
    PROVENANCE_MAX_ENTRIES,
    PROVENANCE_TEXT_MAX_CHARACTERS,
)
from flagcast_shared.messages import SHARE_ALL, Candidate
from flagcast_shared.printing import printable
from flagcast_shared.topics import HeadAddress

from . import clock, project
from .broker.connection import BrokerError
from .flags.describe import HOW_TO_TURN_OFF
from .output import echo, echo_error, echo_json
from .planning.plan import Action, Diff, Plan, Stage, percent
from .project import Project
from .signing import passphrase

if TYPE_CHECKING:
    from .fleet.collector import Muster
    from .ledger.ledger import Used
    from .planning.fleet import Member, Summary
    from .publishing.publish import OnBroker, Order, Outcome, RolloutStatus

DONE: Final = 0
FAILED: Final = 1
UNUSABLE: Final = 2
NO_BROKER: Final = 3
HELD: Final = 4

_PROJECT_VARIABLE: Final = "FLAGCAST_PROJECT"
_DIGEST_DIGITS: Final = 16
# Enough of a digest for people; JSON has all of it.
_FLEET_LISTED: Final = 50
_WAIT_SECONDS: Final = 90
# Longer than the lease of a bridge that froze lasts.
_WAIT_MAX_SECONDS: Final = 86_400


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
        return _fail(error, HELD if _is_of_others(error) else FAILED)
    except KeyboardInterrupt:
        return 130  # as a shell says it: 128 + SIGINT
    except BrokenPipeError:
        # The reader of a pipe has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _is_of_others(error: FlagcastError) -> bool:
    # Most commands need no ledger and are quicker without its import.
    from .ledger.ledger import LeaseLost, LedgerBusy

    return isinstance(error, LedgerBusy | LeaseLost)


def _init(arguments: argparse.Namespace) -> int:
    from .publishing import publish as publisher

    made = publisher.found(
        arguments.folder,
        arguments.environment,
        arguments.broker,
        arguments.prefix,
        passphrase=_new_passphrase(arguments),
    )
    echo(f"made a project for environment {made.environment!r} in {made.folder}")
    echo(f"  {made.folder / project.CONFIG_NAME}    what is published where; every key is explained in it")
    echo(f"  {made.root_file(1)}    the trust anchor: provision devices with it, or with a later root")
    echo(f"  {made.publisher_key}    signs flags; keep it on this machine")
    echo(f"  {made.root_key}    names the publisher's keys; keep a copy, and move it off this machine")
    if missing := project.not_ignored(made.folder):
        echo(f"add to {made.folder / project.IGNORE_NAME}, which was there before: {' '.join(missing)}")
    echo(f"next: flagcast publish FLAGS --project {arguments.folder}")
    return DONE


def _validate(arguments: argparse.Namespace) -> int:
    from . import check as validate

    return validate.run(arguments.path, arguments.format, sys.stdout, strict=arguments.strict)


def _publish(arguments: argparse.Namespace) -> int:
    from . import check as validate
    from .flags.findings import as_lines, once_each, unlisted_as_text
    from .publishing import publish as publisher

    settings = _settings(arguments)
    if arguments.release is not None:
        return _release(settings, arguments)
    provenance = _provenance(arguments)
    remove = frozenset(parse_namespace(name) for name in arguments.remove)
    compilation = validate.load(arguments.path)
    for each, times in once_each(compilation.findings):
        echo_error(*as_lines(each, times))
    if any(compilation.unlisted):
        echo_error(unlisted_as_text(compilation.unlisted))
    if compilation.has_errors:
        echo_error(f"flagcast: error: {arguments.path} has errors; nothing was published")
        return FAILED
    wanted = publisher.Wanted(
        compilation.namespaces,
        provenance,
        remove,
        arguments.refresh,
        _stage(arguments),
        compilation.written_off,
        None if arguments.yes else frozenset(),
        arguments.path.resolve(),
    )
    try:
        return _carry_out(settings, wanted, arguments)
    except publisher.RemovalNotAgreed as error:
        # Asked when the ledger is free again: nobody else has to wait for a person.
        can_ask = arguments.format == "text" and sys.stdin is not None and sys.stdin.isatty()
        if not can_ask:
            raise FlagcastError(f"{error}; give --yes if that is meant") from error
        if not _agrees(f"{error}. Publish it? [y/N] "):
            echo_error("flagcast: nothing was published")
            return FAILED
        return _carry_out(settings, replace(wanted, agreed=error.removals), arguments)


def _carry_out(settings: Project, order: "Order", arguments: argparse.Namespace) -> int:
    from .publishing import publish as publisher

    is_json = arguments.format == "json"
    if is_json and arguments.prepare is not None:
        raise InvalidInput("--format json: not together with --prepare")
    show = _show_nothing if is_json else _show_plan
    if arguments.dry_run:
        outcome = publisher.preview(settings, order, say=_note, without_ledger=arguments.without_ledger)
        for plan in outcome.plans:
            show(plan)
            if publisher.asks_about(order, plan) and not is_json:
                gone = f"{len(plan.diff.removed_flags)} of {plan.diff.flags_before}"
                echo(f"  this removes {gone} flags; flagcast publish asks before it does so, or takes --yes")
    elif arguments.prepare is not None:
        return _prepare(settings, order, arguments)
    else:
        outcome = publisher.publish(
            settings,
            order,
            say=_note,
            show=show,
            unlock=_unlock(arguments),
            patience=_patience(arguments),
            without_ledger=arguments.without_ledger,
        )
    if is_json:
        echo_json(_outcome_as_json(settings, outcome, is_dry=arguments.dry_run))
        return DONE
    _show_still_true(outcome)
    for namespace in outcome.left_alone:
        echo(
            f"{namespace}: not in {arguments.path}, left as it is; take its flags away with --remove {namespace}"
        )
    issued = sum(plan.head_draft is not None for plan in outcome.plans)
    for number in outcome.roots:
        echo(f"published root {number}")
    if arguments.dry_run:
        echo("dry run: nothing was published")
    elif issued:
        cleared = f"; {_count(outcome.cleared, 'old message')} cleared" if outcome.cleared else ""
        echo(
            f"published {_count(issued, 'namespace')} to {settings.broker.url}, read back and confirmed{cleared}"
        )
    elif outcome.still_true:
        echo(
            f"nothing to publish: no answer changes, and {_count(len(outcome.still_true), 'flag')} with enabled: false "
            f"{'is' if len(outcome.still_true) == 1 else 'are'} still true for some, see above"
        )
    else:
        echo(f"nothing to publish; {settings.broker.url} is up to date")
    return DONE


def _show_still_true(outcome: "Outcome") -> None:
    for each in outcome.still_true:
        echo(f"{each.namespace}: flag {each.flag} is still true for {each.whom}; {HOW_TO_TURN_OFF}")


def _show_nothing(each: Plan) -> None:
    del each  # it stands in the JSON at the end


def _outcome_as_json(settings: Project, outcome: "Outcome", *, is_dry: bool) -> Mapping[str, object]:
    return {
        "environment": settings.environment,
        "broker": settings.broker.url,
        "is_dry_run": is_dry,
        "namespaces": [_plan_as_json(each) for each in outcome.plans],
        "still_true": [
            {"namespace": each.namespace, "flag": each.flag, "whom": each.whom} for each in outcome.still_true
        ],
        "left_alone": list(outcome.left_alone),
        "roots": list(outcome.roots),
        "cleared": outcome.cleared,
    }


def _plan_as_json(each: Plan) -> Mapping[str, object]:
    diff = each.diff
    what = {changed.id: changed.what for changed in diff.changed}
    answers = {identity: {"before": at.before, "after": at.after} for identity, at in diff.answers.items()}

    def listed(identities: Iterable[RecordId]) -> list[Mapping[str, object]]:
        return [
            {
                "kind": identity.kind,
                "key": identity.key,
                "what": what.get(identity),
                "answers": answers.get(identity),
            }
            for identity in identities
        ]

    return {
        "namespace": each.namespace,
        "action": each.action,
        "why": each.why,
        "note": each.note or None,
        "version": each.head.stable.version,
        "version_before": each.previous,
        "sequence": each.head.sequence,
        "candidate": _candidate_as_json(each.head.candidate),
        "added": listed(diff.added),
        "changed": listed([*what, *_through_segments(diff)]),
        "removed": listed(diff.removed),
        "removes_much": diff.removes_much,
    }


def _through_segments(diff: Diff) -> list[RecordId]:
    # Flags that stay as they are and answer otherwise, because a segment became one for everyone or ceased to be.
    named = {*diff.added, *diff.removed, *(changed.id for changed in diff.changed)}
    return [identity for identity in diff.answers if identity not in named]


def _prepare(settings: Project, order: "Order", arguments: argparse.Namespace) -> int:
    from .publishing import publish as publisher
    from .publishing import rotation as keys

    path: Path = arguments.prepare
    keys.require_free(path)
    outcome, prepared = publisher.prepare(
        settings,
        order,
        say=_note,
        show=_show_plan,
        patience=_patience(arguments),
        without_ledger=arguments.without_ledger,
    )
    _show_still_true(outcome)
    if prepared is None:
        missing = " (but for roots, which flagcast publish puts there)" if outcome.plans else ""
        echo(f"nothing to publish{missing}; {settings.broker.url} is up to date")
        return DONE
    keys.write(path, prepared)
    echo(f"nothing was published; its numbers are reserved, and it is written to {path}")
    keys.say_progress(prepared, path, echo)
    return DONE


def _release(settings: Project, arguments: argparse.Namespace) -> int:
    from .publishing import publish as publisher
    from .publishing import rotation as keys

    others = (arguments.prepare, arguments.candidate, arguments.provenance, arguments.remove)
    if any(others) or arguments.dry_run or arguments.refresh or arguments.yes or arguments.format == "json":
        raise InvalidInput("--release: what it publishes is signed already; give nothing beside it")
    done = publisher.release(settings, keys.read(arguments.release), say=_note, patience=_patience(arguments))
    for number in done.roots:
        echo(f"published root {number}")
    for head in done.heads:
        echo(f"{head.namespace}: version {head.stable.version}, head {head.sequence}")
    cleared = f"; {_count(done.cleared, 'old message')} cleared" if done.cleared else ""
    echo(
        f"published {_count(len(done.heads), 'namespace')} to {settings.broker.url}, read back and confirmed{cleared}"
    )
    return DONE


def _keys(arguments: argparse.Namespace) -> int:
    return int(arguments.act(arguments))


def _keys_list(arguments: argparse.Namespace) -> int:
    from .publishing import rotation as keys

    settings = _settings(arguments)
    if arguments.format == "json":
        echo_json(keys.as_json(settings))
    else:
        echo(*keys.shown(settings))
    return DONE


def _keys_make(arguments: argparse.Namespace) -> int:
    from .publishing import rotation as keys

    new = _new_passphrase(arguments)
    keys.make(arguments.file, arguments.name, new, echo)
    return DONE


def _keys_rotate(arguments: argparse.Namespace) -> int:
    from flagcast_shared.root import Role

    from .publishing import rotation as keys

    keys.rotate(
        _settings(arguments),
        Role(arguments.role),
        add=arguments.add,
        remove=arguments.remove,
        threshold=arguments.threshold,
        out=arguments.out,
        key_files=arguments.key,
        unlock=_unlock(arguments),
        protect=lambda: _new_passphrase(arguments),
        say=echo,
    )
    return DONE


def _keys_revoke(arguments: argparse.Namespace) -> int:
    from .publishing import rotation as keys

    keys.revoke(
        _settings(arguments),
        arguments.name,
        out=arguments.out,
        key_files=arguments.key,
        unlock=_unlock(arguments),
        say=echo,
    )
    return DONE


def _keys_sign(arguments: argparse.Namespace) -> int:
    from .publishing import rotation as keys

    keys.sign(
        arguments.file,
        arguments.key,
        unlock=_unlock(arguments),
        agrees=lambda question: arguments.yes or _agrees(question),
        say=echo,
        allow_group=arguments.allow_group,
    )
    return DONE


def _keys_passphrase(arguments: argparse.Namespace) -> int:
    from .publishing import rotation as keys

    def protect() -> bytes:
        new = passphrase.for_new_key(
            arguments.new_passphrase_file, asks=arguments.new_passphrase, allow_group=arguments.allow_group
        )
        assert new is not None  # one of both options was given
        return new

    has_new = arguments.new_passphrase or arguments.new_passphrase_file is not None
    keys.change_passphrase(
        arguments.file,
        unlock=_passphrase_source(arguments),
        protect=protect if has_new else None,
        allow_group=arguments.allow_group,
        say=echo,
    )
    return DONE


def _keys_apply(arguments: argparse.Namespace) -> int:
    from .publishing import rotation as keys

    keys.apply(_settings(arguments), arguments.file, echo)
    return DONE


def _agrees(question: str) -> bool:
    echo(question, end="")
    answer = "" if sys.stdin is None else sys.stdin.readline()  # None where a script has closed it
    return answer.strip().lower() in {"y", "yes"}


def _settings(arguments: argparse.Namespace) -> Project:
    return replace(project.load(arguments.project), allow_group=arguments.allow_group)


def _new_passphrase(arguments: argparse.Namespace) -> bytes | None:
    return passphrase.for_new_key(
        arguments.passphrase_file, asks=arguments.passphrase, allow_group=arguments.allow_group
    )


def _passphrase_source(arguments: argparse.Namespace) -> passphrase.Unlock:
    return passphrase.source(
        arguments.passphrase_file, asks=arguments.passphrase, allow_group=arguments.allow_group
    )


def _unlock(arguments: argparse.Namespace) -> passphrase.Unlock:
    # A key file that protects its passphrase badly is named once, to the person who gives the passphrase.
    from .signing import signer

    source = _passphrase_source(arguments)
    warned: set[Path] = set()

    def unlock(path: Path) -> bytes | None:
        reason = "" if path in warned else signer.weakness(path, allow_group=arguments.allow_group)
        if reason:
            warned.add(path)
            _note(f"warning: {signer.weak_file(path, reason)}")
        return source(path)

    return unlock


def _patience(arguments: argparse.Namespace) -> float:
    if not 0 <= arguments.wait <= _WAIT_MAX_SECONDS:
        raise InvalidInput(f"--wait {arguments.wait}: allowed is 0 to {_WAIT_MAX_SECONDS} seconds")
    return float(arguments.wait)


def _rollout(arguments: argparse.Namespace) -> int:
    from .publishing import publish as publisher
    from .publishing.publish import Rollout, Step

    namespaces = frozenset(parse_namespace(name) for name in arguments.namespace)
    if (arguments.percent is not None) != (arguments.step == "set"):
        raise InvalidInput("PERCENT belongs to set: flagcast rollout set PERCENT")
    settings = _settings(arguments)
    match arguments.step:
        case "status":
            return _rollout_status(publisher.read_rollouts(settings, namespaces), arguments.format)
        case "set":
            order = Rollout(Step.SHARE, namespaces, _share(arguments.percent))
        case "pause":
            order = Rollout(Step.SHARE, namespaces, 0)
        case "promote":
            order = Rollout(Step.PROMOTE, namespaces)
        case _:
            order = Rollout(Step.ABORT, namespaces)
    return _carry_out(settings, order, arguments)


def _rollback(arguments: argparse.Namespace) -> int:
    from .publishing.publish import Rollback

    if arguments.to is not None and not 1 <= arguments.to <= NUMBER_MAX:
        raise InvalidInput(f"--to {arguments.to}: allowed is a version, 1 or above")
    order = Rollback(
        None if arguments.namespace is None else parse_namespace(arguments.namespace),
        None if arguments.to is None else Version(arguments.to),
    )
    return _carry_out(_settings(arguments), order, arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from .serving import daemon
    from .signing import keychain

    settings = _settings(arguments)
    unlock = _passphrase_source(arguments)  # the daemon logs what is weak
    if arguments.passphrase:
        # While somebody is there to type it again.
        unlock = passphrase.remembered(unlock)
        keychain.publishers(settings, keychain.chain(settings).root, unlock)
    daemon.run(settings, echo_error, unlock)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    from .publishing import publish as publisher

    settings = project.load(arguments.project)
    seen = publisher.read_broker(settings)
    if arguments.format == "json":
        echo_json(_seen_as_json(settings, seen))
    else:
        _print_seen(settings, seen)
    is_whole = all(live.is_whole for live in seen.live.values())
    return DONE if is_whole and not seen.refused else FAILED


def _log(arguments: argparse.Namespace) -> int:
    from .ledger.ledger import existing

    settings = project.load(arguments.project)
    ledger = existing(settings.ledger, settings.environment)
    entries = []
    if ledger is not None:
        try:
            entries = ledger.entries()
        finally:
            ledger.close()
    if arguments.format == "json":
        echo_json(
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
                    "candidate": _candidate_as_json(each.candidate),
                }
                for each in entries
            ]
        )
        return DONE
    if not entries:
        echo("nothing was issued yet")
    for each in entries:
        origin = " ".join(f"{key}={value}" for key, value in each.provenance.items())
        staged = f"  candidate {_candidate_text(each.candidate)}" if each.candidate is not None else ""
        echo(
            f"{clock.as_text(each.reserved)}  {each.namespace}  head {each.sequence}  version {each.version}{staged}"
            f"  {each.action}  {each.state}  {each.digest.hex()[:_DIGEST_DIGITS]}  {origin}".rstrip()
        )
    return DONE


def _ledger(arguments: argparse.Namespace) -> int:
    from .publishing import publish as publisher

    namespaces = frozenset(parse_namespace(name) for name in arguments.namespace)
    recovered = publisher.recover(
        project.load(arguments.project),
        namespaces,
        say=_note,
        is_dry=arguments.dry_run,
        patience=_patience(arguments),
    )
    for each in recovered:
        echo(
            f"{each.namespace}: numbers go on above version {each.after.version}, head {each.after.sequence} "
            f"(known were {each.before.version} and {each.before.sequence})"
        )
    if arguments.dry_run:
        echo("dry run: the ledger is as it was")
    elif recovered:
        echo(
            "next: flagcast publish with the flags that shall be live; until then flagcast serve signs nothing"
        )
    else:
        echo("neither ledger nor broker knows a namespace; name those that devices hold with --namespace")
    return DONE


def _fleet(arguments: argparse.Namespace) -> int:
    from .fleet import collector
    from .planning.fleet import summarize

    settings = project.load(arguments.project)
    named = parse_device(arguments.device) if arguments.device else None
    found = collector.muster(settings, named)
    now = clock.now()
    if found.needs_names and named is None:
        _note(
            f"warning: {settings.broker.url} shows no retained message to a subscription with wildcards, so it does not say "
            "which devices there are; ask for one with --device ID"
        )
    if named is not None and named not in found.fleet:
        raise FlagcastError(f"{arguments.device}: no report of this device is on {settings.broker.url}")
    members = [member for name, member in sorted(found.fleet.items()) if arguments.device in {"", str(name)}]
    if arguments.format == "json":
        document: dict[str, object] = {"devices": [_member_as_json(each, found, now) for each in members]}
        if not arguments.device:
            summary = summarize(found.fleet, found.stable, now, found.offered)
            document |= {"summary": _summary_as_json(summary), "unreadable": dict(found.unreadable)}
        echo_json(document)
        return DONE
    if arguments.device:
        for line in _member_lines(members[0], found, now):
            echo(line)
        return DONE
    for line in _summary_lines(summarize(found.fleet, found.stable, now, found.offered)):
        echo(line)
    troubled = [each for each in members if _troubles(each, found, now)]
    for each in troubled[:_FLEET_LISTED]:
        echo(f"{each.device:<24} {'; '.join(_troubles(each, found, now))}")
    if len(troubled) > _FLEET_LISTED:
        echo(f"... and {len(troubled) - _FLEET_LISTED} more; --format json lists every device")
    for topic, why in found.unreadable.items():
        echo(f"NOT A REPORT {topic}: {why}")
    return DONE


def _usage(arguments: argparse.Namespace) -> int:
    from .fleet import collector
    from .ledger.ledger import UsageBook

    settings = project.load(arguments.project)
    now = clock.now()
    book = UsageBook(settings.usage, settings.environment, now)
    try:
        if arguments.act == "collect":
            signal.signal(signal.SIGTERM, _leave)
            collected = collector.Collected()
            try:
                collector.collect(settings, book, _note, collected, is_once=arguments.once)
            finally:
                echo(str(collected))
            return DONE
        since = now - arguments.days * 86_400
        totals = book.totals(since, arguments.namespace)
        devices, batches, dropped = book.batches(since)
        uncounted = book.uncounted(since)
    finally:
        book.close()
    unused = _unused(settings, totals, arguments.namespace)
    if arguments.format == "json":
        document = {
            "days": arguments.days,
            "devices": devices,
            "batches": batches,
            "dropped": dropped,
            "uncounted": uncounted,
            "usage": [
                {"namespace": each.namespace, "flag": each.flag, "answer": each.answer, "reason": each.reason,
                 "evaluations": each.evaluations}
                for each in totals
            ],
            "unused": None if unused is None else [{"namespace": name, "flag": flag} for name, flag in unused],
        }  # fmt: skip
        echo_json(document)
        return DONE
    for each in totals:
        answer = each.answer or "(none)"
        echo(f"{each.namespace:<12} {each.flag:<32} {answer:<16} {each.reason:<14} {each.evaluations:>14,}")
    echo(
        f"from {_count(devices, 'device')} in {_count(arguments.days, 'day')}"
        + (f"; {dropped} evaluations were dropped on devices" if dropped else "")
    )
    if unused is None:
        of = f" of {arguments.namespace}" if arguments.namespace else ""
        echo(f"the published flags{of} are not known: this ledger published none")
    for name, flag in unused or ():
        echo(f"NOT ASKED FOR {name:<12} {flag}")
    if uncounted:
        listed = ", ".join(list(uncounted)[:_FLEET_LISTED])
        echo(
            f"NOT COUNTED: {sum(uncounted.values())} evaluations of {_count(len(uncounted), 'device')}, which sent more names or "
            f"batches in a day than any device should: {listed}"
        )
    return DONE


def _unused(
    settings: Project, totals: "Sequence[Used]", namespace: str
) -> list[tuple[Namespace, str]] | None:
    # The flags of what was published last, stable and candidate, without a count; None where the ledger has no such content.
    from flagcast_shared.records import FLAG

    from .ledger.ledger import existing

    ledger = existing(settings.ledger, settings.environment)
    if ledger is None:
        return None
    try:
        issued = ledger.issued()
    finally:
        ledger.close()
    contents = [
        (name, content)
        for name, known in issued.items()
        for content in (known.published, known.candidate)
        if content is not None and namespace in {"", name}
    ]
    if not contents:
        return None
    asked = {(each.namespace, each.flag) for each in totals}
    flags = {
        (name, str(record.id.key))
        for name, content in contents
        for record in content.records
        if record.id.kind == FLAG
    }
    return sorted(flags - asked)


def _leave(number: int, frame: object) -> None:
    # Nothing is lost by leaving in the middle: what was not acknowledged comes again.
    del number, frame
    raise SystemExit(DONE)


def _broker(arguments: argparse.Namespace) -> int:
    from .broker import embedded as broker

    _note(
        "warning: an open broker without persistence, for development only; use mosquitto for anything real"
    )
    broker.run(arguments.bind, echo, is_verbose=arguments.verbose)
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
        help="mqtt://, mqtts://, ws:// or wss://HOST[:PORT][/PATH] (default: %(default)s)",
    )
    parser.add_argument(
        "--prefix",
        default="flagcast",
        metavar="LEVEL",
        help="the first level of every topic (default: %(default)s)",
    )
    _add_passphrase(parser, "the keys are encrypted under a passphrase")


def _add_validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a flags file, or a folder of them")
    _add_format(parser)
    parser.add_argument("--strict", action="store_true", help="a warning counts as an error")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("path", type=Path, nargs="?", metavar="PATH", help="a flags file, or a folder of them")
    what.add_argument(
        "--release",
        type=Path,
        metavar="FILE",
        help="instead: what --prepare wrote, once enough keys have signed it with flagcast keys sign",
    )
    _add_project(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would change and publish nothing")
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="issue new heads even where the old ones stay fresh; while a candidate is out, of what is published already",
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
        help="where this release comes from, e.g. build=417; stands in every head; may be given several times (default: the git"
        " commit of the flags files, if nothing there is changed since, else their name)",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="do not ask before more than a third of a namespace's flags are removed (without a terminal: refuse)",
    )
    _add_prepare(parser)
    _add_format(parser)
    staged = parser.add_argument_group("staged rollout")
    staged.add_argument(
        "--candidate",
        metavar="PERCENT",
        help="for this share of the devices only, 0 to 100 with at most two decimals; all others keep what is stable",
    )
    labels = staged.add_mutually_exclusive_group()
    labels.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only for devices with this label; may be given several times, then all of them "
        "(default: the labels of the candidate that is out)",
    )
    labels.add_argument("--any-label", action="store_true", help="for devices of whatever labels")


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prepare",
        type=Path,
        metavar="FILE",
        help="publish nothing; write what is to be signed into this file, for people who hold the keys",
    )
    _add_wait(parser)
    parser.add_argument(
        "--without-ledger",
        action="store_true",
        help="go on above what is live on the broker, where nothing was ever issued from this ledger",
    )
    _add_passphrase(parser, "be asked for the passphrase of the signing key")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=int,
        default=_WAIT_SECONDS,
        metavar="SECONDS",
        help="how long to wait for another bridge that is at work on the same ledger; exit code 4 if it still is (default: "
        "%(default)s)",
    )


def _add_keys(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(title="what to do", metavar="ACT", required=True)

    def act(
        name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        added = acts.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(act=run)
        return added

    shown = act(
        "list",
        _keys_list,
        "show the chain of roots, the keys of the one in force, and which of them this project holds",
        "flagcast keys list --project fleet --format json",
    )
    _add_project(shown)
    _add_allow_group(shown)
    _add_format(shown)
    made = act(
        "make",
        _keys_make,
        "make a key pair for somebody who signs; needs no project",
        "flagcast keys make alice.key --name alice --passphrase",
    )
    made.add_argument(
        "file", type=Path, metavar="FILE", help="the private key; its public half becomes FILE.pub"
    )
    made.add_argument("--name", required=True, metavar="NAME", help="for people; stands in the root")
    _add_passphrase(made, "the key is encrypted under a passphrase")
    rotated = act(
        "rotate",
        _keys_rotate,
        "make the next root with other keys; without options a new key takes the place of the project's own",
        "flagcast keys rotate publisher --project fleet",
    )
    rotated.add_argument("role", choices=("root", "publisher"), metavar="ROLE", help="root or publisher")
    _add_path(
        rotated, "--add", "PUBFILE", "a public key that comes; may be given several times", several=True
    )
    rotated.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="KEYID",
        help="a key that goes, by its id or name; may be given several times",
    )
    rotated.add_argument("--threshold", type=int, metavar="N", help="how many of the keys must sign")
    revoked = act(
        "revoke",
        _keys_revoke,
        "make the next root without a key",
        "flagcast keys revoke alice --project fleet",
    )
    revoked.add_argument("name", metavar="KEYID", help="the key's id, or its name where only one has it")
    for each in (rotated, revoked):
        _add_project(each)
        _add_path(each, "--key", "KEYFILE", "a key outside of the project that signs too", several=True)
        _add_path(
            each,
            "--out",
            "FILE",
            "where the root waits for signatures that are missing (default: root-N.ceremony)",
        )
        _add_passphrase(each, "be asked for passphrases, also for that of a new key")
    signed = act(
        "sign",
        _keys_sign,
        "sign a ceremony file with a key; needs no project and no network",
        "flagcast keys sign root-2.ceremony --key root.key",
    )
    signed.add_argument("file", type=Path, metavar="FILE", help="the ceremony file; it gets the signature")
    signed.add_argument(
        "--key", type=Path, required=True, metavar="KEYFILE", help="the private key that signs"
    )
    signed.add_argument("--yes", action="store_true", help="do not ask")
    _add_passphrase(signed, "be asked for the passphrase of the key")
    applied = act(
        "apply",
        _keys_apply,
        "take a root that enough keys have signed into the project",
        "flagcast keys apply root-2.ceremony --project fleet",
    )
    applied.add_argument("file", type=Path, metavar="FILE", help="the ceremony file")
    _add_project(applied)
    _add_allow_group(applied)
    changed = act(
        "passphrase",
        _keys_passphrase,
        "write a key file anew, encrypted as new keys are, under its passphrase or another one",
        "flagcast keys passphrase alice.key --passphrase --new-passphrase",
    )
    changed.add_argument("file", type=Path, metavar="FILE", help="the private key")
    _add_passphrase(changed, "be asked for the passphrase that it has")
    new = changed.add_mutually_exclusive_group()
    new.add_argument(
        "--new-passphrase",
        action="store_true",
        help="be asked for another passphrase (default: the same as before)",
    )
    new.add_argument(
        "--new-passphrase-file", type=Path, metavar="FILE", help="a file that holds another passphrase alone"
    )


def _add_rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "step",
        choices=("status", "set", "pause", "promote", "abort"),
        metavar="STEP",
        help="status: what is out; set PERCENT: give the candidate to this share of the devices; pause: nobody new takes it, "
        "who has it keeps it; promote: make it stable; abort: take it back",
    )
    parser.add_argument(
        "percent", nargs="?", metavar="PERCENT", help="for set: 0 to 100 with at most two decimals"
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="only this one; may be given several times (default: all with a candidate)",
    )
    _add_project(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would change and publish nothing")
    _add_prepare(parser)
    _add_format(parser)


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        type=int,
        metavar="VERSION",
        help="the version whose content is published again (default: the content before the current one)",
    )
    parser.add_argument(
        "--namespace",
        metavar="NAMESPACE",
        help="which one (default: the only one that was ever published; with --dry-run each of them)",
    )
    _add_project(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would change and publish nothing")
    _add_prepare(parser)
    _add_format(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_project(parser)
    _add_format(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_project(parser)
    _add_passphrase(parser, "be asked for the passphrase of the signing key, once, before it begins to serve")


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "act",
        choices=("recovered",),
        metavar="ACT",
        help="recovered: the ledger was restored from an older state; take every number that broker and devices know, and "
        "1,000 more. What a device reports counts up to 1,000,000 above ledger and broker, because reports are unsigned",
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAMESPACE",
        help="also this one, of which neither ledger nor broker knows; may be given several times",
    )
    _add_project(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the numbers and take none")
    _add_wait(parser)


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    _add_project(parser)
    _add_format(parser)
    parser.add_argument("--device", default="", metavar="ID", help="this device alone, with all it says")


def _add_usage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "act",
        nargs="?",
        choices=("show", "collect"),
        default="show",
        help="show what was collected, or collect what devices send, until SIGTERM (default: %(default)s)",
    )
    _add_project(parser)
    _add_format(parser)
    parser.add_argument(
        "--once", action="store_true", help="collect what the broker kept meanwhile, and leave"
    )
    parser.add_argument(
        "--days", type=int, default=7, metavar="N", help="show the last so many days (default: %(default)s)"
    )
    parser.add_argument("--namespace", default="", metavar="NAME", help="show this namespace alone")


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


def _add_path(
    parser: argparse.ArgumentParser, option: str, form: str, text: str, *, several: bool = False
) -> None:
    settings: dict[str, Any] = {"action": "append", "default": []} if several else {}
    parser.add_argument(option, type=Path, metavar=form, help=text, **settings)


def _add_passphrase(parser: argparse.ArgumentParser, text: str) -> None:
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--passphrase", action="store_true", help=f"{text}, asked for at the terminal")
    given.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help=f"a file that holds the passphrase alone (default: ${passphrase.VARIABLE})",
    )
    _add_allow_group(parser)


def _add_allow_group(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-group",
        action="store_true",
        help="the group of a key's or a passphrase's file may read it (default: only its owner may)",
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
        "examples:\n  flagcast publish features.yml --project fleet --dry-run --format json\n"
        "  flagcast publish flags/ --project fleet",
        _publish,
        _add_publish,
    ),
    _Command(
        "keys",
        "make, list, rotate and revoke keys; sign what others prepared",
        "examples:\n  flagcast keys list\n  flagcast keys rotate publisher",
        _keys,
        _add_keys,
    ),
    _Command(
        "rollout",
        "show and steer staged rollouts, which flagcast publish --candidate begins",
        "examples:\n  flagcast rollout status --project fleet --format json\n"
        "  flagcast rollout set 20 --namespace default --dry-run\n  flagcast rollout promote",
        _rollout,
        _add_rollout,
    ),
    _Command(
        "rollback",
        "publish an old content under a new version",
        "examples:\n  flagcast rollback --project fleet --dry-run\n  flagcast rollback --to 41 --namespace default",
        _rollback,
        _add_rollback,
    ),
    _Command(
        "serve",
        "keep what is published fresh and on the broker, until SIGTERM",
        "example:\n  flagcast serve --project fleet",
        _serve,
        _add_serve,
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
        "ledger",
        "go on with a ledger that was restored from an older state",
        "examples:\n  flagcast ledger recovered --project fleet --dry-run\n  flagcast ledger recovered --namespace default",
        _ledger,
        _add_ledger,
    ),
    _Command(
        "fleet",
        "show which devices are at which version, behind, split, offline, or refuse what they are sent",
        "examples:\n  flagcast fleet --project fleet\n  flagcast fleet --device charger-17 --format json",
        _fleet,
        _add_fleet,
    ),
    _Command(
        "usage",
        "collect and show how often flags gave which answer",
        "examples:\n  flagcast usage collect --project fleet --once\n  flagcast usage --days 30 --format json",
        _usage,
        _add_usage,
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


class _Parser(argparse.ArgumentParser):
    # A script may pass on a stranger's words as arguments; what is wrong with them is printed.
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        echo_error(f"{self.prog}: error: {message}")
        self.exit(UNUSABLE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="flagcast",
        description="Publish feature flags, signed, to devices that are often offline.",
        epilog="exit codes: 0 done, 1 failed or refused, 2 command line or configuration, 3 broker, "
        "4 another bridge is at work\n\n"
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
        echo(f"{each.namespace}: unchanged at version {stable.version}, head {each.head.sequence}")
        _show_note(each)
        return
    was = f"was {each.previous}" if each.previous is not None else "nothing before"
    staged = each.head.candidate
    beside = f", candidate {staged.offering.version}" if staged is not None else ""
    echo(
        f"{each.namespace}: {each.action}, version {stable.version} ({was}){beside}, head {each.head.sequence}: {each.why}"
    )
    _show_note(each)
    _show_diff(each.diff)
    for content in each.contents:
        offering = stable
        if staged is not None and staged.offering.version == content.version:
            offering = staged.offering
        how = ""
        inline = each.head.inline
        if inline is not None and inline.version == content.version:
            how += f"; {len(inline.body)} bytes for devices at version {inline.from_version}"
        if offering.deltas:
            how += f"; {'a delta' if len(offering.deltas) == 1 else 'deltas'} for devices at version "
            how += ", ".join(str(version) for version in offering.deltas)
        size = f"{offering.size} bytes in {_count(offering.parts, 'part')}"
        echo(f"  version {content.version} holds {_count(len(content.records), 'record')}, {size}{how}")


def _show_note(each: Plan) -> None:
    if each.note:
        echo(f"  {each.note}")


def _show_diff(diff: Diff) -> None:
    for identity in diff.added:
        answers = diff.answers.get(identity)
        echo(f"  + {identity.kind} {identity.key}{'' if answers is None else f': {answers.after}'}")
    for changed in diff.changed:
        echo(f"  ~ {changed.id.kind} {changed.id.key}: {changed.what}{_becomes(diff, changed.id)}")
    for identity in _through_segments(diff):
        echo(f"  ~ {identity.kind} {identity.key}: by its segments{_becomes(diff, identity)}")
    for identity in diff.removed:
        answers = diff.answers.get(identity)
        was = "" if answers is None else f": the default of the application (was {answers.before})"
        echo(f"  - {identity.kind} {identity.key}{was}")


def _becomes(diff: Diff, identity: RecordId) -> str:
    answers = diff.answers.get(identity)
    if answers is None:
        return ""
    now = "off for everyone" if answers.is_off else f"now {answers.after}"
    return f"; {now} (was {answers.before})"


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
                "is_whole": live.is_whole,
                "candidate": _candidate_as_json(live.head.candidate),
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
    echo(
        f"environment {settings.environment} on {settings.broker.url}, verified by root {seen.root.number} of {settings.folder}"
    )
    if not seen.live and not seen.refused:
        echo("nothing is published")
    for name, live in sorted(seen.live.items()):
        head, stable = live.head, live.head.stable
        size = f"{stable.size} bytes in {_count(stable.parts, 'part')}"
        echo("", name)
        echo(f"  version   {stable.version} (epoch {head.epoch}), head {head.sequence}")
        echo(f"  digest    {stable.digest.hex()[:_DIGEST_DIGITS]}...")
        echo(f"  issued    {clock.as_text(head.issued)}")
        echo(
            f"  expires   {clock.as_text(head.expires)} ({'fresh' if now < head.expires else 'STALE: publish again'})"
        )
        if live.records is None:
            echo(f"  content   NOT WHOLE on the broker, of {size}: publish again")
        else:
            echo(f"  content   {_count(len(live.records), 'record')}, {size}")
        if head.candidate is not None:
            whole = "" if live.candidate is not None else ", NOT WHOLE on the broker: publish again"
            echo(f"  candidate {_candidate_text(head.candidate)}{whole}")
        for lost in live.lost:
            echo(f"  delta     LOST {settings.topics.of(lost)}: publish again")
        for key, value in head.provenance.items():
            echo(f"  {key:<9} {value}")
    for address, error in seen.refused.items():
        echo("", f"REFUSED {settings.topics.of(address)}: {error.attack}: {error}")
    if any(isinstance(address, HeadAddress) for address in seen.refused):
        echo("Devices refuse this too; publish again to replace it.")


def _rollout_status(found: Sequence["RolloutStatus"], output: str) -> int:
    if output == "json":
        listed = [
            {
                "namespace": each.namespace,
                "stable": each.head.stable.version,
                "candidate": _candidate_as_json(each.head.candidate),
                "since": None if each.since is None else clock.as_text(each.since),
                "is_paused": each.is_paused,
                "share_before": None if each.share_before is None else each.share_before / 100,
            }
            for each in found
        ]
        echo_json(listed)
        return DONE
    if not found:
        echo("nothing is published")
    for each in found:
        staged = each.head.candidate
        if staged is None:
            echo(f"{each.namespace}: version {each.head.stable.version}, no candidate")
            continue
        since = "" if each.since is None else f", since {clock.as_text(each.since)}"
        paused = ""
        if each.is_paused:
            before = "" if each.share_before is None else f" (was {percent(each.share_before)})"
            paused = f", PAUSED{before}"
        echo(
            f"{each.namespace}: version {each.head.stable.version}, candidate {_candidate_text(staged)}{paused}{since}"
        )
    return DONE


def _candidate_text(candidate: Candidate) -> str:
    labels = "".join(f" {name}={value}" for name, value in sorted(candidate.labels.items()))
    return f"{candidate.offering.version} for {percent(candidate.share)}{' with' if labels else ''}{labels}"


def _candidate_as_json(candidate: Candidate | None) -> Mapping[str, object] | None:
    if candidate is None:
        return None
    return {
        "version": candidate.offering.version,
        "digest": candidate.offering.digest.hex(),
        "share": candidate.share / 100,
        "labels": dict(candidate.labels),
        "bytes": candidate.offering.size,
        "parts": candidate.offering.parts,
    }


def _stage(arguments: argparse.Namespace) -> Stage | None:
    if arguments.candidate is None:
        if arguments.label or arguments.any_label:
            raise InvalidInput("--label and --any-label belong to --candidate PERCENT")
        return None
    if arguments.remove:
        raise InvalidInput("--remove: not together with --candidate; publish it by itself")
    labels: dict[str, str] | None = {} if arguments.any_label else None
    if arguments.label:
        labels = _pairs("--label", "NAME=VALUE", arguments.label, LABELS_MAX)
    return Stage(_share(arguments.candidate), clock.salt(), labels)


def _share(text: str) -> int:
    # Hundredths of a percent; never by way of a float, which has no 0.29.
    match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?", text, re.ASCII)
    share = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else SHARE_ALL + 1
    if share > SHARE_ALL:
        raise InvalidInput(f"{text!r} is no share: allowed is 0 to 100, with at most two decimals")
    return share


def _troubles(member: "Member", found: "Muster", now: int) -> list[str]:
    troubles = []
    if behind := member.behind(found.stable):
        troubles.append(f"behind in {', '.join(behind)}")
    if split := member.split(found.offered):
        troubles.append(f"split in {', '.join(split)}")
    if not member.is_online:
        troubles.append("offline")
    if member.is_silent(now):
        troubles.append("silent")
    if member.rejection is not None:
        troubles.append(f"refused {member.rejection.attack} at {clock.as_text(member.rejection.at)}")
    return [*troubles, f"last seen {_seen_at(member)}"] if troubles else []


def _seen_at(member: "Member") -> str:
    return clock.as_text(member.seen) if member.seen else "unknown"


def _member_lines(member: "Member", found: "Muster", now: int) -> list[str]:
    said = member.said
    lines = [
        f"device     {member.device}",
        f"link       {'online' if member.is_online else 'offline'}, last seen {_seen_at(member)}",
        f"agent      {said.agent or 'unknown'}, root {said.root}",
    ]
    for name, held in sorted(said.applied.items()):
        lines.append(f"{name:<10} version {held.version} of epoch {held.epoch}, head {held.sequence}")
    troubles = _troubles(member, found, now)
    return [*lines, *([f"trouble    {'; '.join(troubles[:-1])}"] if troubles else [])]


def _member_as_json(member: "Member", found: "Muster", now: int) -> dict[str, object]:
    said, rejection = member.said, member.rejection
    return {
        "device": member.device,
        "is_online": member.is_online,
        "is_silent": member.is_silent(now),
        "behind": list(member.behind(found.stable)),
        "split": list(member.split(found.offered)),
        "last_seen": clock.as_text(member.seen) if member.seen else None,
        "agent": said.agent or None,
        "root": said.root or None,
        "applied": {
            name: {
                "epoch": held.epoch,
                "version": held.version,
                "sequence": held.sequence,
                "digest": held.digest.hex() or None,
            }
            for name, held in sorted(said.applied.items())
        },
        "rejection": None
        if rejection is None
        else {
            "attack": rejection.attack,
            "namespace": rejection.namespace or None,
            "at": clock.as_text(rejection.at),
        },
    }


def _summary_lines(summary: "Summary") -> list[str]:
    states = f"{summary.online} online, {summary.offline} offline, {summary.silent} silent, {summary.behind} behind"
    lines = [f"{_count(summary.devices, 'device')}: {states}, {summary.split} split"]
    if summary.split:
        lines.append(
            "  split: these devices hold, under a published number or above all of them, what was not published under it; "
            "go on above it with flagcast ledger recovered, then flagcast publish"
        )
    for name, versions in summary.versions.items():
        for held, devices in versions.items():
            mark = "  <- stable" if summary.stable.get(name) == held else ""
            if name not in summary.stable:
                mark = "  <- its head is not on the broker"
            lines.append(
                f"  {name:<12} version {held[1]} of epoch {held[0]}: {_count(devices, 'device')}{mark}"
            )
    if summary.versions.keys() - summary.stable.keys():
        lines.append(
            "  a head that is not on the broker: flagcast serve puts back what this ledger published, flagcast publish publishes"
        )
    lines += [
        f"  refused      {attack}: {_count(devices, 'device')}"
        for attack, devices in summary.rejections.items()
    ]
    return lines


def _summary_as_json(summary: "Summary") -> dict[str, object]:
    return {
        "devices": summary.devices,
        "online": summary.online,
        "offline": summary.offline,
        "silent": summary.silent,
        "behind": summary.behind,
        "split": summary.split,
        "stable": {
            name: {"epoch": epoch, "version": version} for name, (epoch, version) in summary.stable.items()
        },
        "versions": [
            {"namespace": name, "epoch": held[0], "version": held[1], "devices": devices}
            for name, versions in summary.versions.items()
            for held, devices in versions.items()
        ],
        "roots": {str(root): devices for root, devices in summary.roots.items()},
        "agents": dict(summary.agents),
        "rejections": dict(summary.rejections),
    }


def _provenance(arguments: argparse.Namespace) -> Mapping[str, str]:
    given = _pairs("--provenance", "NAME=TEXT", arguments.provenance, PROVENANCE_MAX_ENTRIES)
    if given:
        return given
    from .sources import git_state

    state = git_state(arguments.path)
    if state is not None and not state.is_dirty:
        return {"commit": state.commit}
    return {"source": printable(arguments.path.resolve().name)[:PROVENANCE_TEXT_MAX_CHARACTERS]}


def _pairs(option: str, form: str, pairs: Sequence[str], most: int) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        is_long = max(len(name), len(text)) > PROVENANCE_TEXT_MAX_CHARACTERS
        if not equals or not name or is_long or not pair.isprintable():
            raise InvalidInput(
                f"{option} {pair!r}: allowed is {form}, each of at most {PROVENANCE_TEXT_MAX_CHARACTERS} characters that print"
            )
        given[name] = text
    if len(given) > most:
        raise InvalidInput(f"{option}: {len(given)} entries; at most {most} are allowed")
    return given


def _note(line: str) -> None:
    echo_error(f"flagcast: {line}")


def _fail(error: FlagcastError, code: int) -> int:
    echo_error(f"flagcast: error: {error}")
    return code


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"
