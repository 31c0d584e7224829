"""Attacks of a broker on `flagcast publish`: it ends with one error in time, with bounded memory and nothing confirmed."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from publishing import bulky_features, features, make_project
from usage_attacks import HostileBroker, Session, packet, publish_packet, resident_bytes, sized

from flagcast_bridge.broker import connection as mqtt

PATIENCE_SECONDS = 200.0
MEMORY_MAX_BYTES = 140 * 2**20
"""A publisher takes some 50 MB; a broker pours out more than this without end."""


PATIENT = (
    "import sys; from flagcast_bridge.broker import connection as mqtt; mqtt.ANSWER_TIMEOUT_SECONDS = 200.0; "
)
"""Before the command, where a limit has to be reached before the time for an answer is over, on a busy machine too."""
RUN = "from flagcast_bridge.cli import main; sys.exit(main())"


def publish_at(folder: Path, url: str, text: str = "", *, is_patient: bool = False) -> tuple[str, int]:
    """Errors of `flagcast publish` to this broker, which has to refuse, and the most bytes that it was seen with."""
    make_project(folder, url, {"protocol": '"5"'})
    flags = folder / "features.yml"
    flags.write_text(text or features({"lights": True}))
    program = (
        [sys.executable, "-c", PATIENT + RUN] if is_patient else [Path(sys.executable).with_name("flagcast")]
    )
    errors = folder / "errors"
    with errors.open("wb") as log:
        process = subprocess.Popen(
            [*program, "publish", str(flags), "--project", str(folder)],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
        most, deadline = 0, time.monotonic() + PATIENCE_SECONDS
        try:
            while process.poll() is None:
                assert time.monotonic() < deadline, errors.read_text()
                with contextlib.suppress(OSError):
                    most = max(most, resident_bytes(process.pid))
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert process.returncode not in {0, -9}, errors.read_text()
    return errors.read_text(), most


def nothing_is_confirmed(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        kept = ledger.execute("SELECT count(*) FROM kept").fetchone()
        published = ledger.execute("SELECT count(*) FROM head WHERE published IS NOT NULL").fetchone()
    return bool(kept == published == (0,))


def flood_without_reading(session: Session) -> None:
    message = publish_packet(b"a", b"", qos=1, number=7, is_v5=session.is_v5) * 1_000
    while True:  # until the client has gone
        session.send(message)


def test_a_broker_that_takes_no_acknowledgement_ends_the_publication(tmp_path: Path) -> None:
    # It sends messages before its SUBACK, in the thread that would read.
    with HostileBroker(lambda _: None, before_suback=flood_without_reading) as broker:
        errors, most = publish_at(tmp_path / "project", broker.url, is_patient=True)
    assert "the broker takes nothing from us" in errors
    assert "Traceback" not in errors
    assert most < MEMORY_MAX_BYTES
    assert nothing_is_confirmed(tmp_path / "project")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(packet(0x90, b"\x7f\xff\x00" + b"\x01" * 260_000), id="SUBACK of 260,000 answers"),
        pytest.param(
            packet(0x40, b"\x00\x63\x00" + sized(b"\x26\x00\x00\x00\x00" * 52_000)),
            id="PUBACK of 52,000 properties",
        ),
    ],
)
def test_an_answer_without_end_ends_the_publication(tmp_path: Path, answer: bytes) -> None:
    with HostileBroker(lambda _: None, before_suback=lambda session: session.send(answer)) as broker:
        errors, most = publish_at(tmp_path / "project", broker.url)
    assert "the broker sent an answer of 260" in errors
    assert "Traceback" not in errors
    assert most < MEMORY_MAX_BYTES
    assert nothing_is_confirmed(tmp_path / "project")


def test_a_websocket_frame_without_end_ends_the_publication(tmp_path: Path) -> None:
    from websockets.utils import accept_key

    poured: list[int] = []

    def serve() -> None:
        stream, _ = listener.accept()
        with stream, contextlib.suppress(OSError):
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += stream.recv(4096)
            (key,) = [
                line.split(b": ")[1]
                for line in request.split(b"\r\n")
                if line.startswith(b"Sec-WebSocket-Key")
            ]
            stream.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
            )
            stream.sendall(b"\x82\x7f" + (1 << 62).to_bytes(8, "big") + b"\x20\x03\x00\x00\x00")
            message = publish_packet(b"a", bytes(200_000), qos=0, is_v5=True)
            for _ in range(1_000):
                stream.sendall(message)
                poured.append(len(message))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        errors, most = publish_at(tmp_path / "project", f"ws://127.0.0.1:{listener.getsockname()[1]}/mqtt")
        thread.join(PATIENCE_SECONDS)
    assert "the broker sent a frame of more than" in errors
    assert "Traceback" not in errors
    assert sum(poured) < 4 * mqtt._FRAME_MAX_BYTES
    assert most < MEMORY_MAX_BYTES
    assert nothing_is_confirmed(tmp_path / "project")


def test_a_broker_that_stops_reading_ends_the_publication(tmp_path: Path) -> None:
    with HostileBroker(lambda _: None, stops_at=3) as broker:  # at the first PUBLISH
        errors, most = publish_at(tmp_path / "project", broker.url, bulky_features(1_000))
    assert "the broker did not answer within 20 s" in errors
    assert "Traceback" not in errors
    assert most < MEMORY_MAX_BYTES
    assert nothing_is_confirmed(tmp_path / "project")
