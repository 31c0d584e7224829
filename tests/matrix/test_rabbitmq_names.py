"""RabbitMQ's plugin turns a dot of a topic into a slash, and shows nothing to wildcards: what the documents say of both."""

import pytest
from sites import Fleet, Site

from flagcast_shared.ids import DeviceId, Epoch, Namespace, Version
from flagcast_shared.reports import Applied, Report, encode_report
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


@pytest.mark.parametrize("site", ["rabbitmq"], indirect=True)
def test_reports_that_the_broker_hides_are_said_once_and_refuse_nothing(site: Site, fleet: Fleet) -> None:
    fleet.publish(a=True)
    held = {Namespace("default"): Applied(Epoch(1), Version(50), 50)}
    report = Report(1, 1, is_online=True, at=1_800_000_000, agent="1.0", root=1, applied=held)
    fleet.put(DeviceAddress(DeviceId("ahead"), "report"), encode_report(report))
    said = fleet.publish(a=False)
    assert said.count("reports were not compared with the ledger") == 1, said
