"""What the watcher of one machine does with what a real metadata server says."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.spot.notices import AWS, Machine, Notice, find_cloud
from ray_apps.spot.records import Record, read_records, write_record
from ray_apps.spot.watcher import DrainError, OwnNode, Recorder, Watcher, drain_deadline
from tests import metadata, s3
from tests.metadata import Metadata
from tests.s3 import Bucket

ROOT = Path(__file__).parents[3]


class FakeNode:
    """A node that can be drained when it is there. `ids`: of the raylets that live on this machine."""

    name = "10.0.0.7"

    def __init__(self) -> None:
        self.ids = ["a"]
        self.told: list[tuple[float, str]] = []

    def drain(self, deadline: float, message: str) -> list[str]:
        if not self.ids:
            raise DrainError("there is no live node")
        self.told.append((deadline, message))
        return self.ids


@pytest.fixture
def aws() -> Iterator[Metadata]:
    with metadata.serving("aws") as known:
        yield known


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def kept() -> list[Record]:
    return []


@pytest.fixture
def watcher(aws: Metadata, node: FakeNode, kept: list[Record]) -> Watcher:
    return Watcher(lambda: find_cloud(url=aws.url), node, kept.append, margin_s=5, every_s=1)


def test_a_notice_drains_the_node_earlier_than_the_machine_is_gone_and_is_recorded(
    aws: Metadata, watcher: Watcher, node: FakeNode, kept: list[Record]
) -> None:
    watcher.look()
    assert (node.told, kept) == ([], [])
    deadline = aws.interrupt(120)
    watcher.look()
    assert node.told == [(deadline - 5, "aws: terminate")]
    assert [record.drained for record in kept] == [(), ("a",)]
    assert kept[1].machine == Machine("i-0abc", "us-west-2b", "g5.xlarge")
    assert (kept[1].notice.deadline, kept[1].drain_deadline) == (deadline, deadline - 5)
    watcher.look()
    assert len(kept) == 2


def test_advice_is_recorded_and_drains_nothing(
    aws: Metadata, watcher: Watcher, node: FakeNode, kept: list[Record]
) -> None:
    aws.rebalance = {"noticeTime": "2025-03-31T16:34:24Z"}
    watcher.look()
    watcher.look()
    assert node.told == []
    assert [record.notice.advisory for record in kept] == [True]


def test_an_outage_drains_nothing_and_is_waited_out(aws: Metadata, watcher: Watcher, node: FakeNode) -> None:
    waits = []
    aws.status = 503
    for _ in range(12):
        watcher.look()
        waits.append(watcher.wait_s)
    assert waits[:4] == [2, 4, 8, 8]
    assert waits[-1] == 8
    assert node.told == []
    aws.status = None
    aws.interrupt(120)
    watcher.look()
    assert watcher.wait_s == 1
    assert len(node.told) == 1


def test_a_drain_is_tried_until_it_is_accepted_even_through_an_outage(
    aws: Metadata, watcher: Watcher, node: FakeNode, kept: list[Record]
) -> None:
    aws.interrupt(120)
    node.ids = []
    watcher.look()
    aws.status = 503
    watcher.look()
    assert (watcher.wait_s, len(kept)) == (1, 1)
    node.ids = ["a"]
    watcher.look()
    assert kept[-1].drained == ("a",)


def test_a_raylet_that_is_started_anew_is_drained_too(
    aws: Metadata, watcher: Watcher, node: FakeNode, kept: list[Record]
) -> None:
    aws.interrupt(120)
    watcher.look()
    node.ids = ["b"]
    watcher.look()
    assert kept[-1].drained == ("a", "b")


def test_an_earlier_deadline_of_the_same_notice_counts(node: FakeNode, kept: list[Record]) -> None:
    now = time.time()

    class Cloud(AWS):
        deadlines = iter([now + 100, now + 40, now + 60])

        def notices(self) -> list[Notice]:
            return [Notice("one", "Preempt", next(self.deadlines))]

    watcher = Watcher(lambda: Cloud("http://127.0.0.1:9"), node, kept.append, margin_s=5, every_s=1)
    for _ in range(3):
        watcher.look()
    assert [round(deadline - now) for deadline, _ in node.told] == [95, 35, 35]


def test_a_machine_that_was_spared_is_let_alone(node: FakeNode, kept: list[Record]) -> None:
    class Cloud(AWS):
        def notices(self) -> list[Notice]:
            return [Notice("one", "stop", time.time() - 700)]

    Watcher(lambda: Cloud("http://127.0.0.1:9"), node, kept.append, margin_s=5, every_s=1).look()
    assert node.told == []


@given(left=st.floats(-100, 4000), margin=st.floats(0, 300), now=st.floats(1.7e9, 2e9, allow_nan=False))
def test_ray_is_told_no_later_than_the_machine_goes(left: float, margin: float, now: float) -> None:
    told = drain_deadline(now + left, now, margin)
    assert told <= now + left
    assert told == now + left - margin or told <= now + 1.001


def test_records_are_written_over_each_other_and_read_back(tmp_path: Path) -> None:
    first = Record("aws", Machine("i-1", "us-west-2a", "g5.xlarge"), "n", Notice("stop-2025:1", "stop", 9.0), 2.0, 4.0)
    later = Record("gcp", Machine(), "10.0.0.1", Notice("preempted", "preempted", 7.0), 1.0, 2.0, ("ab",))
    place = tmp_path / "new" / "notices"
    for record in (first, later, first):
        write_record(str(place), record)
    (place / "other.json").write_text("[1")
    assert read_records(str(place)) == [later, first]
    assert read_records(str(tmp_path / "nothing")) == []


def test_records_are_written_to_s3(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.variables(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    place = f"{Bucket(s3_endpoint, tmp_path.name).uri}/run/notices"
    record = Record("aws", Machine("i-1"), "n", Notice("stop-1", "stop", 9.0), 2.0, 4.0)
    recorder = Recorder(place)
    recorder.keep(record)
    recorder.end(30)
    assert read_records(place) == [record]


def test_a_record_waits_until_its_place_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.spot.watcher.RECORD_AGAIN_S", 0.05)
    (tmp_path / "notices").write_text("in the way")
    recorder = Recorder(str(tmp_path / "notices"))
    recorder.keep(Record("aws", Machine("i-1"), "n", Notice("stop-1", "stop", 9.0), 2.0, 4.0))
    recorder.end(0.2)
    (tmp_path / "notices").unlink()
    recorder.end(30)
    assert len(read_records(str(tmp_path / "notices"))) == 1


def test_there_is_no_cluster_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.spot.watcher.RPC_S", 0.5)
    for address in ("127.0.0.1:9", "nonsense"):
        with pytest.raises(DrainError):
            OwnNode(address).drain(time.time() + 60, "test")


@pytest.mark.slow
def test_sigterm_ends_the_command_cleanly_whatever_does_not_answer(aws: Metadata, tmp_path: Path) -> None:
    aws.interrupt(120)
    options = ["--metadata-url", aws.url, "--address", "127.0.0.1:9", "--records", str(tmp_path / "notices")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_apps.cli", "spot", "watch", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob("notices/*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    aws.silent = True
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "aws: notice (terminate)" in said
    assert ":9: UNAVAILABLE" in said
    assert "Traceback" not in said


def test_it_stops_when_told(aws: Metadata, watcher: Watcher) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=watcher.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
