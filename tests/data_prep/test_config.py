from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from data_prep.config import DataConfig, IdentityConfig, Settings
from data_prep.errors import ConfigError


class Wheel(Settings):
    size: int = 26
    spokes: int | None = None


class Bicycle(Settings):
    name: str
    weight_kg: float = 10.0
    folds: bool = False
    front: Wheel = Wheel()
    spare: Wheel | None = None
    gears: list[int] = Field([])
    brakes: bool | Literal["auto"] = "auto"


def refused(settings: type[Settings], values: dict[str, Any], section: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settings.parse(values, section)
    return str(caught.value).splitlines()


def data(**fields: Any) -> dict[str, Any]:
    return {"output": "out", "tokenizer": "model", "sources": ["chats.json"], **fields}


def test_an_unknown_field_is_named_with_the_close_one_and_all_that_are_valid() -> None:
    assert refused(Bicycle, {"name": "b", "weigth_kg": 9.0}) == [
        "weigth_kg: unknown field; did you mean 'weight_kg'? "
        "Valid fields: brakes, folds, front, gears, name, spare, weight_kg"
    ]


def test_an_unknown_field_that_is_like_no_other_gets_no_suggestion() -> None:
    assert refused(Wheel, {"zzz": 1}, "bicycle.front") == [
        "bicycle.front.zzz: unknown field. Valid fields: size, spokes"
    ]


@pytest.mark.parametrize("section", ["front", "spare"])
def test_an_unknown_field_of_a_nested_section_is_told_the_fields_of_that_section(section: str) -> None:
    assert refused(Bicycle, {"name": "b", section: {"sizes": 28}}, "bicycle") == [
        f"bicycle.{section}.sizes: unknown field; did you mean 'size'? Valid fields: size, spokes"
    ]


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("weight_kg", "10", "weight_kg: '10' is not valid; expected a valid number"),
        ("weight_kg", True, "weight_kg: True is not valid; expected a valid number"),
        ("folds", "yes", "folds: 'yes' is not valid; expected a valid boolean"),
        ("folds", 1, "folds: 1 is not valid; expected a valid boolean"),
        ("name", 3, "name: 3 is not valid; expected a valid string"),
        ("name", None, "name: None is not valid; expected a valid string"),
        ("gears", [1, "2"], "gears.1: '2' is not valid; expected a valid integer"),
        ("gears", 7, "gears: 7 is not valid; expected a valid list"),
        ("front", {"size": "28"}, "front.size: '28' is not valid; expected a valid integer"),
        ("front", {"size": 28.5}, "front.size: 28.5 is not valid; expected a valid integer"),
        ("spare", {"spokes": "32"}, "spare.spokes: '32' is not valid; expected a valid integer"),
        ("brakes", 3, "brakes: 3 is not valid; expected a valid boolean or 'auto'"),
    ],
)
def test_a_wrong_value_is_one_line_with_field_value_and_what_is_valid(field: str, value: Any, line: str) -> None:
    assert refused(Bicycle, {"name": "b", field: value}) == [line]


def test_a_whole_number_is_read_where_a_number_is_expected() -> None:
    assert Bicycle.parse({"name": "b", "weight_kg": 9}).weight_kg == 9.0


def test_every_wrong_field_gets_a_line() -> None:
    assert refused(Bicycle, {"folds": 0, "front": {"size": None}}, "bicycle") == [
        "bicycle.name: is required",
        "bicycle.folds: 0 is not valid; expected a valid boolean",
        "bicycle.front.size: None is not valid; expected a valid integer",
    ]


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Wheel().size = 28


def test_the_shortest_data_section_says_where_from_and_where_to() -> None:
    config = DataConfig.parse(data())
    assert (config.output, config.tokenizer, config.sources) == ("out", "model", ["chats.json"])
    assert refused(DataConfig, {"sources": ["a"]}, "data") == [
        "data.output: is required",
        "data.tokenizer: is required",
    ]


def test_identity_alone_is_enough_to_make_a_dataset() -> None:
    config = DataConfig.parse(data(sources=[], identity={"name": "Ada", "maker": "ACME"}))
    assert config.identity == IdentityConfig(name="Ada", maker="ACME")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"sources": []}, "data: give sources, identity, or both"),
        (
            {"template": "vicuna"},
            "data.template: 'vicuna' is unknown; valid: chatml, llama-2, vicuna_v0, vicuna_v1.1",
        ),
        ({"context_length": 8}, "data.context_length: 8 is not valid; expected greater than or equal to 16"),
        ({"eval_fraction": 1.0}, "data.eval_fraction: 1.0 is not valid; expected less than 1"),
        ({"eval_fraction": -0.1}, "data.eval_fraction: -0.1 is not valid; expected greater than or equal to 0"),
        ({"eval_fraction": "1%"}, "data.eval_fraction: '1%' is not valid; expected a valid number"),
        ({"group_size": 1000}, "data.group_size: 1000 is not valid; above 512 only its multiples are"),
        ({"group_size": 0}, "data.group_size: 0 is not valid; expected greater than or equal to 1"),
        ({"pack": "no"}, "data.pack: 'no' is not valid; expected a valid boolean"),
        ({"sources": "chats.json"}, "data.sources: 'chats.json' is not valid; expected a valid list"),
        ({"identity": {"name": ""}}, "data.identity.name: '' is not valid; expected at least 1 character"),
        ({"identity": {"count": 0}}, "data.identity.count: 0 is not valid; expected greater than or equal to 1"),
        ({"identity": {"who": "Ada"}}, "data.identity.who: unknown field. Valid fields: count, maker, name"),
    ],
)
def test_a_wrong_data_section_is_one_line(fields: dict[str, Any], line: str) -> None:
    lines = refused(DataConfig, data(**fields), "data")
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_a_path_keeps_its_spelling_and_the_keyword_its_meaning() -> None:
    assert DataConfig.parse(data(sources=["./demo"])).sources == ["./demo"]
    assert DataConfig.parse(data(sources=["demo"], output="demo/ds")).output == "demo/ds"
    assert refused(DataConfig, data(sources=["./demo"], output="demo/ds")) == [
        "output: 'demo/ds' is not outside of the source './demo'"
    ]


def test_a_home_is_found_and_one_that_is_not_there_is_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DataConfig.parse(data(output="~/out")).output == f"{tmp_path}/out"
    assert DataConfig.parse(data(output="~nosuchuser/out")).output == "~nosuchuser/out"


def test_a_loop_of_links_is_a_path_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    config = DataConfig.parse(data(output=str(tmp_path / "loop"), sources=[str(tmp_path / "loop2")]))
    assert config.output == str(tmp_path / "loop")
