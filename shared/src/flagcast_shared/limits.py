"""Every size limit, each with its reason. Sizes are bytes, spans are seconds.

A limit protects the side that reads: it holds before memory is spent on what a peer announced.
"""

MESSAGE_LIMIT_BYTES = 60_000
"""What one MQTT message carries unless configured: Azure IoT keeps 64 KB retained messages, AWS carries 128 KB."""

MESSAGE_LIMIT_MIN_BYTES = 4_096
"""Below this a head with an inline delta would not fit."""

MESSAGE_MAX_BYTES = 262_144
"""The largest message an agent reads at all: the largest limit a publisher may configure (256 KB)."""

INLINE_DELTA_MAX_BYTES = 4_096
"""A delta up to this size travels inside the head; a larger one would make every no-news reconnect dear."""

CONTENT_MAX_BYTES = 32 * 1024 * 1024
"""The inflated records of one namespace: 10,000 rich flags are about 5 MB; a device with 64 MB survives this."""

PARTS_MAX = 1_024
"""Parts of one snapshot: 32 MB of incompressible content at the smallest useful message size."""

RECORDS_MAX = 100_000
"""Flags and segments of one namespace."""

RECORD_MAX_BYTES = 262_144
"""One flag or segment with all its attachments."""

DEPTH_MAX = 12
"""Nesting of any CBOR of ours; the deepest message nests seven levels."""

ITEMS_MAX = 65_536
"""CBOR items of one message or record, each key and each value of a map counted: what is decoded at once takes some 5 MB."""

CONTENT_ITEMS_MAX = 2_000_000
"""CBOR items of all records of one namespace: 10,000 flags have 250,000. Without it, a few kilobytes of compressed empty lists
are gigabytes of objects."""

WINDOW_BITS = 12
"""The window of a compressed body, 4 KiB: a reader needs 28 KB less than for zlib's own 32 KiB, and `python benchmarks/wire.py`
measures what that costs: nothing at 10 and 10,000 flags, a tenth at 1,000."""

KEY_MAX_BYTES = 256
"""A flag, segment or variant key; keys stand in logs, reports and metrics."""

TEXT_MAX_BYTES = 65_536
"""Any single text: an attachment, a constraint value, an entry of a list."""

METADATA_MAX_BYTES = 4_096
"""A flag's metadata as JSON text: an owner, a ticket, a date; it is in the answer of every call that asks for the flag."""

PROVENANCE_MAX_ENTRIES = 8
"""Where a release came from; it is in every head, so it stays small."""

PROVENANCE_TEXT_MAX_CHARACTERS = 128
"""One word of provenance, or of a label, as a publisher takes it; a git commit is 40 or 64 characters."""

PROVENANCE_TEXT_MAX_BYTES = 4 * PROVENANCE_TEXT_MAX_CHARACTERS
"""The same as a reader takes it: in UTF-8, a character has at most four bytes."""

LABELS_MAX = 16
"""Labels that a candidate asks for, and labels that a device carries."""

LABEL_MAX_BYTES = PROVENANCE_TEXT_MAX_BYTES
"""The name or value of a label that a candidate asks for; it is in every head of a staged rollout."""

ROOTS_MAX = 1_024
"""Roots walked from an anchor to the root in force: one a week for twenty years."""

ROOT_KEYS_MAX = 32
"""Keys of one root; each is verified on the smallest device."""

ROOT_MAX_BYTES = 16_384
"""A root of the most keys and signatures is about 6 KB."""

DELTAS_MAX = 64
"""Versions from which a head may offer a delta."""

REPORT_MAX_BYTES = 2_048
"""A device's report; thousands of devices write one each into the broker's retained store."""
REPORT_DIGEST_BYTES = 8
"""The part of a content's digest in a report: enough to tell two contents apart, and no proof of either."""

WORD_MAX_CHARACTERS = 64
"""An attack's word, a reason or an agent's release in what devices report; the longest of ours has 18 characters."""

REFRESH_NAMESPACES_MAX = 16
"""Namespaces that a device names when it asks for heads; a publisher that hears one publishes everything that is missing."""

USAGE_MAX_BYTES = 16_384
"""One batch of evaluation counts: some 300 flags. A device keeps many of them while it is offline, and sends one at a time."""

USAGE_COUNTS_MAX = 4_096
"""Counts of one batch: more than fit into its bytes, so that a reader's list is bounded too."""

USAGE_COUNT_MAX = 10**12
"""One count: a device that answers a million times a second for a week. Sums of many stay within 63 bits."""

USAGE_BATCH_ID_BYTES = 16
"""Drawn by chance: two batches of a fleet never have the same."""

NUMBER_MAX = 2**63 - 1
"""Versions, sequences and epochs stay within what SQLite and every language keep as a signed integer."""
