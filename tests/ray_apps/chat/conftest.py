from collections.abc import Iterator

import pytest

from tests.ray_apps.chat.scripted import Script, endpoint


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with endpoint(script) as address:
        yield address
