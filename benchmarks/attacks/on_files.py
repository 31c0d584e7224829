"""Attacks by texts, keys and files: on a terminal, on a stolen key file, and on what must be refused before it counts."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cbor2
from publisher_simulator import PublisherSimulator

from flagcast_shared.ids import DeviceId, Environment, FlagKey, VariantKey
from flagcast_shared.model import Variant, VariantFlag
from flagcast_shared.root import PublicKey, Quorum, Role, encode_root, root_place
from harness import Goal

from .bench import GOOD, MALLORY, TEST, Agent, Bench, flags
from .figures import ALL, NOTHING, Figure
from .load import PATIENCE_SECONDS, until
from .messages import HOSTILE, batch, now, report, rows_twice

AGENT_COMMANDS = (("flags",), ("status",), ("doctor",), ("eval", "plain"))
"""Commands that print what an agent holds; the first two in a quick run."""


def texts(bench: Bench) -> Iterator[Figure]:
    """Texts of strangers that would rule a terminal, in all that commands and the agent print."""
    agent = bench.agent()
    commands = AGENT_COMMANDS[:2] if bench.is_quick else AGENT_COMMANDS
    for what, text in (
        ("flagcast fleet", _fleet_text(bench)),
        ("the collector's log" + ("" if bench.is_quick else ", flagcast usage"), _usage_text(bench)),
        (f"flagcast-agent {', '.join(words[0] for words in commands)}", _agent_text(bench, agent, commands)),
        ("the agent's log", agent.device.log),
    ):
        assert text, what
        # Our own tab stands between the columns of `eval`.
        count = sum(not each.isprintable() for each in text if each not in "\n\t")
        yield Figure(f"strangers' texts: control characters in {what}", count, "", NOTHING)


def _fleet_text(bench: Bench) -> str:
    for place in ("agent", "applied", "attack", "namespace"):
        bench.put((bench.report(DeviceId(f"{MALLORY}-{place}")), report(**{place: HOSTILE})))
    forms = ((), ("--device", f"{MALLORY}-agent"), ("--format", "json"))
    text = "".join(
        bench.flagcast("fleet", *words, "--project", bench.project).text
        for words in (forms[:1] if bench.is_quick else forms)
    )
    assert MALLORY in text, text
    return text


def _usage_text(bench: Bench) -> str:
    collector = bench.collector()
    before = collector.counted()
    hostile = [batch(1, **{word: HOSTILE}) for word in ("namespace", "flag", "answer", "reason")]
    bench.send(*[(bench.metrics(MALLORY), data) for data in hostile], (bench.metrics(GOOD), batch()))
    until(lambda: collector.counted() > before, PATIENCE_SECONDS)
    if bench.is_quick:
        return collector.log
    return collector.log + bench.flagcast("usage", "--project", bench.project).text


def _agent_text(bench: Bench, agent: Agent, commands: Sequence[tuple[str, ...]]) -> str:
    device, publisher = agent.device, agent.publisher
    variant = VariantKey(f"v{HOSTILE}")
    # Above the versions that a thief has offered.
    version = publisher.head.stable.version + 1
    publisher.release(
        *flags(),
        VariantFlag(FlagKey(f"f{HOSTILE}"), True, (Variant(variant),), variant),
        VariantFlag(FlagKey("plain"), True, (Variant(variant),), variant),
        version=version,
    )
    bench.put(*publisher.retained.items())
    device.holds(version)
    others = PublisherSimulator(environment=Environment(f"e{HOSTILE}"), now=now())
    others.release()
    refusals = agent.refusals()
    bench.put((publisher.head_topic, others.retained[others.head_topic]))
    device.wait_until(lambda: agent.refusals() > refusals, "a refusal")
    return "".join(bench.ask(device, *words) for words in commands)


_GUESS = """
import sys, time
from pathlib import Path
from cryptography.hazmat.primitives.serialization import load_pem_private_key
data = Path(sys.argv[1]).read_bytes()
for guess in (b"one", b"two", b"three"):
    began = time.thread_time()
    try:
        load_pem_private_key(data, guess)
    except ValueError:
        print(time.thread_time() - began)
"""
"""Guesses the passphrase of a key file as a thief of it would, and prints the CPU seconds of each guess."""


def passphrases(bench: Bench) -> Iterator[Figure]:
    """Guesses at the passphrase of a stolen key file."""
    if bench.is_quick:
        return
    folder, secret = bench.fresh("encrypted"), bench.fresh("passphrase")
    secret.write_text("correct horse battery staple\n")
    secret.chmod(0o600)
    bench.flagcast("init", folder, "--environment", TEST, "--passphrase-file", secret)
    done = bench.python(_GUESS, folder / "keys" / "publisher.key")
    took = [float(line) for line in done.stdout.splitlines()]
    assert len(took) == 3, "a wrong passphrase opened the key"
    yield Figure(
        "a stolen key file: one guess of its passphrase", statistics.median(took), "s CPU", Goal(">=", 0.05)
    )


_REFUSE = """
import sys
from flagcast_shared.context import Device
from flagcast_shared.errors import Refused
from flagcast_shared.ids import DeviceId, Environment
from flagcast_shared.reports import decode_usage
from flagcast_shared.trust import begin
for line in sys.stdin:
    kind, _, data = line.partition(" ")
    try:
        if kind == "root":
            begin(Environment("production"), Device(DeviceId("device-1")), bytes.fromhex(data))
        else:
            decode_usage(bytes.fromhex(data))
        print("taken")
    except Refused as error:
        print(error.attack)
