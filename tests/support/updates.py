"""A stream of updates in which every flag says which version it is from, so that a mixture of versions shows."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from publisher_simulator import PublisherSimulator

from brokers import Broker
from flagcast_bridge.broker import connection as mqtt
from flagcast_shared.ids import FlagKey, VariantKey
from flagcast_shared.model import Variant, VariantFlag

FLAGS = tuple(f"flag-{number:02d}" for number in range(20))
PAUSE_SECONDS = 0.02


def generation(number: int) -> list[VariantFlag]:
    """The flags of one version: everybody gets the variant "v{number}" of each."""
    name = VariantKey(f"v{number}")
    return [VariantFlag(FlagKey(key), True, (Variant(name),), name) for key in FLAGS]


def generation_of(answers: tuple[str, ...]) -> int | None:
    """Which version a batch was answered from; None for a mixture."""
    found = set(answers)
    return int(found.pop().removeprefix("v")) if len(found) == 1 else None


@contextmanager
def stream_of_updates(
    simulator: PublisherSimulator, broker: Broker, pause_seconds: float = PAUSE_SECONDS
) -> Iterator[None]:
    """Publishes version after version, by turns with an inline delta, a retained one and none, until the block ends."""
    over = threading.Event()
    failures: list[Exception] = []

    def publish() -> None:
        try:
            with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
                number = 1
                while not over.wait(pause_seconds):
                    number += 1
                    before = dict(simulator.retained)
                    simulator.now = int(time.time())  # noqa: TID251  # what a publisher's clock would say
                    simulator.release(*generation(number), delta=number % 3 != 0, inline=number % 3 == 1)
                    news = {at: data for at, data in simulator.retained.items() if before.get(at) != data}
                    head = news.pop(simulator.head_topic)
                    connection.publish([*news.items(), (simulator.head_topic, head)])
        except Exception as error:  # noqa: BLE001  # a thread's failure is the caller's, told when it is joined
            failures.append(error)

    thread = threading.Thread(target=publish, name="publisher")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failures, failures
