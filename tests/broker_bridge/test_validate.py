"""`validate.load` and `validate.run`: what publish and the command line see."""

import io
import json
from pathlib import Path

import pytest

from flagcast_bridge.check import load, run
from flagcast_bridge.flags.findings import CATALOGUE, FINDING_TEXT_MAX_CHARACTERS, FINDINGS_MAX
from flagcast_shared import model
from flagcast_shared.errors import InvalidDocument

ROOT = Path(__file__).parents[2]
CLEAN = "flags: [{key: f, name: F, type: BOOLEAN_FLAG_TYPE}]\n"
WARNING = "flags: []\n"
ERROR = "flags:\n- key: f\n  name: F\n  enabeld: true\n"


def said(path: Path, output_format: str = "text", *, strict: bool = False) -> tuple[int, str]:
    out = io.StringIO()
    assert output_format in ("text", "json")
    code = run(path, "json" if output_format == "json" else "text", out, strict=strict)
    return code, out.getvalue()


@pytest.mark.parametrize(
    ("text", "code", "strict_code"), [(CLEAN, 0, 0), (WARNING, 0, 1), (ERROR, 1, 1), (WARNING + "x: [", 1, 1)]
)
def test_the_exit_code_says_whether_it_can_be_published(
    tmp_path: Path, text: str, code: int, strict_code: int
) -> None:
    path = tmp_path / "features.yml"
    path.write_text(text)
    assert said(path)[0] == code
    assert said(path, strict=True)[0] == strict_code
    assert said(path, "json")[0] == code


def test_text_gives_place_code_and_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("features.yml").write_text(ERROR)
    assert said(Path("features.yml"))[1] == (
        "features.yml:4:3: error FC111: flag: unknown field 'enabeld'\n"
        "    Did you mean 'enabled'?\n"
        "features.yml: 1 error, 0 warnings; nothing can be published\n"
        "Each code is explained in docs/validation.md\n"
    )


def test_text_says_what_a_clean_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("features.yml").write_text(CLEAN)
    assert said(Path("features.yml")) == (
        0,
        "features.yml: 1 flag or segment in 1 namespace; 0 errors, 0 warnings\n",
    )


def test_a_terminal_never_sees_control_characters_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "features.yml"
    path.write_text('"\\e[31mred\\n\\u202e": 1\n')
    text = said(path)[1]
    assert "\\x1b" in text
    assert not set(text) & {"\x1b", "\u202e"}
    assert len(text.splitlines()) == 4


def test_json_is_one_object_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "features.yml"
    path.write_text(ERROR)
    assert json.loads(said(path, "json")[1]) == {
        "path": str(path),
        "errors": 1,
        "warnings": 0,
        "findings": [
            {
                "code": "FC111",
                "severity": "error",
                "title": CATALOGUE["FC111"],
                "file": str(path),
                "line": 4,
                "column": 3,
                "message": "flag: unknown field 'enabeld'",
                "hint": "Did you mean 'enabled'?",
                "documentation": "docs/validation.md#fc111",
            }
        ],
        "unlisted": 0,
    }


def test_a_path_that_cannot_be_read_is_a_finding_of_run_and_an_error_of_load(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yml"
    with pytest.raises(InvalidDocument):
        load(missing)
    code, text = said(missing, "json")
    (finding,) = json.loads(text)["findings"]
    assert (code, finding["code"], finding["file"]) == (1, "FC101", str(missing))
    assert said(missing)[0] == 1


def test_findings_are_in_the_order_of_the_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "features.yml").write_text(f"namespace: {name}\nflags: [{{}}]\nflags: []\n")
    found = load(tmp_path).findings
    places = [(each.file, each.line, each.column) for each in found]
    assert places == sorted(places)
    assert len({each.file for each in found}) == 2