"""
"""Reads anchors and batches as a device and a collector would, and prints whether each is taken."""


def refusals(bench: Bench) -> Iterator[Figure]:
    """Keys that anybody signs for, a key or a row that stands twice, a key file that is open, names that do not print."""
    publisher = PublisherSimulator()
    tried = [
        (f"root with the small-order key {raw.hex()[:6]}", "root", _root_with(publisher, raw))
        for raw in _small_order()
    ]
    fields = cbor2.loads(encode_root(publisher.root))
    twice = cbor2.dumps({**fields, 9: [*fields[9], fields[9][0]]}, canonical=True)
    place = root_place(publisher.environment)
    tried += [
        ("root that names a key twice", "root", publisher.sign(twice, place, *publisher.root_keys, several=True)),
        ("batch with a row twice", "usage", rows_twice()),
    ]  # fmt: skip
    done = bench.python(_REFUSE, lines="".join(f"{kind} {data.hex()}\n" for _, kind, data in tried))
    found = zip(tried, done.stdout.splitlines(), strict=True)
    taken = [name for (name, *_), line in found if line == "taken"]
    commands = _refused_commands(bench)
    taken += [name for name, code in commands.items() if code == 0]
    count = len(tried) + len(commands)
    yield Figure(
        "roots with keys that anybody signs for, keys or rows twice, an open key file, texts that do not print: refused",
        count - len(taken), "", ALL, "tried", count, f"taken: {len(taken)}, among them {taken[-1]}" if taken else "",
    )  # fmt: skip


def _refused_commands(bench: Bench) -> dict[str, int]:
    """Exit codes of commands that have to end with another one than 0."""
    publish = ("publish", bench.features, "--project", bench.project)
    key = bench.project / "keys" / "publisher.key"
    key.chmod(0o644)
    try:
        found = {"key file that everybody may read": bench.flagcast(*publish).code}
    finally:
        key.chmod(0o600)
    if not bench.is_quick:
        done = bench.flagcast(*publish, "--provenance", f"source={HOSTILE}")
        found["provenance that does not print"] = done.code
    path = bench.fresh("variants.yml")
    path.write_text(
        'flags:\n- {key: f, name: f, type: VARIANT_FLAG_TYPE, enabled: true, variants: [{key: "\\e[2J"}]}\n'
    )
    found["variant that does not print"] = bench.flagcast("validate", path).code
    return found


def _small_order() -> list[bytes]:
    """Every encoding of the points whose order divides 8 (RFC 8032, 5.1.2), those beyond the prime among them."""
    prime = 2**255 - 19
    eighth = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    rows = (0, 1, prime - 1, eighth, prime - eighth, prime, prime + 1)
    return [(y | sign << 255).to_bytes(32, "little") for y in rows for sign in (0, 1)]


def _root_with(publisher: PublisherSimulator, raw: bytes) -> bytes:
    key = PublicKey(raw)
    quorum = Quorum(publisher.root.roles[Role.PUBLISHER].keys | {key.id}, 1)
    root = replace(
        publisher.root,
        keys={**publisher.root.keys, key.id: key},
        roles={**publisher.root.roles, Role.PUBLISHER: quorum},
    )
    return publisher.root_message(root)


def digits(bench: Bench) -> Iterator[Figure]:
    """Hexadecimal digits without end in a flags file, as a number, as a text, and where a number is compared."""
    many = "0x" + "f" * 100_000
    flag = "- {{key: {0}, name: F, variants: [{{key: v, name: V, default: true, attachment: {{a: {1}}}}}]}}\n"
    path = bench.fresh("digits.yml")
    path.write_text(
        "flags:\n" + flag.format("f", many) + flag.format("g", f"{many}z")
        + "segments:\n- {key: s, name: S, match_type: ALL_MATCH_TYPE, constraints: [{type: NUMBER_COMPARISON_TYPE,"
        f" property: p, operator: eq, value: '{many}z'}}]}}\n"
    )  # fmt: skip
    done = bench.flagcast("validate", path, cpu_cap=bench.cpu_cap)
    yield Figure(
        "100 KB of hexadecimal digits in three places: flagcast validate",
        done.cpu, "s CPU", Goal("<=", 2.0), note="more than" if done.is_capped else "",
    )  # fmt: skip
