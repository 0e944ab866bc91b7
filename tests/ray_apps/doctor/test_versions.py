import re

import pytest

from ray_apps.doctor import versions
from ray_apps.doctor.versions import check_nodes_agree, check_versions, differences, read_lock, unmet


def test_what_is_installed_here_is_shown_and_is_as_declared() -> None:
    packages, requirements, *_ = check_versions()
    assert re.match(r"python 3\.\d+\.\d+, torch \d", packages.found)
    assert (requirements.name, requirements.status) == ("requirements", "ok")


def test_a_requirement_that_is_not_met_says_what_there_is() -> None:
    declared = ["torch==2.13.0", "rich>=14", "numpy>=2", 'openai>=3; extra == "demo"', 'old; python_version < "3"']
    assert unmet(declared, {"torch": "2.13.0+cu130", "rich": "13.9"}) == [
        "rich 13.9 instead of >=14",
        "numpy is missing",
    ]


def test_a_broken_environment_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.metadata, "requires", lambda name: ["click>=999"])
    check = check_versions()[1]
    assert check.status == "problem"
    assert "click" in check.found
    assert "instead of >=999" in check.found
    assert check.advice


def test_the_build_of_a_package_is_not_another_version() -> None:
    locked = read_lock("# tested\ntorch==2.13.0\nPy_Thing==1.0  # why\nray==2.60.0\n-e .\n")
    assert locked == {"torch": "2.13.0", "py-thing": "1.0", "ray": "2.60.0"}
    here = {"torch": "2.13.0+cu130", "ray": "2.59.0"}
    assert differences(locked, here) == ["py-thing missing instead of 1.0", "ray 2.59.0 instead of 2.60.0"]


def test_nodes_must_agree() -> None:
    one = {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "ray": "2.60.0", "pyarrow": "26.0.1"}
    assert check_nodes_agree({"head": one}) == []
    (agree,) = check_nodes_agree({"head": one, "10.0.0.7": {**one, "torch": "2.13.0+cu130"}})
    assert agree.status == "ok"
    (differ,) = check_nodes_agree({"head": one, "10.0.0.7": {**one, "ray": "2.59.0"}})
    assert (differ.status, differ.found) == ("problem", "ray: 2.60.0 on head, 2.59.0 on 10.0.0.7")
