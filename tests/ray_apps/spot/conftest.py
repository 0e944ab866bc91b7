"""EC2 for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.ray_apps.spot import aws


@pytest.fixture(scope="module")
def ec2_service() -> Iterator[None]:
    """moto's EC2 in this process."""
    with aws.service():
        yield


@pytest.fixture
def cloud(ec2_service: None) -> Iterator[aws.Cloud]:
    """The calls to it, seen and broken at will."""
    with aws.cloud() as made:
        yield made
