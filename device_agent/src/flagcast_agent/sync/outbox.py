"""Usage outbox: batches of evaluation counts on their way to the broker."""

from dataclasses import replace

from flagcast_shared.reports import Usage

from .events import Delivered, DropUsage, Effect, FindUsage, KeepUsage, Level, Log, Send


class Outbox:
    """One batch is under way at a time; the broker's answer, or the next span, leads to the next one.

    It numbers everything that one agent sends and awaits an answer to.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._tokens = 0
        self._sent = 0
        self._number = 0
        self._rests = False
        self._is_denied = False
        self._unkept = 0

    @property
    def is_sending(self) -> bool:
        """Whether a batch is under way."""
        return self._sent != 0

    def next_token(self) -> int:
        """A number that nothing sent before has."""
        self._tokens += 1
        return self._tokens

    def connected(self) -> None:
        """A connection begins: nothing is under way."""
        self._sent = 0
        self._rests = self._is_denied = False

    def keep(self, batches: tuple[Usage, ...]) -> list[Effect]:
        """A span is over: keeps its batches."""
        if not self._is_denied:
            self._rests = False
        if not batches:
            return []
        first, *others = batches
        if self._unkept:
            first = replace(first, dropped=first.dropped + self._unkept)
            self._unkept = 0
        return [KeepUsage(batch) for batch in (first, *others)]

    def lose(self, evaluations: int) -> None:
        """The disk did not take so many evaluations; the next batch counts them as dropped."""
        self._unkept += evaluations

    def find(self, *, is_connected: bool) -> list[Effect]:
        """Looks for the next batch, if it may be sent."""
        is_idle = not self._sent and not self._rests
        return [FindUsage()] if is_idle and is_connected else []

    def send(self, number: int, payload: bytes) -> list[Effect]:
        """Sends the batch that was found; `number` is 0 where there is none."""
        if not number or self._sent:
            return []
        self._number = number
        self._sent = self.next_token()
        return [Send(self._topic, payload, self._sent)]

    def on_delivered(self, answer: Delivered, *, is_connected: bool) -> list[Effect]:
        """The broker's answer to a batch; one to anything else changes nothing."""
        if answer.token != self._sent:
            return []
        self._sent = 0
        if answer.is_kept:
            return [DropUsage(self._number), *self.find(is_connected=is_connected)]
        # Until the next span, or the next connection.
        self._rests = True
        if self._is_denied or answer.may_retry:
            return []
        self._is_denied = True
        return [Log(Level.WARNING, "usage was not taken; it is kept", (("why", answer.why),))]
