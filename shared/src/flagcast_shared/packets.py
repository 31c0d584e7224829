"""Packets of MQTT as a broker may send them: which are too long, and what they are without properties.

paho's time for properties grows with the square of their number, it makes some 2 KB of each code in a SUBACK, and it ends the
connection over any property that it does not take, which a broker hands on from whoever published the message.
"""

from typing import Final

ANSWER_MAX_BYTES: Final = 4_096
"""Any packet but a PUBLISH: brokers send a few hundred bytes."""
PUBLISH: Final = 0x30
"""The upper half of the first byte (MQTT 5, 2.1.2), as of CONNACK."""
CONNACK: Final = 0x20
_PROPERTIES_AT: Final = {0x40: 3, 0x50: 3, 0x60: 3, 0x70: 3, 0x90: 2, 0xB0: 2, 0xE0: 1}
# The place of the property length in PUBACK to PUBCOMP, SUBACK, UNSUBACK and DISCONNECT (MQTT 5, 3.4 to 3.14).
_QOS: Final = 0b0110  # in the first byte of a PUBLISH (MQTT 5, 3.3.1)


def kind_of(first: int) -> int:
    """The type of a packet, from its first byte."""
    return first & 0xF0


def without_properties(first: int, packet: bytearray) -> bytearray:
    """A packet of MQTT 5 as it would be without properties; those of a CONNACK stay.

    Raises:
        ValueError: their length is none, or beyond the packet's end.
    """
    kind = kind_of(first)
    if kind == PUBLISH:
        at = 2 + int.from_bytes(packet[:2], "big") + (2 if first & _QOS else 0)
    elif kind in _PROPERTIES_AT and len(packet) > _PROPERTIES_AT[kind]:
        at = _PROPERTIES_AT[kind]
    else:
        return packet
    length, end = 0, at
    for end, byte in enumerate(packet[at : at + 4], at + 1):  # a Variable Byte Integer (MQTT 5, 1.5.5)
        length |= (byte & 0x7F) << 7 * (end - at - 1)
        if byte < 0x80:
            break
    else:
        raise ValueError("a property length that is none")
    if end + length > len(packet):
        raise ValueError("properties beyond the end of their packet")
    packet[at : end + length] = b"\x00"
    return packet
