import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ConfigError
from ray_apps.config import apply_overrides, load_yaml, parse_yaml

VALUES: dict[str, Any] = {"train": {"model": "base", "lora": None, "checkpoint": {"keep_last": 2}}, "data": None}

NO_VALUES = ["!!timestamp ", "2001-99-99", "0x", "1:60", "1e5"]

keys = st.text("abcdefgh_", min_size=1, max_size=4)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc xyz", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
mappings = st.dictionaries(keys, st.dictionaries(keys, trees, max_size=2), max_size=3)
scraps = st.lists(
    st.sampled_from(
        [*"a[]{}~=é'\"\n\x00", "b: ", "- ", "? ", "  ", "|\n", "&x ", "*x", "<<: ", "!!int ", "!!bool ", *NO_VALUES]
    ),
    max_size=12,
).map("".join)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(VALUES, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("3E4", 30000.0),
        ("-1e+3", -1000.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("1_000e-3", 1.0),
        ("0.03", 0.03),
        ("128", 128),
        ("'2e-5'", "2e-5"),
        ("2e", "2e"),
        ("e5", "e5"),
        ("2e-5x", "2e-5x"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[a, 1e3]", ["a", 1000.0]),
        ("{r: 8}", {"r": 8}),
    ],
)
def test_a_value_is_what_a_person_means(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train:  # a comment\n  learning_rate: 2e-5\n  model: base\n")
    assert load_yaml(path) == {"train": {"learning_rate": 2e-5, "model": "base"}}


def test_a_section_may_be_taken_over_with_changes() -> None:
    text = "a: &a {r: 8, alpha: 16}\nb: {<<: *a, alpha: 32}\n"
    assert parse_yaml(text, "here") == {"a": {"r": 8, "alpha": 16}, "b": {"r": 8, "alpha": 32}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", "line 3: field 'a' appears twice"),
        (b"a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4: field 'b' appears twice"),
        (b"a: [1, 2\n", "not valid YAML: "),
        (b"a: b: c\n", "not valid YAML: mapping values are not allowed here"),
        (b"a: !!python/name:os.system\n", "not valid YAML: could not determine a constructor"),
        (b"since: 2001-99-99\n", "not valid YAML: month must be in 1..12"),
        (b"count: !!int many\n", "not valid YAML: "),
        (b"{name}: {{value}}\n", "not valid YAML: "),
        (b"[" * 5000, "not valid YAML: "),
        (b"name: \xff\xfe\n", "not valid YAML: "),
        (b"- a\n- b\n", "expected a mapping of sections, found list"),
        (b"vicuna\n", "expected a mapping of sections, found str"),
        (b"", "expected a mapping of sections, found NoneType"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_one_line_that_names_the_file(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file or directory"):
        load_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_yaml(tmp_path)


@given(text=scraps | st.text(max_size=20))
def test_no_text_crashes(text: str) -> None:
    try:
        parse_yaml(text, "here")
        problem = "here: none"
    except ConfigError as error:
        problem = str(error)
    assert problem.startswith("here: ")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.model=s3://b/m", {"train": {**VALUES["train"], "model": "s3://b/m"}, "data": None}),
        ("train.learning_rate=2e-5", {"train": {**VALUES["train"], "learning_rate": 2e-5}, "data": None}),
        (
            "train.checkpoint.every_steps=5",
            {"train": {**VALUES["train"], "checkpoint": {"keep_last": 2, "every_steps": 5}}, "data": None},
        ),
        ("train.a.b.c=1", {"train": {**VALUES["train"], "a": {"b": {"c": 1}}}, "data": None}),
        ("spot.regions=[us, eu]", {**VALUES, "spot": {"regions": ["us", "eu"]}}),
        ("train=null", {"train": None, "data": None}),
        ("train.model=", {"train": {**VALUES["train"], "model": None}, "data": None}),
        ("train.model=a=b", {"train": {**VALUES["train"], "model": "a=b"}, "data": None}),
    ],
)
def test_an_override_changes_one_field(override: str, expected: dict[str, Any]) -> None:
    assert apply_overrides(VALUES, [override]) == expected


def test_a_section_that_is_off_can_be_filled() -> None:
    assert apply_overrides(VALUES, ["train.lora.r=4"])["train"]["lora"] == {"r": 4}
    assert apply_overrides(VALUES, ["data.output=x", "data.pack=false"])["data"] == {"output": "x", "pack": False}


def test_the_last_override_of_a_field_holds() -> None:
    assert apply_overrides(VALUES, ["train.model=a", "train.model=b"])["train"]["model"] == "b"


@given(values=mappings, section=keys, field=keys, number=st.integers())
def test_overrides_leave_everything_else_and_their_input_as_it_is(
    values: dict[str, Any], section: str, field: str, number: int
) -> None:
    before = copy.deepcopy(values)
    changed = apply_overrides(values, [f"{section}.{field}={number}"])
    assert values == before
    assert changed[section][field] == number
    changed[section].pop(field)
    assert changed == {
        **before,
        section: {key: value for key, value in before.get(section, {}).items() if key != field},
    }


@pytest.mark.parametrize("override", ["train.model", "=1", "train..model=1", ".model=1", "train.=1", ""])
def test_an_override_without_a_field_or_a_value_is_refused(override: str) -> None:
    assert refusal(override) == f"override {override!r}: expected section.key=value"


def test_an_override_through_a_value_is_refused() -> None:
    assert refusal("train.model.name=x") == "override 'train.model.name=x': train.model is a value, not a section"
    assert refusal("a=1", "a.b.c=2") == "override 'a.b.c=2': a is a value, not a section"


def test_an_override_whose_value_is_not_yaml_is_named() -> None:
    assert refusal("train.dataset=[a").startswith("override 'train.dataset=[a': not valid YAML: ")
    assert "'r' appears twice" in refusal("train.lora={r: 1, r: 2}")
