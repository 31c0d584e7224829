"""A publisher is killed in every gap between two of its publishes: devices, old and new, have a whole version at any time."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from devices import Device, provision
from mqtt_meter import Meter, metered
from publishing import Flagcast, make_project
from updates import FLAGS, generation_of

from brokers import start_mosquitto
from flagcast_bridge.broker import connection as mqtt

MESSAGE_LIMIT_BYTES = 4_096
"""So small that each version has several parts."""
GAPS_MIN = 8
"""Several parts, deltas from some versions, the head, and what is cleared."""
_PROGRAM = Path(sys.executable).with_name("flagcast")


def write_version(file: Path, number: int) -> None:
    """Every flag answers which version it is from, and carries something that does not compress."""
    flags = "".join(
        f"  - key: {key}\n    name: {key}\n    type: VARIANT_FLAG_TYPE\n    enabled: true\n    variants:\n"
        f"      - key: v{number}\n        default: true\n        attachment: {{noise: {_noise(key, number)}}}\n"
        for key in FLAGS
    )
    file.write_text(f'version: "1.3"\nnamespace: default\nflags:\n{flags}')


def _noise(key: str, number: int) -> str:
    return "".join(hashlib.sha256(f"{key}/{number}/{block}".encode()).hexdigest() for block in range(24))


def killed_after(meter: Meter, publishes: int, command: list[str]) -> bool:
    """Runs a command whose first so many publishes arrive; false if it ended before it wanted to send one more."""
    meter.publishes_left = publishes
    meter.is_holding.clear()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if meter.is_holding.wait(0.01):
                process.kill()
                return True
        assert process.returncode == 0
        return False
    finally:
        process.wait()
        meter.publishes_left = None


@pytest.mark.mosquitto
@pytest.mark.timeout(300)
def test_a_publisher_killed_in_any_gap_leaves_every_device_a_whole_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "QUIET_SECONDS", 0.2)
    with start_mosquitto(tmp_path / "broker") as broker, metered(broker.host, broker.port) as meter:
        made = make_project(
            tmp_path / "fleet",
            f"mqtt://127.0.0.1:{meter.port}",
            {"message_limit_bytes": str(MESSAGE_LIMIT_BYTES), "grace_seconds": "0"},
        )
        flagcast = Flagcast(made.folder, capsys)
        file = tmp_path / "features.yml"
        write_version(file, 1)
        assert flagcast.on_project("publish", file).code == 0
        with provision(tmp_path / "device", made.root_file(1), broker.url) as device:
            device.start()
            device.wait_for("message=admitted")
            number, gap = 1, 0
            while True:
                number += 1
                write_version(file, number)
                command = [str(_PROGRAM), "publish", str(file), "--project", str(made.folder)]
                if not killed_after(meter, gap, command):
                    break
                assert generation_of(device.variants(FLAGS)) in {number - 1, number}, f"gap {gap}"
                _a_new_device_has_a_whole_version(
                    tmp_path / f"new-{gap}", made.root_file(1), broker.url, number
                )
                done = flagcast.on_project("publish", file)
                assert done.code == 0, f"gap {gap}:\n{done.out}{done.err}"
                _reaches(device, number, gap)
                gap += 1
            _reaches(device, number, gap)
            assert gap >= GAPS_MIN
            # Nothing is left over of any of the runs that were killed.
            with mqtt.connect(broker.host, broker.port, mqtt.Login()) as connection:
                topics = [topic for topic in connection.read_all(["flagcast/#"]) if "/snapshot/" in topic]
            assert len({topic.split("/")[5] for topic in topics}) == 1, topics


def _reaches(device: Device, number: int, gap: int) -> None:
    device.wait_until(lambda: generation_of(device.variants(FLAGS)) == number, f"version {number}, gap {gap}")


def _a_new_device_has_a_whole_version(folder: Path, anchor: Path, url: str, number: int) -> None:
    with provision(folder, anchor, url, device="device-2") as device:
        device.start()
        device.wait_for("message=admitted")
        assert generation_of(device.variants(FLAGS)) in {number - 1, number}
