"""RabbitMQ's plugin turns a dot of a topic into a slash: what docs/brokers.md says of names."""

import pytest
from sites import Fleet, Site

from flagcast_shared.ids import DeviceId
from flagcast_shared.topics import DeviceAddress

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def note() -> None:
    """No cell of the table."""


@pytest.mark.parametrize("site", ["rabbitmq"], indirect=True)
def test_a_report_of_a_device_whose_name_has_a_dot_is_not_found(site: Site, fleet: Fleet) -> None:
    dotted, plain = (DeviceAddress(DeviceId(name), "report") for name in ("charger.17", "charger-17"))
    for address in (dotted, plain):
        fleet.put(address, b"anything")
    assert set(fleet.retained(dotted, plain)) == {plain}
