"""A device on a host of its own, with a bad network between it and its broker: cut, lossy, and not there at all."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from across import Across, device_across
from devices import Device
from network import Network, no_network, why_not
from updates import FLAGS, generation_of, stream_of_updates

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(why_not() != "", reason=why_not() or "-"),
]
RTT_SECONDS = 0.05


@pytest.fixture
def across(tmp_path: Path) -> Iterator[Across]:
    with Network(rtt_seconds=RTT_SECONDS) as network, device_across(network, tmp_path) as across:
        yield across


def newest(across: Across) -> int:
    """The version that a device ought to have by now."""
    return across.simulator.heads[-1].stable.version


def reaches(device: Device, version: int) -> None:
    device.wait_until(lambda: max(device.logged_versions, default=0) >= version, f"version {version}")
    answered = generation_of(device.variants(FLAGS))
    assert answered is not None, "a mixture"
    assert answered >= version


@pytest.mark.parametrize("is_told", [False, True], ids=["silently", "the interface goes down"])
def test_a_cut_within_a_stream_of_updates_is_made_up_for(across: Across, is_told: bool) -> None:
    device, network = across.device, across.network
    with across.far(), stream_of_updates(across.simulator, across.broker, 0.2):
        reaches(device, 2)
        across.cut(is_told=is_told)
        missed = newest(across) + 3
        device.wait_until(lambda: newest(across) >= missed, "three updates that do not arrive")
        before = generation_of(device.variants(FLAGS))
        assert before is not None
        assert before < missed
        across.heal(is_told=is_told)
        reaches(device, missed)
    reaches(device, newest(across))
    assert device.logged_versions == sorted(device.logged_versions)
    assert network.arrived_bytes


def test_a_connection_that_died_in_silence_is_left_at_once_when_somebody_says_that_the_network_is_back(
    across: Across,
) -> None:
    device = across.device
    across.network.is_cut = True
    across.release(2)
    device.send_signal(signal.SIGUSR1)
    device.wait_for("did not acknowledge a subscription in time")
    across.network.is_cut = False
    reaches(device, 2)
    assert device.log.count("message=connected") == 2


def test_loss_doubled_and_reordered_packets_cost_time_and_nothing_else(across: Across) -> None:
    network, device = across.network, across.device
    network.loss, network.doubled, network.reordered = 0.1, 0.1, 0.3
    with across.far(), stream_of_updates(across.simulator, across.broker, 0.1):
        reaches(device, 20)
    reaches(device, newest(across))
    assert device.logged_versions == sorted(set(device.logged_versions))
    assert "refused" not in device.log


def test_without_any_network_a_device_answers_what_it_has_and_is_right_once_there_is_one(
    across: Across,
) -> None:
    device = across.device
    device.kill()
    across.release(2)
    with no_network():
        device.start()
    assert generation_of(device.variants(FLAGS)) == 1
    device.wait_for("fault=network")
    assert device.stop() == 0
    with across.near():
        device.start()
    reaches(device, 2)
