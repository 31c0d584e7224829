"""Every defence on a device's way from received bytes to belief, and the one change of the sources that takes it away.

`benchmarks/defences.py` takes one away at a time and runs the test that has to notice. Each is named after what gets through
without it. Where the end is a refusal all the same, by a later check, the test notices that it has the wrong name: logs and
reports would tell of another attack.

Not in the list, because no test can tell them from their absence: the bounds of a part's and a delta's body and of the lists in
a record, which are no longer than the message or the record around them, whose size was checked before; and "not a publisher's
topic" for what devices write, because `sync` does not let it come as far. What is compared once more with what
came before (records that stand twice are found by their keys as well as by their order) has one entry.
"""

import re
from dataclasses import dataclass

SHARED = "shared/src/flagcast_shared"
AGENT = "device_agent/src/flagcast_agent"


@dataclass(frozen=True, slots=True)
class Defence:
    """`old` stands exactly once in `file`, relative to the repository; with `new` in its place the defence is gone.

    `test` has to fail then: a test's id, relative to tests/.
    """

    name: str
    file: str
    old: str
    new: str
    test: str

    def taken_from(self, source: str) -> str:
        """The source of `file` without the defence. Raises ValueError where `old` does not stand there exactly once."""
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: stands {source.count(self.old)} times in {self.file}: {self.old!r}"
            )
        return source.replace(self.old, self.new)


def check(name: str, file: str, old: str, test: str) -> Defence:
    """A defence that goes when the condition of the first `if` in `old` never holds."""
    new, found = re.subn(r"\bif .+?:(?=\n|  #|$)", "if False:", old, count=1, flags=re.DOTALL)
    assert found, f"{name}: no condition in {old!r}"
    return Defence(name, file, old, new, test)


CODEC = f"{SHARED}/codec.py"
ED25519 = f"{SHARED}/ed25519.py"
ENVELOPE = f"{SHARED}/envelope.py"
KEYRING = f"{SHARED}/keyring.py"
MESSAGES = f"{SHARED}/messages.py"
RECORDS = f"{SHARED}/records.py"
ROOT = f"{SHARED}/root.py"
TOPICS = f"{SHARED}/topics.py"
TRUST = f"{SHARED}/trust.py"
BOOT = f"{AGENT}/boot.py"
FOLLOWER = f"{AGENT}/follower.py"
MQTT = f"{AGENT}/mqtt.py"
STORE_CODECS = f"{AGENT}/store/codecs.py"
STORE_FILES = f"{AGENT}/store/files.py"
STORE_READER = f"{AGENT}/store/reader.py"
STORE_WRITER = f"{AGENT}/store/writer.py"
SYNC = f"{AGENT}/sync/core.py"
SYNC_LINK = f"{AGENT}/sync/connection.py"
SYNC_REPORTING = f"{AGENT}/sync/reporting.py"
SYNC_SUBSCRIPTIONS = f"{AGENT}/sync/subscriptions.py"

_CODEC = (
    check(
        "payload without a byte",
        CODEC,
        'if not data:\n        raise EmptyPayload(f"{what}',
        "attacks/test_envelopes.py::test_payload_that_is_empty",
    ),
    Defence(
        "CBOR that reaches the library before its shape is known",
        CODEC,
        "    items = scan(data, what)\n    try:",
        "    items = 0\n    try:",
        "attacks/test_structure.py::test_tag_that_makes_the_reader_compile_a_pattern",
    ),
    Defence(
        "text that is not UTF-8",
        CODEC,
        'raise Malformed(f"{what}: a text that is not UTF-8") from error',
        "raise",
        "attacks/test_envelopes.py::test_payload_that_is_no_cbor",
    ),
    check(
        "bytes after the payload",
        CODEC,
        "if at != len(data):",
        "attacks/test_envelopes.py::test_bytes_after_the_payload",
    ),
    Defence(
        "payload cut short",
        CODEC,
        'raise Malformed(f"{what}: cut short") from error',
        "raise",
        "attacks/test_envelopes.py::test_payload_that_is_no_cbor",
    ),
    check(
        "string cut short",
        CODEC,
        "if at > len(data):",
        "attacks/test_structure.py::test_shape_that_never_travels[a text cut short]",
    ),
    check(
        "number cut short",
        CODEC,
        "if len(written) != width:",
        "attacks/test_structure.py::test_shape_that_never_travels[a number cut short]",
    ),
    check(
        "integers beyond 63 bits",
        CODEC,
        "if argument > NUMBER_MAX - major and major <= _NEGATIVE:",
        "attacks/test_envelopes.py::test_values_that_never_travel",
    ),
    Defence(
        "the negative integer of 64 bits",
        CODEC,
        "if argument > NUMBER_MAX - major and major <= _NEGATIVE:",
        "if argument > NUMBER_MAX and major <= _NEGATIVE:",
        "attacks/test_structure.py::test_shape_that_never_travels[the negative number of 64 bits]",
    ),
    Defence(
        "tags",
        CODEC,
        "if major == _TAG:",
        "if False:",
        "attacks/test_structure.py::test_tag_that_makes_the_reader_compile_a_pattern",
    ),
    Defence(
        "simple values of one byte",
        CODEC,
        "if not _FALSE <= argument <= _NULL:",
        "if False:",
        "attacks/test_structure.py::test_shape_that_never_travels[a simple value]",
    ),
    check(
        "floats and long simple values",
        CODEC,
        "if major == _SIMPLE:",
        "attacks/test_structure.py::test_float_that_reads_like_a_number_longer_than_needed",
    ),
    check(
        "lengths that a break tells",
        CODEC,
        "if kind == _INDEFINITE and _BYTES <= major <= _MAP:",
        "attacks/test_structure.py::test_shape_that_never_travels[a list without a length]",
    ),
    check(
        "bytes that begin no item",
        CODEC,
        "if kind > _ARGUMENT_LAST:",
        "attacks/test_structure.py::test_shape_that_never_travels[a break that ends nothing]",
    ),
    check(
        "numbers and lengths longer than needed",
        CODEC,
        "if argument < _SHORTEST[kind - 24]:",
        "attacks/test_structure.py::test_shape_that_never_travels[a number longer than needed]",
    ),
    check(
        "map keys that are neither text nor small integers",
        CODEC,
        "if major not in (_UNSIGNED, _TEXT):",
        "attacks/test_envelopes.py::test_map_keys_that_never_travel",
    ),
    check(
        "maps of mixed keys",
        CODEC,
        "if keys != _ANY_KEY:",
        "attacks/test_envelopes.py::test_map_with_both_kinds_of_keys",
    ),
    check(
        "keys in another order, or twice",
        CODEC,
        "if key <= last:",
        "attacks/test_envelopes.py::test_duplicate_map_keys",
    ),
    check(
        "nesting without end",
        CODEC,
        "if len(outer) == DEPTH_MAX:",
        "attacks/test_envelopes.py::test_payload_that_is_nested_deep",
    ),
    check(
        "items without end",
        CODEC,
        "if items > ITEMS_MAX:",
        "attacks/test_structure.py::test_record_of_empty_lists_without_end",
    ),
    Defence(
        "compression bomb, in memory",
        CODEC,
        "size = min(_PIECE_BYTES, left + 1)",
        "size = 1 << 30",
        "attacks/test_structure.py::test_snapshot_of_millions_of_empty_things",
    ),
    check(
        "compression bomb",
        CODEC,
        "if left < 0:\n                raise CompressionBomb",
        "attacks/test_envelopes.py::test_compression_bomb_of_the_announced_size",
    ),
    Defence(
        "compressed body that is none",
        CODEC,
        'raise Malformed(f"{what}: not a zlib stream: {error}") from error',
        "raise",
        "attacks/test_content.py::test_inline_delta_that_is_garbage",
    ),
    Defence(
        "window of a compressed body beyond its bound",
        CODEC,
        "zlib.decompressobj(WINDOW_BITS)",
        "zlib.decompressobj()",
        "attacks/test_structure.py::test_compressed_body_of_a_larger_window",
    ),
    check(
        "compressed body that is cut short",
        CODEC,
        "if not stream.eof:",
        "attacks/test_content.py::test_truncated_snapshot",
    ),
    check(
        "bytes after the compressed body",
        CODEC,
        "if excess := len(stream.unused_data) or (stream.eof and len(waiting)):",
        "attacks/test_envelopes.py::test_bytes_after_the_compressed_body",
    ),
    Defence(
        "a body after the compressed stream's end",
        CODEC,
        "len(stream.unused_data) or (stream.eof and len(waiting))",
        "len(stream.unused_data)",
        "attacks/test_structure.py::test_part_after_the_end_of_the_compressed_body",
    ),
    check(
        "list of a content without end",
        CODEC,
        "if count > high:",
        "attacks/test_content.py::test_records_without_end",
    ),
    check(
        "record without end, before it is taken",
        CODEC,
        'if length > high:\n            raise TooLarge(f"{what}: {length}',
        "attacks/test_structure.py::test_record_that_announces_more_than_it_may_have",
    ),
    check(
        "removed key without end",
        CODEC,
        'if length > high:\n            raise TooLarge(f"{what}: longer',
        "attacks/test_structure.py::test_delta_that_removes_a_key_without_end",
    ),
    Defence(
        "removed key that is not UTF-8",
        CODEC,
        'raise Malformed(f"{what}: not UTF-8") from error',
        "raise",
        "attacks/test_structure.py::test_delta_that_removes_a_key_that_is_no_text",
    ),
    check(
        "bytes after a content",
        CODEC,
        "if excess:\n",
        "attacks/test_content.py::test_delta_that_is_none",
    ),
    check(
        "content of another shape",
        CODEC,
        "if first >> 5 != major:\n            raise Malformed(otherwise)",
        "attacks/test_content.py::test_delta_that_is_none",
    ),
    Defence(
        "content cut short",
        CODEC,
        'raise Malformed(f"{self._what}: cut short")',
        'return b""',
        "attacks/test_structure.py::test_content_cut_short",
    ),
    check(
        "field that is no map",
        CODEC,
        'if not isinstance(value, Mapping):\n            raise Malformed(f"{what}: not a map',
        "attacks/test_envelopes.py::test_field_of_a_wrong_shape",
    ),
    check(
        "field that is no boolean",
        CODEC,
        "if not isinstance(value, bool):",
        "attacks/test_content.py::test_record_that_is_none[one for true]",
    ),
    check(
        "field that is no byte string",
        CODEC,
        "if not isinstance(value, bytes):",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[digest that is a text]",
    ),
    check(
        "byte string of another length",
        CODEC,
        "if not low <= len(value) <= high:",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[digest of 31 bytes]",
    ),
    check(
        "texts that are no map",
        CODEC,
        'if not isinstance(value, Mapping):\n            raise Malformed(f"{self._at(number)}',
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[labels that are no map]",
    ),
    check(
        "texts without end",
        CODEC,
        'if len(value) > high:\n            raise TooLarge(f"{self._at(number)}',
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[labels without end]",
    ),
    check(
        "integer that is none",
        CODEC,
        "if not isinstance(value, int) or isinstance(value, bool):",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[delta from a text]",
    ),
    Defence(
        "truth for an integer",
        CODEC,
        "if not isinstance(value, int) or isinstance(value, bool):",
        "if not isinstance(value, int):",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[truth for a sequence]",
    ),
    check(
        "integer out of bounds",
        CODEC,
        "if not low <= value <= high:",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[share of more than all]",
    ),
    check(
        "text that is none",
        CODEC,
        "if not isinstance(value, str):",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[provenance that is no text]",
    ),
    check(
        "text without end",
        CODEC,
        "if len(value) > max_bytes or (len(value) * 4 > max_bytes and len(value.encode()) > max_bytes):",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[long label]",
    ),
    check(
        "list that is none",
        CODEC,
        "if not isinstance(value, list):",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[deltas that are no list]",
    ),
    check(
        "list without end",
        CODEC,
        'if len(value) > high:\n        raise TooLarge(f"{what}',
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[deltas without end]",
    ),
)