class TestMoreFindingsThanAreListed:
    FLAGS = "\n".join(f"- {{key: f{number}, name: F, enabeld: true}}" for number in range(1_700))
    WARNINGS = "\n".join(f"- {{key: s{number}, name: S}}" for number in range(1_500))

    def test_text_lists_a_thousand_and_ends_with_the_count_of_the_rest(self, tmp_path: Path) -> None:
        path = tmp_path / "features.yml"
        path.write_text(f"flags:\n{self.FLAGS}\n")
        code, text = said(path)
        assert code == 1
        assert text.count(" error FC111: ") == FINDINGS_MAX == 1_000
        assert text.splitlines()[-3:] == [
            "700 more findings are not listed; correct these first",
            f"{path}: 1700 errors, 0 warnings; nothing can be published",
            "Each code is explained in docs/validation.md",
        ]

    def test_json_counts_them_all(self, tmp_path: Path) -> None:
        path = tmp_path / "features.yml"
        path.write_text(f"flags:\n{self.FLAGS}\n")
        code, text = said(path, "json")
        document = json.loads(text)
        assert (code, document["errors"], document["warnings"], document["unlisted"]) == (1, 1_700, 0, 700)
        assert [each["line"] for each in document["findings"]] == list(range(2, 1_002))

    def test_errors_come_before_warnings_wherever_they_stand(self, tmp_path: Path) -> None:
        path = tmp_path / "features.yml"
        path.write_text(f"segments:\n{self.WARNINGS}\nflags:\n- {{key: f, name: F, enabeld: true}}\n")
        code, text = said(path, "json")
        document = json.loads(text)
        assert (code, document["errors"], document["warnings"]) == (1, 1, 1_500)
        assert (len(document["findings"]), document["unlisted"]) == (1_000, 501)
        assert document["findings"][-1]["code"] == "FC111"

    def test_warnings_alone_fail_only_a_strict_run(self, tmp_path: Path) -> None:
        path = tmp_path / "features.yml"
        path.write_text(f"segments:\n{self.WARNINGS}\n")
        compilation = load(path)
        assert len(compilation.findings) == 1_000
        assert sum(compilation.unlisted) > 0
        assert not compilation.has_errors
        assert said(path)[0] == 0
        assert said(path, strict=True)[0] == 1

    def test_a_long_name_does_not_fill_the_list(self, tmp_path: Path) -> None:
        path = tmp_path / "features.yml"
        path.write_text(f"version: {'9' * 20}{'x' * 1_000_000}\nflags: []\n")
        (found,) = load(path).findings
        assert len(found.message) == FINDING_TEXT_MAX_CHARACTERS
        assert found.message.endswith("…")


class TestExamples:
    """The examples are what a newcomer reads first."""

    def test_they_are_without_any_finding(self) -> None:
        assert load(ROOT / "examples").findings == ()

    def test_they_show_every_kind_of_thing(self) -> None:
        namespaces = load(ROOT / "examples").namespaces
        assert set(namespaces) == {"default", "charging"}
        entries = [entry for listed in namespaces.values() for entry in listed]
        booleans = [entry for entry in entries if isinstance(entry, model.BooleanFlag)]
        variants = [entry for entry in entries if isinstance(entry, model.VariantFlag)]
        segments = [entry for entry in entries if isinstance(entry, model.Segment)]
        assert len(booleans) + len(variants) >= 25
        rollouts = {type(rollout) for flag in booleans for rollout in flag.rollouts}
        assert rollouts == {model.ThresholdRollout, model.SegmentRollout}
        assert any(len(rule.distributions) > 1 for flag in variants for rule in flag.rules)
        assert any(variant.attachment for flag in variants for variant in flag.variants)
        constraints = [constraint for segment in segments for constraint in segment.constraints]
        assert {constraint.type for constraint in constraints} == set(model.ConstraintType)
        assert {constraint.operator for constraint in constraints} == set(model.Operator)
        assert {"device.model", "device.firmware", "device.label.site"} <= {
            each.property for each in constraints
        }
        assert {rule.join for flag in variants for rule in flag.rules} == set(model.Join)
        assert {segment.match for segment in segments} == set(model.Match)
