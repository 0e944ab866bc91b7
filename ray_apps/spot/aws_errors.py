"""What an AWS error speaks of, and so what may be tried next. Knows no client: errors are judged by what they carry."""

from enum import Enum
from typing import Any


class Blame(Enum):
    """What a failed request for machines says, from the narrowest to the widest."""

    POOL = "pool"
    """No capacity at the price for an instance type in a zone, for now: another zone or type may have some."""
    OFFER = "offer"
    """The instance type is not to be had in the zone at all."""
    ZONE = "zone"
    """The zone takes no machine of any type, for now."""
    REGION = "region"
    """A quota of the account in the region, for the purchase kind: another region may have room."""
    RETRY = "retry"
    """Nothing is known: the service is busy or out of reach. The same request, later, with the same client token."""
    STOP = "stop"
    """Credentials, rights or the request itself: it fails the same everywhere."""


CODES = {
    "InsufficientInstanceCapacity": Blame.POOL,
    "InsufficientHostCapacity": Blame.POOL,
    "InsufficientCapacity": Blame.POOL,
    "UnfulfillableCapacity": Blame.POOL,
    "SpotMaxPriceTooLow": Blame.POOL,
    "NoOffer": Blame.POOL,
    "GangTimeout": Blame.POOL,
    "SpotInstanceTermination": Blame.POOL,
    "SpotInstanceShutdown": Blame.POOL,
    "Unsupported": Blame.OFFER,
    "InsufficientFreeAddressesInSubnet": Blame.ZONE,
    "InsufficientAddressCapacity": Blame.ZONE,
    "InsufficientVolumeCapacity": Blame.ZONE,
    "MaxSpotInstanceCountExceeded": Blame.REGION,
    "VcpuLimitExceeded": Blame.REGION,
    "InstanceLimitExceeded": Blame.REGION,
    "VolumeLimitExceeded": Blame.REGION,
    "PendingVerification": Blame.REGION,
    "OptInRequired": Blame.REGION,
    "RequestLimitExceeded": Blame.RETRY,
    "Throttling": Blame.RETRY,
    "ThrottlingException": Blame.RETRY,
    "RequestThrottled": Blame.RETRY,
    "RequestThrottledException": Blame.RETRY,
    "TooManyRequestsException": Blame.RETRY,
    "InternalError": Blame.RETRY,
    "InternalFailure": Blame.RETRY,
    "ServiceUnavailable": Blame.RETRY,
    "Unavailable": Blame.RETRY,
    "RequestTimeout": Blame.RETRY,
    "AuthFailure": Blame.STOP,
    "UnauthorizedOperation": Blame.STOP,
    "AccessDenied": Blame.STOP,
    "AccessDeniedException": Blame.STOP,
    "InvalidClientTokenId": Blame.STOP,
    "MissingAuthenticationToken": Blame.STOP,
    "SignatureDoesNotMatch": Blame.STOP,
    "ExpiredToken": Blame.STOP,
    "ExpiredTokenException": Blame.STOP,
    "RequestExpired": Blame.STOP,
    "Blocked": Blame.STOP,
}
"""Codes of EC2's API, and those in an instance's state reason. Any other stops: a request that is wrong stays wrong.

From EC2's table of error codes, <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>.
"""

OUT_OF_REACH = {
    "ConnectionError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "HTTPClientError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "SSLError",
}
"""Names of botocore's errors of which it is not known whether the request arrived."""


def code_of(error: BaseException) -> str:
    """The AWS code of an error, or the name of its class if it is none of AWS's answers."""
    response: Any = getattr(error, "response", None)
    answer = response.get("Error", {}) if isinstance(response, dict) else {}
    return str(answer.get("Code") or type(error).__name__)


def blame_code(code: str) -> Blame:
    """What a code speaks of. `Server.` and `Client.` before the codes of an instance's state reason are passed over."""
    return CODES.get(code.removeprefix("Server.").removeprefix("Client."), Blame.STOP)


def blame(error: BaseException) -> Blame:
    """What an error of a client speaks of."""
    code = code_of(error)
    response: Any = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(response, dict) else 0
    if code in OUT_OF_REACH or (status >= 500 and code not in CODES):
        return Blame.RETRY
    return blame_code(code)


def describe(error: BaseException) -> str:
    """One line: the code, what AWS says, and for errors that stop what would help."""
    response: Any = getattr(error, "response", None)
    answer = response.get("Error", {}) if isinstance(response, dict) else {}
    text = " ".join(f"{code_of(error)}: {answer.get('Message') or error}".split())
    return f"{text} (check the AWS credentials and their rights)" if _is_authentication(error) else text


def _is_authentication(error: BaseException) -> bool:
    code = code_of(error)
    return CODES.get(code) is Blame.STOP or "Credential" in code or "Token" in code
