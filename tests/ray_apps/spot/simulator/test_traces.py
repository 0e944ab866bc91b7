"""Reading recorded prices: what is right, and what is told of what is not."""

from pathlib import Path

import pytest

from data_prep.errors import DataError
from ray_apps.spot.simulator.traces import read_trace, read_traces, region_of

HEAD = "date,available,spot_usd_per_hour\n"
ROWS = "2023-02-15 22:08:16,0,1.2\n2023-02-15 22:11:31,1,1.3\n2023-02-15 22:14:47,1,1.4\n"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_trace_is_read(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "us-east-1c_v100.csv", HEAD + ROWS))
    assert (trace.zone, trace.region) == ("us-east-1c", "us-east-1")
    assert trace.step_h == pytest.approx(195.5 / 3600)
    assert (trace.available, trace.usd_per_hour) == ((False, True, True), (1.2, 1.3, 1.4))


@pytest.mark.parametrize(
    ("zone", "region"), [("ap-southeast-7b", "ap-southeast-7"), ("us-gov-west-1a", "us-gov-west-1"), ("rack7", "rack7")]
)
def test_the_region_of_a_zone(zone: str, region: str) -> None:
    assert region_of(zone) == region


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "fewer than two rows"),
        ("date,available\n2023-02-15 22:08:16,0\n", "no column 'spot_usd_per_hour'"),
        (HEAD + "2023-02-15 22:08:16,0,1.2\n", "fewer than two rows"),
        (HEAD + ROWS + "yesterday,1,1\n", r"x\.csv:5: date: 'yesterday'"),
        (HEAD + ROWS + "2023-02-15 22:18:02,yes,1\n", r"x\.csv:5: available: 'yes' is not valid; expected 0 or 1"),
        (HEAD + ROWS + "2023-02-15 22:18:02,1,nan\n", r"x\.csv:5: spot_usd_per_hour: 'nan'"),
        (HEAD + ROWS + "2023-02-15 22:18:02,1\n", r"x\.csv:5: spot_usd_per_hour: ''"),
        (HEAD + ROWS + "2023-02-15 22:08:16,1,1\n", r"x\.csv:5: date: .* follows"),
        (HEAD + ROWS + ROWS.replace("22:", "23:"), r"x\.csv:5: date: .* follows"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_trace(write(tmp_path, "x.csv", text))


def test_traces_must_be_of_the_same_times_and_of_different_zones(tmp_path: Path) -> None:
    first = write(tmp_path, "a.csv", HEAD + ROWS)
    with pytest.raises(DataError, match="not of the same times"):
        read_traces([first, write(tmp_path, "b.csv", HEAD + ROWS.replace("2023", "2024"))])
    with pytest.raises(DataError, match="two traces of a"):
        read_traces([first, first])
    with pytest.raises(DataError, match="No such file"):
        read_traces([tmp_path / "none.csv"])


def test_a_window_beyond_the_trace_is_refused(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "a.csv", HEAD + ROWS))
    assert trace.window(trace.step_h, 1.5 * trace.step_h).available == (True, True)
    with pytest.raises(DataError, match=r"covers 0\.2 h"):
        trace.window(0, 1)