_ENVELOPE = (
    check(
        "cleared retained message",
        ENVELOPE,
        'if not data:\n        raise EmptyPayload(f"{place.kind}',
        "attacks/test_envelopes.py::test_empty_head",
    ),
    check(
        "message without end",
        ENVELOPE,
        "if len(data) > limit:",
        "attacks/test_envelopes.py::test_endless_head",
    ),
    Defence(
        "root without end",
        ENVELOPE,
        "limit = ROOT_MAX_BYTES if place.kind is Kind.ROOT else MESSAGE_MAX_BYTES",
        "limit = MESSAGE_MAX_BYTES",
        "attacks/test_roots.py::test_root_of_endless_bytes",
    ),
    Defence(
        "root with room for one signature only",
        ENVELOPE,
        "if data.startswith(_TAG_SIGN1) and place.kind is not Kind.ROOT:",
        "if data.startswith(_TAG_SIGN1):",
        "attacks/test_roots.py::test_root_in_an_envelope_for_one_signer",
    ),
    Defence(
        "message that is not COSE",
        ENVELOPE,
        '    else:\n        raise Malformed(f"{place.kind}: not a COSE message of this profile")',
        "    else:\n        reader = _Reader(data, len(_TAG_SIGN1), place)\n        envelope = _open_sign1(reader, place)",
        "attacks/test_envelopes.py::test_other_cose_message",
    ),
    check(
        "bytes after the envelope",
        ENVELOPE,
        "if self._at != len(self._data):",
        "attacks/test_envelopes.py::test_bytes_after_the_envelope",
    ),
    check(
        "another algorithm, critical, unknown or duplicate header",
        ENVELOPE,
        "if header != _sign1_header(place.kind, key):",
        "attacks/test_envelopes.py::test_unknown_or_critical_header",
    ),
    Defence(
        "algorithm confusion",
        ENVELOPE,
        "if header != _sign1_header(place.kind, key):",
        "if header.replace(b'\\x01\\x26', b'\\x01\\x27') != _sign1_header(place.kind, key):",
        "attacks/test_envelopes.py::test_other_algorithm",
    ),
    check(
        "header outside the profile above several signers",
        ENVELOPE,
        "if header != _body_header(place.kind):",
        "attacks/test_envelopes.py::test_header_above_several_signers_that_is_not_the_profiles",
    ),
    check(
        "signer's header outside the profile",
        ENVELOPE,
        "if signer != _signer_header(key):",
        "attacks/test_envelopes.py::test_signer_whose_header_is_not_the_profiles",
    ),
    Defence(
        "signers without end",
        ENVELOPE,
        "reader.array(ROOT_KEYS_MAX)",
        "reader.array(1 << 32)",
        "attacks/test_envelopes.py::test_many_signers_of_nothing",
    ),
    check(
        "list without end in the envelope",
        ENVELOPE,
        "if count > high:",
        "attacks/test_envelopes.py::test_many_signers_of_nothing",
    ),
    Defence(
        "signature of another shape",
        ENVELOPE,
        "if reader.array(3) != 3:",
        "if not reader.array(1 << 20):",
        "attacks/test_envelopes.py::test_signature_that_is_not_three_things",
    ),
    check(
        "no signature at all",
        ENVELOPE,
        "if not signatures:",
        "attacks/test_envelopes.py::test_no_signers_at_all",
    ),
    check(
        "envelope that is cut short",
        ENVELOPE,
        "if len(taken) != length:",
        "attacks/test_envelopes.py::test_head_that_announces_more_than_there_is",
    ),
    check(
        "envelope that ends early",
        ENVELOPE,
        "if self._at >= len(self._data):",
        "attacks/test_envelopes.py::test_garbage_head",
    ),
    check(
        "signature of another length",
        ENVELOPE,
        "if len(signature) != SIGNATURE_BYTES:",
        "attacks/test_envelopes.py::test_signature_of_another_length",
    ),
    check(
        "header in the unprotected bucket",
        ENVELOPE,
        "if self._data[self._at : self._at + 1] != _NO_HEADERS:",
        "attacks/test_envelopes.py::test_algorithm_in_both_buckets",
    ),
    check(
        "other types in the envelope",
        ENVELOPE,
        "if first >> 5 != major:",
        "attacks/test_envelopes.py::test_payload_that_is_a_text",
    ),
    check(
        "lengths of no message of ours",
        ENVELOPE,
        "if low > 26:",
        "attacks/test_envelopes.py::test_length_of_no_message_of_ours",
    ),
    check(
        "lengths longer than needed in the envelope",
        ENVELOPE,
        "if value < (24, 1 << 8, 1 << 16)[low - 24]:",
        "attacks/test_envelopes.py::test_length_spelled_longer_than_needed",
    ),
    Defence(
        "signature for another environment",
        ENVELOPE,
        'encode(["flagcast", FORMAT, place.environment, place.namespace, place.kind.value])',
        'encode(["flagcast", FORMAT, "", place.namespace, place.kind.value])',
        "attacks/test_places.py::test_head_of_another_environment",
    ),
    Defence(
        "signature for another namespace",
        ENVELOPE,
        'encode(["flagcast", FORMAT, place.environment, place.namespace, place.kind.value])',
        'encode(["flagcast", FORMAT, place.environment, "", place.kind.value])',
        "attacks/test_places.py::test_head_of_another_namespace",
    ),
    Defence(
        "signature for another kind of message",
        ENVELOPE,
        'encode(["flagcast", FORMAT, place.environment, place.namespace, place.kind.value])',
        'encode(["flagcast", FORMAT, place.environment, place.namespace, ""])',
        "attacks/test_envelopes.py::test_the_header_of_the_profile_is_admitted",
    ),
    Defence(
        "signature for one signer among several",
        ENVELOPE,
        'encode(["Signature", protected, signer, external_aad, payload])',
        'encode(["Signature1", encode({1: -8, 3: "application/vnd.flagcast.head+cbor", 4: signer[-8:]}), external_aad, payload])',
        "attacks/test_keys.py::test_signature_made_for_a_single_signer_does_not_count_among_several",
    ),
    Defence(
        "signature that does not cover the header",
        ENVELOPE,
        'encode(["Signature1", protected, external_aad, payload])',
        'encode(["Signature1", b"", external_aad, payload])',
        "attacks/test_envelopes.py::test_the_header_of_the_profile_is_admitted",
    ),
)

