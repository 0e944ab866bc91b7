"""Notices of three clouds, and everything that is none, from a real metadata server."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ConfigError
from ray_apps.spot.metadata import MetadataError, MetadataServer
from ray_apps.spot.notices import AWS, CLOUDS, GCP, Azure, Cloud, Machine, find_cloud
from tests import metadata
from tests.metadata import Metadata

NAMES = ["aws", "gcp", "azure"]


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest) -> Iterator[Metadata]:
    with metadata.serving(request.param) as known:
        yield known


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Metadata]]:
    with metadata.serving("aws") as aws, metadata.serving("gcp") as gcp, metadata.serving("azure") as azure:
        yield {"aws": aws, "gcp": gcp, "azure": azure}


@pytest.fixture
def aws() -> Iterator[Metadata]:
    with metadata.serving("aws") as known:
        yield known


@pytest.fixture
def azure() -> Iterator[Metadata]:
    with metadata.serving("azure") as known:
        yield known


def cloud_of(server: Metadata) -> Cloud:
    return find_cloud(server.cloud, server.url)


def test_there_is_a_notice_once_the_machine_is_interrupted(server: Metadata) -> None:
    cloud = cloud_of(server)
    assert cloud.notices() == []
    deadline = server.interrupt(28)
    (notice,) = cloud.notices()
    assert not notice.advisory
    assert notice.deadline == pytest.approx(deadline, abs=3)
    assert cloud.notices() == [notice]


def test_the_cloud_is_found_by_its_answers(server: Metadata) -> None:
    assert find_cloud(url=server.url).name == server.cloud
    server.status = 500
    with pytest.raises(MetadataError, match="no metadata server of gcp, aws, azure answers"):
        find_cloud(url=server.url)


def test_the_machine_is_told(server: Metadata) -> None:
    assert (
        cloud_of(server).machine()
        == {
            "aws": Machine("i-0abc", "us-west-2b", "g5.xlarge"),
            "gcp": Machine("4711", "us-central1-a", "g2-standard-8"),
            "azure": Machine("worker-7", "westeurope-2", "Standard_NC24ads_A100_v4"),
        }[server.cloud]
    )


@pytest.mark.parametrize("status", [204, 302, 400, 403, 404, 429, 500, 503])
def test_an_error_answer_is_no_notice(server: Metadata, status: int) -> None:
    cloud = cloud_of(server)
    server.interrupt(28)
    server.status = status
    with pytest.raises(MetadataError):
        cloud.notices()
    server.status = None
    assert len(cloud.notices()) == 1


def test_an_outage_is_no_notice(server: Metadata) -> None:
    cloud = find_cloud(server.cloud, "http://127.0.0.1:9")
    with pytest.raises(MetadataError, match="refused"):
        cloud.notices()
    assert not cloud.is_here()


def test_silence_is_no_notice(monkeypatch: pytest.MonkeyPatch, server: Metadata) -> None:
    monkeypatch.setattr(MetadataServer.__init__, "__defaults__", (0.2,))
    cloud = cloud_of(server)
    server.silent = True
    with pytest.raises(MetadataError, match="timed out"):
        cloud.notices()


def test_an_answer_that_trickles_is_cut_off(server: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.spot.metadata.MAX_BYTES", 10)
    server.body = "x" * 11
    with pytest.raises(MetadataError, match="does not end"):
        MetadataServer(server.url).get("/", {})


def test_no_proxy_is_asked(server: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert cloud_of(server).notices() == []


def json_values() -> st.SearchStrategy[Any]:
    words = st.sampled_from(["action", "time", "Events", "EventType", "Preempt", "terminate", "Resources", "worker-7"])
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | words
    return st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(words | st.text(), inner), max_leaves=8)


@given(
    name=st.sampled_from(NAMES),
    body=st.text().filter(lambda text: text.strip() != "TRUE") | json_values().map(json.dumps),
)
def test_a_malformed_body_is_no_notice(servers: dict[str, Metadata], name: str, body: str) -> None:
    server = servers[name]
    server.body = body
    try:
        assert cloud_of(server).notices() == []
    except MetadataError:
        pass
    finally:
        server.body = None


@given(
    name=st.sampled_from(NAMES),
    raw=st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"HTTP/1.1 200 OK\r\n" + b),
)
def test_garbage_on_the_wire_is_no_notice(servers: dict[str, Metadata], name: str, raw: bytes) -> None:
    server = servers[name]
    cloud = cloud_of(server)
    server.raw = raw
    try:
        assert cloud.notices() == []
    except MetadataError:
        pass
    finally:
        server.raw = None
    assert cloud.notices() == []


@given(token=st.text(max_size=30))
def test_a_garbled_token_is_no_notice(servers: dict[str, Metadata], token: str) -> None:
    server = servers["aws"]
    server.body = token
    cloud = AWS(server.url)
    cloud._token, cloud._renew_at = token, time.monotonic() + 60
    try:
        assert cloud.notices() == []
    except MetadataError:
        pass
    finally:
        server.body = None


@pytest.mark.parametrize("kind", ["terminate", "stop", "hibernate"])
def test_aws_kinds(aws: Metadata, kind: str) -> None:
    aws.interrupt(120)
    assert isinstance(aws.action, dict)
    aws.action["action"] = kind
    assert [notice.kind for notice in AWS(aws.url).notices()] == [kind]


@pytest.mark.parametrize(
    "action",
    [
        "terminate",
        {"action": "terminate"},
        {"action": "terminate", "time": "soon"},
        {"action": "reboot", "time": "2025-03-31T16:34:24Z"},
        {"action": "terminate", "time": "2025-03-31T16:34:24Z"},
        {"action": "terminate", "time": "9999-12-31T23:59:59Z"},
        {"action": ["terminate"], "time": 17},
    ],
)
def test_aws_actions_that_are_none(aws: Metadata, action: Any) -> None:
    aws.action = action
    with pytest.raises(MetadataError):
        AWS(aws.url).notices()


def test_aws_advice_is_told_and_hides_no_interruption(aws: Metadata) -> None:
    cloud = AWS(aws.url)
    aws.rebalance = {"noticeTime": "2025-03-31T16:34:24Z"}
    (advice,) = cloud.notices()
    assert advice.advisory
    assert advice.deadline is None
    aws.interrupt(120)
    aws.rebalance = "garbage"
    assert [notice.kind for notice in cloud.notices()] == ["terminate"]


def test_aws_token_is_kept_renewed_in_time_and_when_it_is_refused(aws: Metadata) -> None:
    cloud = AWS(aws.url)
    for _ in range(3):
        assert cloud.notices() == []
    assert aws.num_tokens == 1
    aws.tokens.clear()
    assert cloud.notices() == []
    assert aws.num_tokens == 2
    cloud._renew_at = time.monotonic() - 1
    assert cloud.notices() == []
    assert aws.num_tokens == 3


def test_gcp_answers_are_google_s(aws: Metadata) -> None:
    aws.body = "TRUE"
    with pytest.raises(MetadataError, match="not the metadata server"):
        GCP(aws.url).notices()


def test_azure_events_of_others_and_of_other_kinds_are_not_ours(azure: Metadata) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    azure.events = [
        metadata.event("Preempt", "worker-8", soon),
        metadata.event("Preempt", "worker-70", soon),
        metadata.event("Reboot", "worker-7", soon),
        metadata.event("Preempt", "worker-7", soon, status="Canceled"),
        metadata.event("Preempt", "worker-7", soon, status="Completed"),
        None,
    ]
    cloud = Azure(azure.url)
    assert cloud.notices() == []
    azure.events.append(metadata.event("Preempt", "WORKER-7", soon))
    (notice,) = cloud.notices()
    assert notice.deadline == pytest.approx(soon.timestamp(), abs=1)


def test_azure_events_that_have_begun_are_due_now(azure: Metadata) -> None:
    azure.events = [metadata.event("Preempt", "worker-7", None, status="Started")]
    cloud = Azure(azure.url)
    before = time.time()
    (notice,) = cloud.notices()
    assert notice.deadline is not None
    assert before <= notice.deadline <= time.time()
    assert cloud.notices() == [notice]


@pytest.mark.parametrize("url", ["https://host", "host:80", "http://", "file:///etc/passwd"])
def test_another_place_is_a_plain_http_one(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--metadata-url: .* is not http://HOST"):
        find_cloud("aws", url)


def test_every_cloud_can_be_named() -> None:
    assert {find_cloud(name).name for name in CLOUDS} == set(NAMES)
