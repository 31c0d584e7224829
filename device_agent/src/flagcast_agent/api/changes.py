"""Who wants to hear what changes: activations in one thread, streams of any number of clients in the event loop.

A change that a client has not taken yet is joined with the next one. So what waits for a client that reads slowly, or never, is
at most one entry per flag.

Flags that were removed are remembered, for a client that was away when it happened.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from flagcast_agent.evaluator import Evaluator, Knowledge
from flagcast_agent.limits import REMOVED_FLAGS_MAX
from flagcast_shared.evaluation import CompiledFlags
from flagcast_shared.ids import FlagKey, Namespace


class ChangeKind(StrEnum):
    """What happened to a flag, in flagd's words."""

    WRITE = "write"
    UPDATE = "update"
    DELETE = "delete"


class Change(NamedTuple):
    """What is known now, and the flags that may answer otherwise than what its reader heard before."""

    knowledge: Knowledge
    flags: Mapping[FlagKey, ChangeKind]


class Stopping(Exception):
    """The agent stops; a stream ends with the word of its protocol that makes clients come again."""


class Changes:
    """Tells subscriptions of every activation; made and used in one running event loop.

    `removed` are the flags that were removed before, the oldest first.
    """

    def __init__(self, evaluator: Evaluator, removed: Mapping[Namespace, Sequence[FlagKey]]) -> None:
        self._evaluator = evaluator
        self._loop = asyncio.get_running_loop()
        self._subscriptions: set[Subscription] = set()
        self._watchers: list[Callable[[], None]] = []
        self._is_over = False
        self._removed = {namespace: dict.fromkeys(keys) for namespace, keys in removed.items()}
        self._compiled: dict[Namespace, CompiledFlags] = {}
        self._forget = evaluator.listen(self._activated)
        for namespace in evaluator.namespaces():
            self._compiled.setdefault(namespace, evaluator.knowledge(namespace).compiled)
        self.activations = 0

    @contextlib.contextmanager
    def subscription(self, namespace: Namespace | None) -> Iterator["Subscription"]:
        """What changes in one namespace, or in all of them, while this is open."""
        subscription = Subscription(self._evaluator, namespace)
        if self._is_over:
            subscription.end()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def removed(self, namespace: Namespace | None) -> tuple[FlagKey, ...]:
        """The flags that were removed last from one namespace, or from all of them; they may be back in what is known now."""
        return tuple(key for name, keys in self._removed.items() if namespace in (None, name) for key in keys)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` in the loop after every activation."""
        self._watchers.append(watcher)

    def close(self) -> None:
        """Ends every subscription, now and to come."""
        self._forget()
        self._is_over = True
        for subscription in self._subscriptions:
            subscription.end()

    def _activated(self, knowledge: Knowledge) -> None:
        # In the activating thread, one at a time. An activation may come while the loop ends.
        former = self._compiled.get(knowledge.namespace)
        self._compiled[knowledge.namespace] = knowledge.compiled
        flags = _difference(former, knowledge.compiled)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell, Change(knowledge, flags))

    def _tell(self, change: Change) -> None:
        self.activations += 1
        self._note_removed(change)
        for watcher in self._watchers:
            watcher()
        for subscription in self._subscriptions:
            subscription.add(change)

    def _note_removed(self, change: Change) -> None:
        removed = self._removed.setdefault(change.knowledge.namespace, {})
        for key, kind in change.flags.items():
            removed.pop(key, None)
            if kind is ChangeKind.DELETE:
                removed[key] = None
        if len(removed) > REMOVED_FLAGS_MAX:
            for key in tuple(removed)[:-REMOVED_FLAGS_MAX]:
                del removed[key]


class Subscription:
    """One client's changes, joined until it takes them."""

    def __init__(self, evaluator: Evaluator, namespace: Namespace | None) -> None:
        self._evaluator = evaluator
        self._namespace = namespace
        self._waiting: dict[Namespace, Change] = {}
        self._arrived = asyncio.Event()
        self._is_over = False

    def known(self) -> tuple[Knowledge, ...]:
        """All that is known at this instant of what was subscribed."""
        return tuple(
            self._evaluator.knowledge(namespace)
            for namespace in self._evaluator.namespaces()
            if self._namespace in (None, namespace)
        )

    async def next(self, silence: float) -> Change | None:
        """The next change; None after `silence` seconds without one. Raises Stopping."""
        if not self._waiting and not self._is_over:
            try:
                async with asyncio.timeout(silence):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        self._arrived.clear()
        if self._waiting:
            change = self._waiting.pop(next(iter(self._waiting)))
            if self._waiting:
                self._arrived.set()
            return change
        if self._is_over:
            raise Stopping
        return None

    def add(self, change: Change) -> None:
        """Something was activated."""
        name = change.knowledge.namespace
        if self._namespace not in (None, name):
            return
        former = self._waiting.pop(name, None)
        if former is not None:
            change = Change(change.knowledge, {**former.flags, **change.flags})
        self._waiting[name] = change
        self._arrived.set()

    def end(self) -> None:
        """The agent stops."""
        self._is_over = True
        self._arrived.set()


def _difference(former: CompiledFlags | None, now: CompiledFlags) -> dict[FlagKey, ChangeKind]:
    if former is None:
        return dict.fromkeys(now.flags, ChangeKind.WRITE)
    before, after = former.flags, now.flags
    return {
        key: ChangeKind.DELETE
        if key not in after
        else ChangeKind.UPDATE
        if key in before
        else ChangeKind.WRITE
        for key in sorted(now.changed_since(former))
    }