_KEYRING = (
    check(
        "key that no root lists",
        KEYRING,
        "if signature.key not in quorum.keys:",
        "attacks/test_keys.py::test_head_signed_by_a_stranger",
    ),
    Defence(
        "unknown key, by name",
        KEYRING,
        'raise UnknownKey(f"key {signature.key.hex()} is not in root {root.number}")',
        "continue",
        "attacks/test_keys.py::test_head_cosigned_by_a_publisher_and_a_stranger",
    ),
    check(
        "key of another role",
        KEYRING,
        "if signature.key in root.keys:",
        "attacks/test_keys.py::test_head_signed_by_a_root_key",
    ),
    check(
        "one key counted twice",
        KEYRING,
        "if signature.key in counted:",
        "attacks/test_keys.py::test_one_key_signs_twice_to_reach_the_threshold",
    ),
    Defence(
        "forged signature",
        KEYRING,
        "    except InvalidSignature:\n        return False",
        "    except InvalidSignature:\n        return True",
        "attacks/test_keys.py::test_head_with_a_broken_signature",
    ),
    Defence(
        "forged signature beside a good one",
        KEYRING,
        "    for signature in envelope.signatures:\n        if signature.key in counted and not _fits(",
        "    for signature in envelope.signatures[:1]:\n        if signature.key in counted and not _fits(",
        "attacks/test_keys.py::test_one_of_two_signatures_does_not_fit",
    ),
    check(
        "too few signatures",
        KEYRING,
        "if len(counted) < quorum.threshold:",
        "attacks/test_keys.py::test_head_of_one_signature_where_two_are_needed",
    ),
)

_MESSAGES = (
    check(
        "later format",
        MESSAGES,
        "if (spoken := fields.integer(1)) != FORMAT:",
        "attacks/test_envelopes.py::test_later_format",
    ),
    check(
        "payload of another place",
        MESSAGES,
        "if found != (place.kind, place.environment, place.namespace):",
        "attacks/test_places.py::test_head_that_names_another_namespace_than_it_was_signed_for",
    ),
    Defence(
        "payload of another kind",
        MESSAGES,
        "if found != (place.kind, place.environment, place.namespace):",
        "if found[1:] != (place.environment, place.namespace):",
        "attacks/test_places.py::test_snapshot_payload_signed_as_a_head",
    ),
    Defence(
        "payload of another environment",
        MESSAGES,
        "if found != (place.kind, place.environment, place.namespace):",
        "if found[::2] != (place.kind, place.namespace):",
        "attacks/test_places.py::test_head_that_names_another_environment_than_it_was_signed_for",
    ),
    Defence(
        "payload of another namespace",
        MESSAGES,
        "if found != (place.kind, place.environment, place.namespace):",
        "if found[:2] != (place.kind, place.environment):",
        "attacks/test_places.py::test_head_that_names_another_namespace_than_it_was_signed_for",
    ),
    Defence(
        "head that expires before it is issued",
        MESSAGES,
        "fields.integer(8, issued),",
        "fields.integer(8),",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[expires before it is issued]",
    ),
    Defence(
        "provenance without end",
        MESSAGES,
        "PROVENANCE_MAX_ENTRIES, PROVENANCE_TEXT_MAX_BYTES)",
        "1 << 20, PROVENANCE_TEXT_MAX_BYTES)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[provenance without end]",
    ),
    Defence(
        "long provenance",
        MESSAGES,
        "PROVENANCE_MAX_ENTRIES, PROVENANCE_TEXT_MAX_BYTES)",
        "PROVENANCE_MAX_ENTRIES, 1 << 20)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[long provenance]",
    ),
    Defence(
        "inline delta without end",
        MESSAGES,
        "body.bytes(3, 1, INLINE_DELTA_MAX_BYTES)",
        "body.bytes(3, 1, 1 << 20)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[inline delta without end]",
    ),
    Defence(
        "digest of another length",
        MESSAGES,
        "Digest(fields.bytes(2, 32, 32))",
        "Digest(fields.bytes(2, 0, 1 << 20))",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[digest of 33 bytes]",
    ),
    Defence(
        "content without end",
        MESSAGES,
        "fields.integer(3, 1, CONTENT_MAX_BYTES)",
        "fields.integer(3, 1)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[content without end]",
    ),
    Defence(
        "parts without end, in a head",
        MESSAGES,
        "fields.integer(4, 1, PARTS_MAX)",
        "fields.integer(4, 1)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[parts without end]",
    ),
    Defence(
        "snapshot of no parts",
        MESSAGES,
        "fields.integer(4, 1, PARTS_MAX)",
        "fields.integer(4, 0, PARTS_MAX)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[no parts]",
    ),
    Defence(
        "deltas without end",
        MESSAGES,
        "fields.array(5, DELTAS_MAX)",
        "fields.array(5, 1 << 20)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[deltas without end]",
    ),
    Defence(
        "share of more than all",
        MESSAGES,
        "fields.integer(6, 0, SHARE_ALL)",
        "fields.integer(6)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[share of more than all]",
    ),
    Defence(
        "salt of no bytes or of many",
        MESSAGES,
        "fields.bytes(7, 1, 32)",
        "fields.bytes(7, 0, 1 << 20)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[salt of 33 bytes]",
    ),
    Defence(
        "labels without end",
        MESSAGES,
        "fields.texts(8, LABELS_MAX, LABEL_MAX_BYTES)",
        "fields.texts(8, 1 << 20, LABEL_MAX_BYTES)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[labels without end]",
    ),
    Defence(
        "long labels",
        MESSAGES,
        "fields.texts(8, LABELS_MAX, LABEL_MAX_BYTES)",
        "fields.texts(8, LABELS_MAX, 1 << 20)",
        "attacks/test_envelopes.py::test_field_out_of_its_bounds[long label]",
    ),
    Defence(
        "parts without end, in a part",
        MESSAGES,
        "parts = fields.integer(8, 1, PARTS_MAX)",
        "parts = fields.integer(8, 1)",
        "attacks/test_content.py::test_part_of_parts_without_end",
    ),
    Defence(
        "part beyond the last",
        MESSAGES,
        "fields.integer(7, 0, parts - 1)",
        "fields.integer(7)",
        "attacks/test_content.py::test_part_number_beyond_the_last",
    ),
)

