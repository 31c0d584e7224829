"""Every error of Flagcast. The first fork is whose fault it is.

FlagcastError
├── Refused                   the peer's: received bytes that are not believed. Nothing changed.
│   ├── Malformed             not in the format at all
│   │   ├── NotDeterministic      a second spelling of the same data (RFC 8949, 4.2.1)
│   │   ├── TrailingBytes         bytes after the end of the message
│   │   ├── TooDeep               nested deeper than any message of ours
│   │   ├── TooLarge              over a size limit
│   │   ├── CompressionBomb       inflates beyond what it announced or the limit
│   │   ├── EmptyPayload          a cleared retained topic, which never means "no flags"
│   │   └── UnknownFormat         a format version this agent does not speak
│   ├── Unauthentic           nobody we trust said this
│   │   ├── HeaderNotAllowed      a COSE header outside the profile: another algorithm, critical, misplaced
│   │   ├── UnknownKey            signed by a key no root names
│   │   ├── WrongRole             signed by a key that has no say in this kind of message
│   │   ├── BadSignature          the signature does not fit the bytes
│   │   ├── KeyCountedTwice       one key signed more than once to reach a threshold
│   │   └── ThresholdNotMet       too few distinct keys signed
│   ├── Misplaced             true somewhere else
│   │   └── Replayed              made for another environment, namespace, kind, version or part
│   ├── Outdated              true once
│   │   ├── Rollback              older than what was admitted
│   │   ├── Freeze                past its expiry
│   │   └── EpochMismatch         of another epoch than the root in force
│   └── Inconsistent          says two things
│       ├── Equivocation          the same number with another content
│       ├── MixedVersions         parts of different snapshots
│       ├── DeltaMismatch         a delta from a version not held
│       ├── DigestMismatch        the content is not the one that the head names
│       └── RootSkipped           a root that is not exactly one above the last
├── InvalidInput              the operator's: a file, a flag, a configuration. Says where and what is allowed.
│   ├── InvalidIdentifier         a key, name or id outside its alphabet or length
│   ├── InvalidConfiguration      a configuration value
│   └── InvalidDocument           a flags file
└── InvalidCall               the application's: a question that cannot be answered
    ├── FlagNotFound
    ├── NamespaceNotFound
    ├── TypeMismatch
    ├── FlagNotUsable
    ├── InvalidContext        a context, or the entity in it, of another type than a context has
    └── CallTooLarge          a context, an entity id or a batch over a limit

A leaf's `attack` is the word that logs, reports and metrics use for it.
"""

from typing import ClassVar

from .printing import printable


class FlagcastError(Exception):
    """Base of every error that Flagcast raises on purpose.

    Its text is one line that prints, whatever it repeats of a stranger's.
    """

    def __str__(self) -> str:
        """The message in characters that print."""
        return printable(super().__str__())


class Refused(FlagcastError):
    """Received bytes that are not believed; whatever was believed before still is."""

    attack: ClassVar[str] = "refused"


class Malformed(Refused):
    """The bytes are not a message of this format."""

    attack = "malformed"


class NotDeterministic(Malformed):
    """Data spelled otherwise than RFC 8949, 4.2.1 demands: duplicate keys, long integers, floats, tags."""

    attack = "not_deterministic"


class TrailingBytes(Malformed):
    """Bytes stand after the end of the message."""

    attack = "trailing_bytes"


class TooDeep(Malformed):
    """Nested deeper than any message of this format."""

    attack = "too_deep"


class TooLarge(Malformed):
    """Larger than a limit of `flagcast_shared.limits`."""

    attack = "too_large"


class CompressionBomb(Malformed):
    """A compressed body that inflates beyond the limit."""

    attack = "compression_bomb"


class EmptyPayload(Malformed):
    """A retained topic was cleared. It never means that there are no flags."""

    attack = "empty_payload"


class UnknownFormat(Malformed):
    """A format version that this release does not speak."""

    attack = "unknown_format"


class Unauthentic(Refused):
    """Not signed by those whom the root trusts with it."""

    attack = "unauthentic"


class HeaderNotAllowed(Unauthentic):
    """A COSE header outside the profile: another algorithm, a critical or misplaced parameter."""

    attack = "header_not_allowed"


class UnknownKey(Unauthentic):
    """Signed by a key that the root in force does not name: a stranger's, or one that was revoked."""

    attack = "unknown_key"


class WrongRole(Unauthentic):
    """Signed by a known key that has no say in this kind of message."""

    attack = "wrong_role"


class BadSignature(Unauthentic):
    """The signature does not fit the bytes, the place they were found at, or the key."""

    attack = "bad_signature"


class KeyCountedTwice(Unauthentic):
    """One key signed more than once."""

    attack = "key_counted_twice"


class ThresholdNotMet(Unauthentic):
    """Fewer distinct keys signed than the role demands."""

    attack = "threshold_not_met"


class Misplaced(Refused):
    """A true message in a place that it was not made for."""

    attack = "misplaced"


class Replayed(Misplaced):
    """Made for another environment, namespace, kind, version or part."""

    attack = "replayed"


class Outdated(Refused):
    """True once, no longer."""

    attack = "outdated"


class Rollback(Outdated):
    """Older than what was admitted; usually a broker restored from an old save."""

    attack = "rollback"


class Freeze(Outdated):
    """Past its expiry: somebody keeps the fleet from hearing news, or the publisher stopped re-signing."""

    attack = "freeze"


class EpochMismatch(Outdated):
    """Of another epoch than the root in force."""

    attack = "epoch_mismatch"


class Inconsistent(Refused):
    """Contradicts itself or what was admitted under the same number."""

    attack = "inconsistent"


class Equivocation(Inconsistent):
    """The same number with another content: a publisher's key is in two hands."""

    attack = "equivocation"


class MixedVersions(Inconsistent):
    """Parts of different snapshots."""

    attack = "mixed_versions"


class DeltaMismatch(Inconsistent):
    """A delta that does not start from the version held."""

    attack = "delta_mismatch"


class DigestMismatch(Inconsistent):
    """The content is not the one whose digest the head signed."""

    attack = "digest_mismatch"


class RootSkipped(Inconsistent):
    """A root that is not exactly one above the root in force."""

    attack = "root_skipped"


class InvalidInput(FlagcastError):
    """The operator gave something that cannot be used; the message says where and what is allowed."""


class InvalidIdentifier(InvalidInput):
    """A key, name or id outside its alphabet or length."""


class InvalidConfiguration(InvalidInput):
    """A configuration value that cannot be used."""


class InvalidDocument(InvalidInput):
    """A flags file that cannot be published."""


class InvalidCall(FlagcastError):
    """An application asked something that has no answer; it gets its default and this reason."""


class FlagNotFound(InvalidCall):
    """No flag of this key in the namespace."""


class NamespaceNotFound(InvalidCall):
    """Nothing was ever admitted for this namespace."""


class TypeMismatch(InvalidCall):
    """The flag is of another type than the call."""


class FlagNotUsable(InvalidCall):
    """The flag, or a segment it refers to, uses a word this release does not know or refers to nothing."""


class InvalidContext(InvalidCall):
    """The evaluation context is no object, or what names the entity in it is no text."""


class TargetingKeyMissing(InvalidCall):
    """A percentage decides the flag, and the question has no targeting key."""


class AnswerTooLarge(InvalidCall):
    """A batch whose answer would be over a limit of the agent's."""


class CallTooLarge(InvalidCall):
    """A context, an entity id or a batch over a limit of the agent's."""
