"""Writes bucketing.json, candidate_buckets.json and evaluations.json into tests/vectors.

None of the expected values is Flagcast's own: buckets come straight from CRC-32 and SHA-256, evaluations from Flipt's
engine, over random models in the domain where Flipt's engines agree. What Flipt does not know (device attributes,
records of a newer publisher) stands in `special_evaluations.json`, which is written by hand.
"""

import hashlib
import json
import random
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from flipt_comparison import flipt_answer
from flipt_models import entries_of, random_requests, random_snapshot
from flipt_oracle import FliptOracle, flipt_oracle
from record_json import json_of

VECTORS = Path(__file__).resolve().parent.parent / "tests" / "vectors"
SEED = 20_240_301
MODELS = 6
CASES = 40
FLAG_KEYS = ("flag", "größe", "日本語", "a-b_c,d", "🎈", "x" * 100)
ENTITIES = ("", "user-1", "user-2", "größe", "日本🎈", "e\u0301", "\u00e9", " ", "\x00", "y" * 300)


def main() -> None:
    """Writes the three files."""
    rng = random.Random(SEED)
    _write("bucketing.json", (_bucketing(flag, entity) for flag in FLAG_KEYS for entity in ENTITIES))
    _write("candidate_buckets.json", _candidates(rng))
    with flipt_oracle() as oracle:
        _write("evaluations.json", [_group(oracle, rng, number) for number in range(MODELS)])


def _write(name: str, rows: Iterable[Any]) -> None:
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows]
    (VECTORS / name).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(name, len(lines))


def _bucketing(flag: str, entity: str) -> dict[str, Any]:
    return {
        "flag": flag,
        "entity": entity,
        "variant_bucket": zlib.crc32(flag.encode() + entity.encode()) % 1000,
        "boolean_bucket": zlib.crc32(entity.encode() + flag.encode()) % 100,
    }


def _candidates(rng: random.Random) -> Iterable[dict[str, Any]]:
    for device in ("a", "press-7", "0", "Line.3:unit_4", "z" * 100):
        for salt in (b"", b"\x00", b"salt", rng.randbytes(16)):
            digest = hashlib.sha256(salt + device.encode()).digest()
            bucket = int.from_bytes(digest[:8], "big") % 10_000
            yield {"salt": salt.hex(), "device": device, "bucket": bucket}


def _group(oracle: FliptOracle, rng: random.Random, number: int) -> dict[str, Any]:
    snapshot = random_snapshot(rng, flags=6)
    requests = list(random_requests(rng, snapshot, CASES))
    cases = []
    for request, result in zip(requests, oracle.ask(snapshot, requests), strict=True):
        answer = flipt_answer(result)
        answer.pop("flag", None)
        if "segments" in answer:
            answer["segments"] = sorted(answer["segments"])
        cases.append(
            {
                "call": request.kind,
                "flag": request.flag,
                "entity": request.entity,
                "context": request.context,
                "answer": {"error": answer["error"].replace(" ", "_")} if "error" in answer else answer,
            }
        )
    records = [json_of(entry) for entry in entries_of(snapshot)]
    return {"name": f"model {number}", "device": {}, "records": records, "cases": cases}


if __name__ == "__main__":
    main()