_ROOT = (
    Defence(
        "root of endless keys",
        ROOT,
        "fields.array(9, ROOT_KEYS_MAX)",
        "fields.array(9, 1 << 20)",
        "attacks/test_roots.py::test_root_of_a_wrong_shape[keys without end]",
    ),
    check(
        "key of a root that is none",
        ROOT,
        "if len(pair) != 2 or not isinstance(pair[0], bytes) or len(pair[0]) != PUBLIC_KEY_BYTES:",
        "attacks/test_roots.py::test_root_of_a_wrong_shape[key of 31 bytes]",
    ),
    check(
        "key of a root that may not count",
        ROOT,
        "if reason := flaw(pair[0]):",
        "attacks/test_roots.py::test_head_that_nobody_signed_under_a_key_that_is_anybodys",
    ),
    check(
        "key that anybody can sign for",
        ED25519,
        "if y % PRIME in _SMALL_ORDER_Y:",
        "attacks/test_roots.py::test_root_with_a_key_that_may_not_count[small order]",
    ),
    check(
        "key with a second encoding",
        ED25519,
        "if y >= PRIME:",
        "attacks/test_roots.py::test_root_with_a_key_that_may_not_count[not canonical]",
    ),
    check(
        "key that is no point",
        ED25519,
        "if not _has_x(y):",
        "attacks/test_roots.py::test_root_with_a_key_that_may_not_count[no point]",
    ),
    check(
        "roles that are no map",
        ROOT,
        "if not isinstance(listed, Mapping):",
        "attacks/test_roots.py::test_root_of_a_wrong_shape[roles that are no map]",
    ),
    check(
        "root without a role",
        ROOT,
        "if role not in named:",
        "attacks/test_roots.py::test_root_of_a_wrong_shape[nobody publishes]",
    ),
    check(
        "role of a key that is not listed",
        ROOT,
        "if not isinstance(item, bytes) or KeyId(item) not in keys:",
        "attacks/test_roots.py::test_root_role_of_a_key_that_it_does_not_list",
    ),
    Defence(
        "threshold of nothing",
        ROOT,
        "fields.integer(1, 1, len(named))",
        "fields.integer(1, 0, len(named))",
        "attacks/test_roots.py::test_root_whose_threshold_is_nothing_or_out_of_reach",
    ),
    Defence(
        "threshold out of reach",
        ROOT,
        "fields.integer(1, 1, len(named))",
        "fields.integer(1, 1)",
        "attacks/test_roots.py::test_root_whose_threshold_is_nothing_or_out_of_reach",
    ),
    Defence(
        "root that expires before it is issued",
        ROOT,
        "fields.integer(8, issued),",
        "fields.integer(8),",
        "attacks/test_roots.py::test_root_of_a_wrong_shape[expires before it is issued]",
    ),
)

_RECORDS = (
    check(
        "record without end",
        RECORDS,
        'if len(data) > RECORD_MAX_BYTES:\n        raise TooLarge(f"record',
        "attacks/test_content.py::test_record_without_end",
    ),
    check(
        "record of another shape",
        RECORDS,
        "if len(parts) != 3:",
        "attacks/test_content.py::test_record_that_is_none[no body]",
    ),
    check(
        "records out of order",
        RECORDS,
        "if not _ascends(listed):",
        "attacks/test_content.py::test_snapshot_whose_records_do_not_ascend",
    ),
    Defence(
        "delta of another shape",
        RECORDS,
        'if items.array("delta", high=2) != 2:',
        'if items.array("delta", high=2) < 0:',
        "attacks/test_content.py::test_delta_that_is_none",
    ),
    Defence(
        "removal of another shape",
        RECORDS,
        'if items.array("delta, removed", high=2) != 2:',
        'if items.array("delta, removed", high=2) < 0:',
        "attacks/test_content.py::test_removal_that_announces_one_item",
    ),
    check(
        "delta out of order",
        RECORDS,
        "if not (_ascends(removed) and _ascends(changed)):",
        "attacks/test_content.py::test_delta_whose_records_do_not_ascend",
    ),
    Defence(
        "removals out of order",
        RECORDS,
        "if not (_ascends(removed) and _ascends(changed)):",
        "if not _ascends(changed):",
        "attacks/test_content.py::test_delta_whose_removals_do_not_ascend",
    ),
    Defence(
        "records without end",
        RECORDS,
        "items.array(what, RECORDS_MAX)",
        "items.array(what, 1 << 40)",
        "attacks/test_content.py::test_records_without_end",
    ),
    Defence(
        "removals without end",
        RECORDS,
        'items.array("delta, removed", RECORDS_MAX)',
        'items.array("delta, removed", 1 << 40)',
        "attacks/test_content.py::test_delta_of_endless_removals",
    ),
    Defence(
        "metadata without end",
        RECORDS,
        "body.text(7, METADATA_MAX_BYTES)",
        "body.text(7, 1 << 20)",
        "shared/test_records.py::test_metadata_is_bounded_on_both_sides",
    ),
    Defence(
        "percentage above a hundred",
        RECORDS,
        "body.integer(3, 0, 100)",
        "body.integer(3)",
        "attacks/test_content.py::test_record_that_is_none[percentage above a hundred]",
    ),
    Defence(
        "default that is no variant",
        RECORDS,
        "body.integer(5, 0, last)",
        "body.integer(5)",
        "attacks/test_content.py::test_record_that_is_none[default that is no variant]",
    ),
    check(
        "share of another shape",
        RECORDS,
        "if len(share) != 2:",
        "attacks/test_content.py::test_record_that_is_none[share without a bound]",
    ),
    Defence(
        "share of no variant",
        RECORDS,
        'integer(share[0], f"flag {key}, distribution", 0, last)',
        'integer(share[0], f"flag {key}, distribution")',
        "attacks/test_content.py::test_record_that_is_none[share of no variant]",
    ),
    Defence(
        "shares that go down",
        RECORDS,
        'distribution bound", below, 1000)',
        'distribution bound", 0, 1000)',
        "attacks/test_content.py::test_record_that_is_none[shares that go down]",
    ),
    check(
        "shares of less than all",
        RECORDS,
        "if shares and shares[-1].bound != 1000:",
        "attacks/test_content.py::test_record_that_is_none[shares of less than all]",
    ),
    check(
        "variant without a key",
        RECORDS,
        "if not parts:",
        "attacks/test_content.py::test_record_that_is_none[variant without a key]",
    ),
    check(
        "instant of another shape",
        RECORDS,
        'if len(pair) != 2:\n                raise Malformed(f"{what}, instant',
        "attacks/test_content.py::test_record_that_is_none[instant without nanoseconds]",
    ),
    Defence(
        "instant that is none",
        RECORDS,
        "-NUMBER_MAX), integer(pair[1], what, 0, 999_999_999)",
        "-NUMBER_MAX), integer(pair[1], what)",
        "attacks/test_content.py::test_record_that_is_none[instant of a billion nanoseconds]",
    ),
    check(
        "number that cannot be compared with",
        RECORDS,
        "if parse_float(written) is None:",
        "attacks/test_content.py::test_number_that_cannot_be_compared_with",
    ),
)

