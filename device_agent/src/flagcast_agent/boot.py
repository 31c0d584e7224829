"""From the agent's disk to answers: open and lock the database, believe what it gives back, activate it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flagcast_shared.context import device_attributes
from flagcast_shared.errors import Refused
from flagcast_shared.ids import FlagKey, Namespace
from flagcast_shared.trust import Trusted, begin, floor_from_disk, restore

from . import clock, config
from .config import AgentConfig
from .evaluator import Evaluator
from .logs import log
from .store.errors import StoreCorrupt, StoreTooNew, StoreUnwritable
from .store.files import set_aside
from .store.rows import Profile
from .store.writer import Store
from .sync.time_floor import TimeFloor
from .sync.transitions import BrokerMemory


@dataclass(frozen=True, slots=True)
class Booted:
    """What the disk gave back: open store, what is trusted, and an evaluator that answers from it.

    `removed` are flags that are gone, of which an application may have kept an answer.
    """

    store: Store
    trusted: Trusted
    evaluator: Evaluator
    broker: BrokerMemory | None = None
    removed: Mapping[Namespace, tuple[FlagKey, ...]] = field(default_factory=dict)


def boot(settings: AgentConfig, *, recover: bool = False) -> Booted:
    """Open the disk and activate what was admitted before. Raises StoreError, InvalidConfiguration, Refused."""
    anchor = config.read_anchor(settings.anchor)
    try:
        return _boot(settings, anchor)
    except (StoreCorrupt, StoreTooNew) as error:
        if not recover:
            raise
        kept = set_aside(settings.store, clock.now())
        log(logging.WARNING, "the database was set aside; starting from the network", why=error, kept=kept)
        return _boot(settings, anchor)


def _boot(settings: AgentConfig, anchor: bytes) -> Booted:
    store = Store(settings.store, may_be_read_only=True)
    try:
        saved = store.load()
        trusted = begin(settings.environment, settings.device, anchor)
        if saved.root_data is not None:
            later = begin(settings.environment, settings.device, saved.root_data)
            # A device may be provisioned anew with a later anchor than the root it had walked to.
            trusted = later if later.root.number >= trusted.root.number else trusted
        epochs = {stored.epoch for stored in saved.namespaces}
        trusted = replace(trusted, floor=floor_from_disk(trusted.root, saved.floor.time, epochs))
        evaluator = Evaluator(device_attributes(settings.device))
        monotonic = clock.monotonic()
        evaluator.floor = TimeFloor(boot=clock.boot_id()).resume(saved.floor, monotonic)
        for stored in saved.namespaces:
            if stored.namespace not in settings.namespaces:
                continue
            try:
                trusted, update = restore(trusted, stored)
            except Refused as error:
                raise StoreCorrupt(
                    f"{settings.store}: {error}; start with --recover to set it aside and fetch everything again"
                ) from error
            evaluator.activate(update)
        is_of_this_epoch = trusted.root.epoch in epochs
        learn = evaluator.floor.learn if is_of_this_epoch else evaluator.floor.begin_afresh
        evaluator.floor = learn(trusted.floor, monotonic)
        why = store.why_read_only
        try:
            store.persist_profile(Profile(settings.environment, settings.device, settings.namespaces))
        except StoreUnwritable as error:
            why = why or str(error)
        if why:
            log(
                logging.WARNING,
                "the disk takes no writes; answering from what it holds, nothing new is admitted",
                why=why,
            )
        removed = {name: keys for name, keys in saved.removed.items() if name in settings.namespaces}
        return Booted(store, trusted, evaluator, saved.broker, removed)
    except BaseException:
        store.close()
        raise
