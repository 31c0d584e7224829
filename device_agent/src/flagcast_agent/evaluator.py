"""What the agent knows and answers from: one immutable Knowledge per namespace, swapped whole.

Reading takes no lock and waits for nothing: a reader picks up the mapping of the instant, and an activation puts another
mapping in its place. So every answer, and every batch that asks `knowledge` once, comes from exactly one admitted version.
Activations come from one thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from flagcast_shared.errors import DeltaMismatch, NamespaceNotFound
from flagcast_shared.evaluation import (
    Answer,
    BooleanAnswer,
    CompiledFlags,
    FlagState,
    VariantAnswer,
    compile_flags,
)
from flagcast_shared.ids import Digest, EntityId, Epoch, FlagKey, Namespace, Version

from .sync.time_floor import TimeFloor
from .usage import Tally

if TYPE_CHECKING:
    # Whoever has an update to activate has imported it; applications in process never do.
    from flagcast_shared.explanation import Explanation
    from flagcast_shared.trust import AdmittedUpdate


@dataclass(frozen=True, slots=True)
class Knowledge:
    """One admitted version of one namespace, ready to be asked.

    `issued` and `expires` are the head's, in Unix seconds.
    """

    namespace: Namespace
    epoch: Epoch
    version: Version
    digest: Digest
    issued: int
    expires: int
    compiled: CompiledFlags

    def is_stale(self, now: int) -> bool:
        """Whether the head has expired by `now` (Unix seconds), as TimeFloor tells it; the flags are evaluated all the same."""
        return now >= self.expires

    def age(self, now: int) -> int:
        """Seconds by `now`, as TimeFloor tells it, since the publisher last said that this is the truth."""
        return max(0, now - self.issued)


class Evaluator:
    """Answers every local protocol. `device` has the `device.*` properties of every context.

    With a `tally`, what is answered is counted there; by one thread then. `floor` says what time it is at least, by which
    staleness is judged; replaced whole.
    """

    def __init__(self, device: Mapping[str, str]) -> None:
        self._device = dict(device)
        self._known: Mapping[Namespace, Knowledge] = MappingProxyType({})
        self._listeners: tuple[Callable[[Knowledge], None], ...] = ()
        self.tally: Tally | None = None
        self.floor = TimeFloor()
        self.evaluations = 0
        self.entities_missing = 0

    def boolean(
        self, namespace: Namespace, flag_key: FlagKey, entity_id: EntityId, context: Mapping[str, str]
    ) -> BooleanAnswer:
        """Raises NamespaceNotFound, FlagNotFound, TypeMismatch, FlagNotUsable."""
        compiled = self.knowledge(namespace).compiled
        answer = compiled.boolean(flag_key, entity_id, context)
        self.count(namespace, answer)
        if not entity_id:
            self.lacks_entity(compiled, flag_key, context)
        return answer

    def variant(
        self, namespace: Namespace, flag_key: FlagKey, entity_id: EntityId, context: Mapping[str, str]
    ) -> VariantAnswer:
        """Raises NamespaceNotFound, FlagNotFound, TypeMismatch, FlagNotUsable."""
        compiled = self.knowledge(namespace).compiled
        answer = compiled.variant(flag_key, entity_id, context)
        self.count(namespace, answer)
        if not entity_id:
            self.lacks_entity(compiled, flag_key, context)
        return answer

    def count(self, namespace: Namespace, answer: Answer) -> None:
        """An answer that was given to an application, also by somebody who asked `knowledge` for it."""
        self.evaluations += 1
        if self.tally is not None:
            self.tally.count(namespace, answer)

    def lacks_entity(self, compiled: CompiledFlags, flag_key: str, context: Mapping[str, str]) -> bool:
        """Whether a question without an entity reached a percentage; counted if so."""
        is_missing = compiled.needs_entity(flag_key, context)
        self.entities_missing += is_missing
        return is_missing

    def explain(
        self, namespace: Namespace, flag_key: FlagKey, entity_id: EntityId, context: Mapping[str, str]
    ) -> "Explanation":
        """Raises NamespaceNotFound, FlagNotFound, FlagNotUsable."""
        return self.knowledge(namespace).compiled.explain(flag_key, entity_id, context)

    def flags(self, namespace: Namespace) -> Mapping[FlagKey, FlagState]:
        """Every flag of the namespace with its type and whether it is usable. Raises NamespaceNotFound."""
        return self.knowledge(namespace).compiled.flags

    def knowledge(self, namespace: Namespace) -> Knowledge:
        """What is known of a namespace at this instant; it does not change under its reader. Raises NamespaceNotFound."""
        known = self._known.get(namespace)
        if known is None:
            raise NamespaceNotFound(f"no namespace {namespace!r} on this device")
        return known

    def namespaces(self) -> tuple[Namespace, ...]:
        """The namespaces of which something was admitted, sorted."""
        return tuple(sorted(self._known))

    def activate(self, update: "AdmittedUpdate") -> Knowledge:
        """Answers from `update` from now on.

        Records that did not change are not compiled again. Raises DeltaMismatch for a change of something that was
        never activated; nothing has changed then.
        """
        held = self._known.get(update.namespace)
        if update.is_complete:
            compiled = compile_flags([record.entry for record in update.changed], self._device)
        elif held is None:
            raise DeltaMismatch(f"{update.namespace}: a change was to be activated before any content was")
        elif update.changes_content:
            compiled = held.compiled.update([record.entry for record in update.changed], update.removed)
        else:
            compiled = held.compiled
        holding = update.holding
        knowledge = Knowledge(
            update.namespace,
            holding.epoch,
            holding.version,
            holding.digest,
            holding.head.issued,
            holding.head.expires,
            compiled,
        )
        self._known = MappingProxyType({**self._known, update.namespace: knowledge})
        for listener in self._listeners:
            listener(knowledge)
        return knowledge

    def listen(self, listener: Callable[[Knowledge], None]) -> Callable[[], None]:
        """Calls `listener` after every activation, in the activating thread; returns what ends that."""
        self._listeners = (*self._listeners, listener)

        def forget() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return forget