_WALLS = (
    Defence(
        "content that grows by deltas without end",
        TRUST,
        "measure(listed, namespace, held.extent)",
        "measure(listed, namespace)",
        "attacks/test_structure.py::test_content_that_grows_by_deltas_without_end",
    ),
    Defence(
        "content of too many items in its records",
        RECORDS,
        "if fault := extent.over_limit():\n            raise",
        "if (fault := extent.over_limit()) and False:\n            raise",
        "attacks/test_structure.py::test_snapshot_of_many_records_of_empty_lists",
    ),
    Defence(
        "second root of one number",
        TRUST,
        "        _require_same_root(trusted, envelope)\n",
        "        pass\n",
        "attacks/test_roots.py::test_second_root_of_one_number",
    ),
    Defence(
        "second root of one number that the root keys did not sign",
        TRUST,
        '    except Refused:\n        return\n    raise Equivocation(f"two different roots',
        '    except Refused:\n        pass\n    raise Equivocation(f"two different roots',
        "attacks/test_roots.py::test_second_root_of_one_number_that_the_root_keys_did_not_sign",
    ),
    Defence(
        "content on disk that its head does not offer",
        TRUST,
        "    _require_one_content_each(head, (*held, stored.digest))\n",
        "",
        "attacks/test_numbers.py::test_content_on_disk_that_its_head_does_not_offer",
    ),
    Defence(
        "two contents of one version in a head that is not for this device",
        TRUST,
        "for offering in _offerings(head):\n        if known",
        "for offering in (head.stable,):\n        if known",
        "attacks/test_numbers.py::test_two_contents_of_one_version_where_one_is_for_others",
    ),
    check(
        "content on disk older than its head",
        TRUST,
        "if all(held < (head.epoch, offering.version) for offering in _offerings(head)):",
        "attacks/test_numbers.py::test_content_on_disk_that_its_head_does_not_offer[older than any offer]",
    ),
    check(
        "key that stands twice in a root",
        ROOT,
        "if key.id in keys:",
        "attacks/test_roots.py::test_root_that_names_a_key_twice[a key twice]",
    ),
    check(
        "key id that stands twice in a role",
        ROOT,
        "if KeyId(item) in named:",
        "attacks/test_roots.py::test_root_that_names_a_key_twice[a key id twice in a role]",
    ),
    check(
        "head before the answer for the next root",
        SYNC,
        "if isinstance(address, HeadAddress) and self._awaits_root():",
        "attacks/test_roots.py::test_head_waits_for_the_answer_about_the_next_root",
    ),
    check(
        "heads that wait without end",
        SYNC_SUBSCRIPTIONS,
        "if len(self.early) == EARLY_HEADS_MAX or kept + len(message.payload) > EARLY_HEADS_MAX_BYTES:",
        "attacks/test_roots.py::test_heads_that_wait_without_end",
    ),
)

_TOPICS = (
    check(
        "topic of another environment or format",
        TOPICS,
        'if not topic.startswith(self.base + "/"):',
        "attacks/test_places.py::test_topics_of_another_environment_or_format",
    ),
    check(
        "second spelling of a topic",
        TOPICS,
        'if not (text.isascii() and text.isdigit()) or (len(text) > 1 and text[0] == "0") or len(text) > 19:',
        "attacks/test_places.py::test_topics_of_another_environment_or_format",
    ),
    check(
        "topic of a number beyond 63 bits",
        TOPICS,
        "if number > NUMBER_MAX:",
        "attacks/test_places.py::test_topics_of_another_environment_or_format",
    ),
)

_TRUST_ROOTS = (
    check(
        "older root",
        TRUST,
        "if number <= trusted.root.number:",
        "attacks/test_roots.py::test_older_root_at_its_own_place",
    ),
    check(
        "roots without end",
        TRUST,
        "if number > ROOTS_MAX:",
        "attacks/test_roots.py::test_root_of_a_number_beyond_all_bounds",
    ),
    check(
        "root by a stranger, by name",
        TRUST,
        "if not signers & trusted.root.roles[Role.ROOT].keys:",
        "attacks/test_roots.py::test_root_signed_by_a_stranger",
    ),
    check(
        "root by a publisher, by name",
        TRUST,
        "if signers & trusted.root.keys.keys():",
        "attacks/test_roots.py::test_root_signed_by_a_publisher",
    ),
    Defence(
        "root that the last one did not sign",
        TRUST,
        "    verify(envelope, trusted.root, Role.ROOT, also_known=signers - trusted.root.roles[Role.ROOT].keys)\n",
        "",
        "attacks/test_roots.py::test_root_signed_by_too_few_of_the_old_keys",
    ),
    check(
        "root at the place of another",
        TRUST,
        "if root.number != number:",
        "attacks/test_roots.py::test_older_root_at_the_place_of_the_next",
    ),
    check(
        "root that was skipped",
        TRUST,
        "if number != trusted.root.number + 1:",
        "attacks/test_roots.py::test_root_is_skipped",
    ),
    Defence(
        "root that its own keys did not sign",
        TRUST,
        "    verify(envelope, root, Role.ROOT, also_known=(signers & trusted.root.roles[Role.ROOT].keys) - own)\n",
        "",
        "attacks/test_roots.py::test_root_signed_by_the_old_keys_alone",
    ),
    Defence(
        "root cosigned by a stranger",
        TRUST,
        "also_known=(signers & trusted.root.roles[Role.ROOT].keys) - own)",
        "also_known=signers - own)",
        "attacks/test_roots.py::test_root_cosigned_by_a_stranger",
    ),
    check(
        "epoch that does not fit the keys",
        TRUST,
        "if new.epoch != expected:",
        "attacks/test_roots.py::test_root_changes_publisher_keys_within_an_epoch",
    ),
    Defence(
        "epoch without new keys",
        TRUST,
        "expected = old.epoch if same_keys else old.epoch + 1",
        "expected = new.epoch if same_keys else old.epoch + 1",
        "attacks/test_roots.py::test_root_starts_an_epoch_without_new_publisher_keys",
    ),
    Defence(
        "new keys without an epoch",
        TRUST,
        "expected = old.epoch if same_keys else old.epoch + 1",
        "expected = old.epoch if same_keys else new.epoch",
        "attacks/test_roots.py::test_root_changes_publisher_keys_within_an_epoch",
    ),
    Defence(
        "head of a key that is revoked before its content arrives",
        TRUST,
        "floor=floor, pending={})",
        "floor=floor)",
        "attacks/test_roots.py::test_head_by_a_key_that_is_revoked_before_its_content_arrives",
    ),
    Defence(
        "time that a root has told",
        TRUST,
        "max(trusted.floor, root.issued)",
        "trusted.floor",
        "attacks/test_roots.py::test_clock_behind_the_last_root_is_found_out_also_after_a_restart",
    ),
    Defence(
        "time of a stolen key, after its epoch",
        TRUST,
        "root.issued if root.epoch > trusted.root.epoch else max(trusted.floor, root.issued)",
        "max(trusted.floor, root.issued)",
        "attacks/test_numbers.py::test_a_new_epoch_recovers_from_the_end_of_time",
    ),
    Defence(
        "time of a stolen key, in a head of a former epoch on disk",
        TRUST,
        " if head.epoch == trusted.root.epoch else trusted.floor",
        "",
        "attacks/test_numbers.py::test_a_new_epoch_recovers_from_the_end_of_time",
    ),
    Defence(
        "time of a stolen key, under a later anchor",
        TRUST,
        "return max(floor, root.issued) if root.epoch in epochs else root.issued",
        "return max(floor, root.issued)",
        "device_agent/test_timefloor.py::test_a_later_anchor_of_a_later_epoch_takes_the_time_of_a_stolen_key_back",
    ),
    Defence(
        "anchor that nobody signed",
        TRUST,
        "    verify(\n        envelope, root, Role.ROOT, "
        "also_known=frozenset(signature.key for signature in envelope.signatures)\n    )\n",
        "",
        "attacks/test_roots.py::test_anchor_that_was_damaged",
    ),
    Defence(
        "time that the anchor has told",
        TRUST,
        "max(floor, root.issued))",
        "floor)",
        "attacks/test_roots.py::test_clock_behind_the_anchor_is_found_out",
    ),
)

