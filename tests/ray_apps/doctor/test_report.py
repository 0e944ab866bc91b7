import json

import pytest

from ray_apps.doctor.check import Check, describe_bytes
from ray_apps.doctor.report import print_json, print_report

GOOD = Check("devices", "node [a]", "ok", "2 CPUs", measures={"num_cpus": 2})
BAD = Check("storage", "train.run_dir", "problem", "writing: rank 1 (b): no [space]", "free some space")


def test_a_person_reads_figures_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert not print_report([GOOD, BAD])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["✓", "devices", "node", "[a]", "2", "CPUs"],
        ["✗", "storage", "train.run_dir", "writing:", "rank", "1", "(b):", "no", "[space]"],
        ["→", "free", "some", "space"],
        ["1", "ok,", "0", "warnings,", "1", "problem"],
    ]
    assert print_report([GOOD, Check("devices", "x", "warning", "small", "enlarge it")])


def test_a_program_reads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert not print_json([GOOD, BAD])
    good, bad = json.loads(capsys.readouterr().out)
    assert good == {
        "group": "devices",
        "name": "node [a]",
        "status": "ok",
        "found": "2 CPUs",
        "advice": "",
        "measures": {"num_cpus": 2},
    }
    assert bad["advice"] == "free some space"
    assert print_json([GOOD])


@pytest.mark.parametrize(("size", "text"), [(64e6, "64 MB"), (1.5e9, "1.5 GB"), (39.6e9, "40 GB"), (0, "0 MB")])
def test_sizes_are_short(size: float, text: str) -> None:
    assert describe_bytes(size) == text
