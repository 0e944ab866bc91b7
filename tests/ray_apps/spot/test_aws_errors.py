import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError

from ray_apps.spot.aws_errors import Blame, blame, blame_code, code_of, describe
from tests.ray_apps.spot.aws import client_error, out_of_reach


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("InsufficientInstanceCapacity", Blame.POOL),
        ("UnfulfillableCapacity", Blame.POOL),
        ("SpotMaxPriceTooLow", Blame.POOL),
        ("Unsupported", Blame.OFFER),
        ("InsufficientFreeAddressesInSubnet", Blame.ZONE),
        ("MaxSpotInstanceCountExceeded", Blame.REGION),
        ("VcpuLimitExceeded", Blame.REGION),
        ("RequestLimitExceeded", Blame.RETRY),
        ("AuthFailure", Blame.STOP),
        ("UnauthorizedOperation", Blame.STOP),
        ("InvalidAMIID.NotFound", Blame.STOP),
        ("a code of tomorrow", Blame.STOP),
    ],
)
def test_codes_of_the_api(code: str, expected: Blame) -> None:
    assert blame(client_error(code)) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("Server.InsufficientInstanceCapacity", Blame.POOL),
        ("Server.SpotInstanceTermination", Blame.POOL),
        ("Client.VolumeLimitExceeded", Blame.REGION),
    ],
)
def test_codes_of_state_reasons(code: str, expected: Blame) -> None:
    assert blame_code(code) is expected


def test_what_is_no_answer_of_aws() -> None:
    assert blame(out_of_reach()) is Blame.RETRY
    assert blame(EndpointConnectionError(endpoint_url="https://ec2")) is Blame.RETRY
    assert blame(NoCredentialsError()) is Blame.STOP
    assert blame(ParamValidationError(report="MinCount: 0")) is Blame.STOP


def test_an_unknown_answer_is_tried_again_only_if_it_is_the_services_own_fault() -> None:
    answer = {"Error": {"Code": "503", "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    assert blame(ClientError(answer, "RunInstances")) is Blame.RETRY  # type: ignore[arg-type]
    answer = {"Error": {"Code": "InsufficientInstanceCapacity"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
    assert blame(ClientError(answer, "RunInstances")) is Blame.POOL  # type: ignore[arg-type]


def test_one_line_says_what_would_help() -> None:
    assert code_of(client_error("AuthFailure")) == "AuthFailure"
    assert describe(client_error("AuthFailure")) == (
        "AuthFailure: the message of AuthFailure (check the AWS credentials and their rights)"
    )
    assert describe(NoCredentialsError()).startswith("NoCredentialsError: Unable to locate credentials (check")
    assert "check" not in describe(client_error("VcpuLimitExceeded"))
    assert "\n" not in describe(client_error("x\ny"))