_TRUST_HEADS = (
    Defence(
        "head that nobody signed",
        TRUST,
        "payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)\n    head",
        "payload = open_envelope(data, place).payload\n    head",
        "attacks/test_keys.py::test_head_signed_by_a_stranger",
    ),
    Defence(
        "head that is read before it is verified",
        TRUST,
        "payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)\n    head = decode_head(payload, place)",
        "envelope = open_envelope(data, place)\n    head = decode_head(envelope.payload, place)\n"
        "    payload = verify(envelope, trusted.root, Role.PUBLISHER)",
        "attacks/test_envelopes.py::test_bytes_that_nobody_signed_are_not_read[head]",
    ),
    check(
        "head of another epoch",
        TRUST,
        "if head.epoch != trusted.root.epoch:",
        "attacks/test_numbers.py::test_head_of_an_epoch_that_no_root_started",
    ),
    check(
        "older head",
        TRUST,
        "if (head.epoch, head.sequence) < number:",
        "attacks/test_numbers.py::test_older_release_is_offered",
    ),
    check(
        "older head than the one held",
        TRUST,
        "if held is not None:\n        known.append(",
        "attacks/test_numbers.py::test_broker_restored_from_an_old_save",
    ),
    check(
        "older head than the one awaited",
        TRUST,
        "if pending is not None:\n        known.append(",
        "attacks/test_numbers.py::test_head_older_than_one_whose_content_is_still_awaited",
    ),
    check(
        "two heads of one number",
        TRUST,
        "if (head.epoch, head.sequence) == number and digest != known_digest:",
        "attacks/test_numbers.py::test_two_heads_of_one_number",
    ),
    Defence(
        "fast-forwarded head that outlives its epoch",
        TRUST,
        "if (head.epoch, head.sequence) < number:",
        "if head.sequence < number[1]:",
        "attacks/test_numbers.py::test_a_new_epoch_recovers_from_a_fast_forward",
    ),
    Defence(
        "fast-forwarded version that outlives its epoch",
        TRUST,
        "offered = (fresh.head.epoch, fresh.offering.version)",
        "offered = (held.epoch, fresh.offering.version)",
        "attacks/test_numbers.py::test_a_new_epoch_recovers_from_a_fast_forward",
    ),
    check(
        "head that is repeated without end",
        TRUST,
        "if held is not None and held.head_digest == digest:",
        "attacks/test_numbers.py::test_the_same_head_in_another_envelope_is_no_news",
    ),
    check(
        "alarm about the head held once its key was revoked",
        TRUST,
        "if held is not None and held.head_data == data:",
        "attacks/test_roots.py::test_head_held_is_no_refusal_after_its_key_was_revoked",
    ),
    check(
        "clock that is behind",
        TRUST,
        "if now < trusted.floor:",
        "attacks/test_numbers.py::test_clock_ten_years_behind_warns_and_admits",
    ),
    check(
        "root that has expired",
        TRUST,
        "if now >= trusted.root.expires:",
        "attacks/test_roots.py::test_expired_root_admits_no_more_heads",
    ),
    check(
        "head that has expired",
        TRUST,
        "if now >= head.expires:",
        "attacks/test_numbers.py::test_frozen_broker_offers_an_expired_head",
    ),
    check(
        "older version under a newer head",
        TRUST,
        "if offered < (held.epoch, held.version):",
        "attacks/test_numbers.py::test_newer_head_with_an_older_version_takes_nobody_back",
    ),
    check(
        "two contents of one version",
        TRUST,
        "if known.setdefault((head.epoch, offering.version), offering.digest) != offering.digest:",
        "attacks/test_numbers.py::test_two_contents_of_one_version",
    ),
    Defence(
        "inline delta for another version",
        TRUST,
        "return inline is not None and inline.version == offering.version and inline.from_version == held.version",
        "return inline is not None and inline.from_version == held.version",
        "attacks/test_content.py::test_inline_delta_to_another_version_is_passed_over",
    ),
    Defence(
        "inline delta from another version",
        TRUST,
        "return inline is not None and inline.version == offering.version and inline.from_version == held.version",
        "return inline is not None and inline.version == offering.version",
        "attacks/test_content.py::test_inline_delta_for_another_version_is_passed_over",
    ),
    Defence(
        "inline delta that keeps the snapshot away",
        TRUST,
        "            refused = error  #",
        "            raise  #",
        "attacks/test_content.py::test_inline_delta_with_a_wrong_result",
    ),
    Defence(
        "time that a head has told",
        TRUST,
        "floor = max(trusted.floor, head.issued) if head.epoch == trusted.root.epoch else trusted.floor",
        "floor = trusted.floor",
        "attacks/test_numbers.py::test_time_believed_survives_a_restart",
    ),
    check(
        "candidate for other labels",
        TRUST,
        "if any(device.labels.get(name) != value for name, value in candidate.labels.items()):",
        "attacks/test_content.py::test_candidate_for_other_labels_is_not_fetched",
    ),
    Defence(
        "candidate for other devices",
        TRUST,
        "if candidate_bucket(candidate.salt, device.id) < candidate.share:",
        "if True:",
        "attacks/test_content.py::test_candidate_for_other_devices_is_not_fetched",
    ),
)

_TRUST_CONTENT = (
    check(
        "snapshot that nobody asked for",
        TRUST,
        "if pending is None or pending.offering.version != address.version:",
        "attacks/test_places.py::test_snapshot_that_nobody_asked_for",
    ),
    Defence(
        "part that nobody signed",
        TRUST,
        "payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)\n    part",
        "payload = open_envelope(data, place).payload\n    part",
        "attacks/test_keys.py::test_snapshot_part_signed_by_a_stranger",
    ),
    Defence(
        "part that is read before it is verified",
        TRUST,
        "payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)\n    part = decode_part(payload, place)",
        "envelope = open_envelope(data, place)\n    part = decode_part(envelope.payload, place)\n"
        "    verify(envelope, trusted.root, Role.PUBLISHER)",
        "attacks/test_envelopes.py::test_bytes_that_nobody_signed_are_not_read[snapshot]",
    ),
    check(
        "part at the place of another",
        TRUST,
        "if (part.version, part.part) != (address.version, address.part):",
        "attacks/test_places.py::test_part_at_the_place_of_another_part",
    ),
    Defence(
        "part of another version",
        TRUST,
        "if (part.version, part.part) != (address.version, address.part):",
        "if part.part != address.part:",
        "attacks/test_places.py::test_older_snapshot_at_the_place_of_the_new_one",
    ),
    Defence(
        "part of another epoch",
        TRUST,
        "if part.epoch != pending.head.epoch or part.parts != pending.offering.parts:",
        "if part.parts != pending.offering.parts:",
        "attacks/test_content.py::test_part_of_another_epoch",
    ),
    Defence(
        "part of another count",
        TRUST,
        "if part.epoch != pending.head.epoch or part.parts != pending.offering.parts:",
        "if part.epoch != pending.head.epoch:",
        "attacks/test_content.py::test_part_of_another_count",
    ),
    check(
        "two parts of one number",
        TRUST,
        "if known != part.body:",
        "attacks/test_content.py::test_two_parts_of_one_number",
    ),
    check(
        "more bytes than the head announced",
        TRUST,
        "if size > pending.offering.size:",
        "attacks/test_content.py::test_more_bytes_than_the_head_announced",
    ),
    check(
        "half the parts for the whole",
        TRUST,
        "if len(parts) < pending.offering.parts:",
        "attacks/test_content.py::test_half_the_parts_are_no_content",
    ),
    Defence(
        "parts put together as they came",
        TRUST,
        "for _, body in sorted(pending.parts.items()))",
        "for body in pending.parts.values())",
        "attacks/test_content.py::test_parts_out_of_order",
    ),
    Defence(
        "snapshot that inflates without end",
        TRUST,
        'inflated(bodies, CONTENT_MAX_BYTES, f"{namespace}, snapshot")',
        'inflated(bodies, 1 << 40, f"{namespace}, snapshot")',
        "attacks/test_envelopes.py::test_compression_bomb_of_the_announced_size",
    ),
    check(
        "snapshot of another content",
        TRUST,
        "if digest_of_ascending(ascending) != pending.offering.digest:\n        raise DigestMismatch(\n"
        '            f"{namespace}: the snapshot',
        "attacks/test_content.py::test_snapshot_of_another_content",
    ),
    check(
        "two records of one key",
        TRUST,
        "if identity in digests:\n            raise Malformed(",
        "attacks/test_content.py::test_snapshot_with_two_records_of_one_key",
    ),
    check(
        "delta that nobody asked for",
        TRUST,
        "if pending is None or held is None or pending.offering.version != address.version:",
        "attacks/test_places.py::test_snapshot_that_nobody_asked_for",
    ),
    Defence(
        "delta that nobody signed",
        TRUST,
        "payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)\n    delta",
        "payload = open_envelope(data, place).payload\n    delta",
        "attacks/test_keys.py::test_delta_signed_by_a_stranger",
    ),
    Defence(
        "delta that is read before it is verified",
        TRUST,
        "payload = verify(open_envelope(data, place), trusted.root, Role.PUBLISHER)\n"
        "    delta = decode_delta_message(payload, place)",
        "envelope = open_envelope(data, place)\n    delta = decode_delta_message(envelope.payload, place)\n"
        "    verify(envelope, trusted.root, Role.PUBLISHER)",
        "attacks/test_envelopes.py::test_bytes_that_nobody_signed_are_not_read[delta]",
    ),
    Defence(
        "delta to another version",
        TRUST,
        "if (delta.version, delta.from_version) != (address.version, address.from_version):",
        "if delta.from_version != address.from_version:",
        "attacks/test_places.py::test_delta_at_the_place_of_another_delta",
    ),
    Defence(
        "delta from another version than its topic says",
        TRUST,
        "if (delta.version, delta.from_version) != (address.version, address.from_version):",
        "if delta.version != address.version:",
        "attacks/test_content.py::test_delta_from_another_version_than_its_topic_says",
    ),
    check(
        "delta of another epoch",
        TRUST,
        "if delta.epoch != pending.head.epoch:",
        "attacks/test_content.py::test_delta_of_another_epoch",
    ),
    check(
        "delta from a version that is not held",
        TRUST,
        "if delta.from_version != held.version:",
        "attacks/test_content.py::test_delta_from_a_version_that_is_not_held",
    ),
    Defence(
        "delta that inflates without end",
        TRUST,
        'inflated([body], CONTENT_MAX_BYTES, f"{namespace}, delta")',
        'inflated([body], 1 << 40, f"{namespace}, delta")',
        "attacks/test_envelopes.py::test_compression_bomb_in_a_delta",
    ),
    check(
        "delta that removes what is not held",
        TRUST,
        "if identity not in held.records:",
        "attacks/test_content.py::test_delta_that_removes_what_is_not_held",
    ),
    check(
        "delta that names a record twice",
        TRUST,
        "if len(touched) != len(removed) + len(changed):",
        "attacks/test_content.py::test_delta_that_changes_a_record_twice",
    ),
    check(
        "delta with a wrong result",
        TRUST,
        "if digest_of_ascending(ascending) != pending.offering.digest:\n        raise DigestMismatch(\n"
        '            f"{namespace}: the delta',
        "attacks/test_content.py::test_delta_with_a_wrong_result",
    ),
    check(
        "records on disk that were not admitted",
        TRUST,
        "if len(digests) != len(records) or digest_of_ascending(ascending) != stored.digest:",
        "device_agent/test_store.py::test_content_that_was_changed_is_not_believed",
    ),
    Defence(
        "record that stands twice on disk",
        TRUST,
        "if len(digests) != len(records) or digest_of_ascending(ascending) != stored.digest:",
        "if digest_of_ascending(ascending) != stored.digest:",
        "device_agent/test_store.py::test_content_that_was_changed_is_not_believed",
    ),
)

_SYNC = (
    Defence(
        "answers from what is not on disk",
        SYNC,
        "return [self.persistence.propose(trusted, outcome, floor)]",
        "return [Activate(outcome), self.persistence.propose(trusted, outcome, floor)]",
        "device_agent/test_sync.py::test_nothing_is_active_that_is_not_on_disk",
    ),
    Defence(
        "belief in what is not on disk",
        SYNC,
        "                return [self.persistence.propose(trusted, outcome, floor)]",
        "                self.trusted = trusted\n                return [self.persistence.propose(trusted, outcome, floor)]",
        "device_agent/test_sync.py::test_full_disk_leaves_the_old_answers_and_is_tried_again",
    ),
    Defence(
        "belief in a root that is not on disk",
        SYNC,
        "return [self.persistence.propose_root(",
        "self.trusted = trusted\n                return [self.persistence.propose_root(",
        "attacks/test_roots.py::test_roots_walked_are_persisted_one_by_one",
    ),
    check(
        "message of a connection that is over",
        SYNC,
        "if not self.connection.is_connected:\n            return []\n        topic, payload",
        "attacks/test_places.py::test_message_of_a_connection_that_is_over",
    ),
    Defence(
        "namespace that is not followed",
        SYNC,
        "return namespace in self.namespaces",
        "return True",
        "attacks/test_places.py::test_namespace_that_is_not_followed",
    ),
    Defence(
        "heads that are judged before the last root",
        SYNC_SUBSCRIPTIONS,
        "        self.is_walking = True\n",
        "",
        "attacks/test_roots.py::test_head_by_a_key_that_only_a_root_on_the_way_lists",
    ),
    Defence(
        "broker that lies all the time",
        SYNC_REPORTING,
        " or self._told_count >= REJECTIONS_TOLD_MAX:",
        ":",
        "device_agent/test_sync_current.py::test_a_broker_that_lies_all_the_time_does_not_make_its_devices_write_all_the_time",
    ),
    Defence(
        "one lie over and over",
        SYNC_REPORTING,
        "if self._told == (error.attack, topic) or ",
        "if ",
        "device_agent/test_sync.py::test_what_is_refused_over_and_over_is_reported_once",
    ),
    Defence(
        "bad delta that keeps the snapshot away",
        SYNC,
        "effects += self.fetches.fall_back(namespace, monotonic)",
        "pass",
        "attacks/test_content.py::test_delta_with_a_wrong_result",
    ),
    Defence(
        "stranger who has collected parts thrown away",
        SYNC,
        "case SnapshotAddress(namespace) if not isinstance(error, Unauthentic | Misplaced):",
        "case SnapshotAddress(namespace):",
        "attacks/test_content.py::test_strangers_cannot_throw_collected_parts_away",
    ),
    check(
        "foreign part that is kept for ever",
        SYNC,
        "if forgets_parts:",
        "attacks/test_content.py::test_parts_of_two_contents_of_one_version",
    ),
    Defence(
        "garbage after a head that takes it back",
        SYNC_SUBSCRIPTIONS,
        'if not trouble or self._arrived.get(namespace) != "":',
        "if True:",
        "device_agent/test_sync_current.py::test_one_namespace_of_two_is_not_enough",
    ),
    Defence(
        "refusals that are not reported",
        SYNC,
        "return [line, self._report(now)] if is_reported else [line]",
        "return [line]",
        "attacks/test_numbers.py::test_rejections_name_namespace_and_time",
    ),
    Defence(
        "callers who make the agent connect without end",
        SYNC_LINK,
        "soonest = (self._attempted_at or 0.0) + RECONNECT_MIN_SECONDS",
        "soonest = 0.0",
        "device_agent/test_sync_current.py::test_whoever_asks_and_however_often_there_is_one_attempt_a_second",
    ),
    Defence(
        "missing head that is asked for without end",
        SYNC_SUBSCRIPTIONS,
        "self._refresh_at = monotonic + REFRESH_INTERVAL_SECONDS",
        "pass",
        "device_agent/test_sync_current.py::test_one_connection_asks_only_so_often",
    ),
)

_STORE = (
    Defence(
        "half an update on disk",
        STORE_WRITER,
        "            with database.atomic():\n                if update.is_complete:",
        "            if True:\n                if update.is_complete:",
        "device_agent/test_store.py::test_nobody_sees_half_an_update",
    ),
    Defence(
        "half a root on disk",
        STORE_WRITER,
        '                database.table("trust").upsert_all(rows, pk="name")',
        '                pass\n            for row in rows:\n                database.table("trust").upsert(row, pk="name")',
        "device_agent/test_store.py::test_a_root_is_one_transaction",
    ),
    Defence(
        "commit that a power cut takes back",
        STORE_WRITER,
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=NORMAL",
        "device_agent/test_store.py::test_write_ahead_log_with_full_synchronisation",
    ),
    Defence(
        "commit without a log",
        STORE_WRITER,
        '            self._connection.execute("PRAGMA journal_mode=WAL")\n',
        "",
        "device_agent/test_store.py::test_write_ahead_log_with_full_synchronisation",
    ),
    Defence(
        "time that is forgotten, after an update",
        STORE_WRITER,
        '                database.table("trust").upsert_all(floor_rows(floor), pk="name")\n',
        "",
        "attacks/test_numbers.py::test_time_believed_survives_a_publisher_whose_clock_went_back",
    ),
    Defence(
        "time that is forgotten, after a root",
        STORE_WRITER,
        'rows = [trust_row("root", admitted.data), *floor_rows(floor)]',
        'rows = [trust_row("root", admitted.data)]',
        "attacks/test_roots.py::test_clock_behind_the_last_root_is_found_out_also_after_a_restart",
    ),
    Defence(
        "records of a former content on disk",
        STORE_WRITER,
        "                if update.is_complete:\n",
        "                if False:\n",
        "device_agent/test_store.py::test_a_complete_content_leaves_nothing_of_a_former_one",
    ),
    Defence(
        "removed records on disk",
        STORE_WRITER,
        "for identity in update.removed],",
        "for identity in ()],",
        "device_agent/test_store.py::test_removed_records_leave_the_disk",
    ),
    check(
        "row that a worn flash changed",
        STORE_CODECS,
        "if seal_of(*values) != seal:",
        "device_agent/test_store.py::test_content_that_was_changed_is_not_believed",
    ),
    check(
        "row that a worn flash changed, for a reader",
        STORE_CODECS,
        "if seal_of(name, head, epoch, version, digest) != seal:",
        "device_agent/test_store.py::test_content_that_was_changed_is_not_read_by_others",
    ),
    check(
        "profile that a worn flash changed",
        STORE_READER,
        "if any(value is not None and seal_of(name, value) != seal for name, value, seal in sealed):",
        "device_agent/test_store.py::test_content_that_was_changed_is_not_read_by_others",
    ),
    check(
        "file that was cut off",
        STORE_FILES,
        "if size < _HEADER_BYTES and (size or log):",
        "device_agent/test_store.py::test_truncated_file",
    ),
    check(
        "database of a later release",
        STORE_WRITER,
        "if found > SCHEMA_VERSION:",
        "device_agent/test_store.py::test_database_of_a_later_release",
    ),
    check(
        "database of a later release, for a reader",
        STORE_FILES,
        "if schema > SCHEMA_VERSION:",
        "device_agent/test_store.py::test_database_of_a_later_release",
    ),
    Defence(
        "second agent on the database",
        STORE_FILES,
        "        ) from error\n    try:\n        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        ) from error\n    try:\n        pass",
        "device_agent/test_store.py::test_second_agent_on_one_database_is_refused",
    ),
    Defence(
        "second agent on a disk that takes no writes",
        STORE_FILES,
        "        return None\n    try:\n        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        return None\n    try:\n        pass",
        "device_agent/test_store.py::test_second_agent_on_a_disk_that_takes_no_writes_is_refused",
    ),
    check(
        "log without its index",
        STORE_FILES,
        'if not is_live and side_file_bytes(path, "-wal"):',
        "device_agent/test_client.py::test_a_log_that_has_lost_its_index_cannot_be_read",
    ),
)

_BOOT = (
    Defence(
        "broker that sends faster than is verified",
        FOLLOWER,
        "threading.BoundedSemaphore(QUEUE_MAX_MESSAGES)",
        "threading.BoundedSemaphore(1 << 30)",
        "device_agent/test_follower_bounds.py::test_a_broker_that_sends_faster_than_is_verified_waits",
    ),
    Defence(
        "root on disk that is older than the anchor",
        BOOT,
        "trusted = later if later.root.number >= trusted.root.number else trusted",
        "trusted = later",
        "device_agent/test_boot.py::test_a_root_on_disk_that_is_older_than_the_anchor_is_not_gone_back_to",
    ),
    Defence(
        "namespace on disk that is not followed any more",
        BOOT,
        "if stored.namespace not in settings.namespaces:",
        "if False:",
        "device_agent/test_boot.py::test_a_namespace_that_is_not_followed_any_more_is_not_answered_from",
    ),
)

_MQTT = (
    Defence(
        "message without end, at the broker",
        MQTT,
        "        properties.MaximumPacketSize = MESSAGE_MAX_BYTES + _TOPIC_ROOM_BYTES\n",
        "",
        "brokers/test_attacks.py::test_endless_message_is_kept_back_by_the_broker",
    ),
    check(
        "packet without end",
        MQTT,
        "if bufsize > MESSAGE_MAX_BYTES + _TOPIC_ROOM_BYTES:",
        "brokers/test_link.py::test_what_no_broker_of_ours_sends_ends_the_connection_and_not_the_agent[huge]",
    ),
    check(
        "answer without end",
        MQTT,
        'if bufsize > ANSWER_MAX_BYTES and kind_of(self._in_packet["command"]) != PUBLISH:',
        "brokers/test_properties.py::test_answers_without_end_end_the_connection_and_not_the_agent[SUBACK]",
    ),
    check(
        "properties without end",
        MQTT,
        "if self._protocol == MQTTv5:",
        "brokers/test_properties.py::"
        "test_properties_and_answers_that_nobody_reads_cost_no_time[PUBLISH of 52,000 empty user properties]",
    ),
    check(
        "CONNACKs without end",
        MQTT,
        'if kind_of(self._in_packet["command"]) == CONNACK and self.is_connected():',
        "brokers/test_properties.py::test_answers_without_end_end_the_connection_and_not_the_agent[a second CONNACK]",
    ),
    check(
        "message of QoS 2",
        MQTT,
        'if self._in_packet["command"] & _QOS_2:',
        "brokers/test_link.py::test_what_no_broker_of_ours_sends_ends_the_connection_and_not_the_agent[qos-2]",
    ),
    Defence(
        "bytes that are not MQTT",
        MQTT,
        'self._say(self._ended(f"the broker sent what is not MQTT: {error}"))\n            return',
        "raise",
        "brokers/test_link.py::test_what_no_broker_of_ours_sends_ends_the_connection_and_not_the_agent[topic]",
    ),
    check(
        "WebSocket frame without end",
        MQTT,
        "if self._readbuffer_head + length > _FRAME_MAX_BYTES:",
        "brokers/test_transport_security.py::test_a_frame_without_end_ends_the_connection_before_it_takes_memory",
    ),
    check(
        "WebSocket header without end",
        MQTT,
        "if len(self._received) >= _UPGRADE_MAX_BYTES or clock.monotonic() > self._ends:",
        "brokers/test_transport_security.py::test_what_is_no_websocket_is_named[header without end]",
    ),
    Defence(
        "broker of another name",
        MQTT,
        "        context = ssl.create_default_context(cafile=config.ca_file)\n",
        "        context = ssl.create_default_context(cafile=config.ca_file)\n        context.check_hostname = False\n",
        "brokers/test_transport_security.py::"
        "test_what_is_wrong_is_one_line_that_says_what_to_do_and_answers_go_on[another host name]",
    ),
    Defence(
        "broker of another authority",
        MQTT,
        "        context = ssl.create_default_context(cafile=config.ca_file)\n",
        "        context = ssl.create_default_context(cafile=config.ca_file)\n        context.check_hostname = False\n"
        "        context.verify_mode = ssl.CERT_NONE\n",
        "brokers/test_transport_security.py::"
        "test_what_is_wrong_is_one_line_that_says_what_to_do_and_answers_go_on[stranger's authority]",
    ),
    Defence(
        "news of an attempt that was given up",
        MQTT,
        "if self._session is not None and attempt == self.attempt else None",
        "if self._session is not None else None",
        "device_agent/test_follower_bounds.py::test_news_of_an_attempt_that_was_given_up_is_no_news",
    ),
)

DEFENCES = (
    *_CODEC,
    *_ENVELOPE,
    *_KEYRING,
    *_MESSAGES,
    *_ROOT,
    *_RECORDS,
    *_WALLS,
    *_TOPICS,
    *_TRUST_ROOTS,
    *_TRUST_HEADS,
    *_TRUST_CONTENT,
    *_SYNC,
    *_STORE,
    *_BOOT,
    *_MQTT,
)
"""All of them, in the order of the way."""
