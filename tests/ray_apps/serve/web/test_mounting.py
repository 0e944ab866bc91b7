"""Who comes in to the page, and under which key's name."""

import hashlib

from ray_apps.serve.auth import ApiKeys
from ray_apps.serve.web.mounting import Doorkeeper


def test_a_name_is_of_the_key_that_it_came_with_first() -> None:
    keys = ApiKeys(tuple((name, hashlib.sha256(f"sk-{name}".encode()).digest()) for name in ("ann", "bob")))
    doorkeeper = Doorkeeper(keys)
    assert not doorkeeper.may_enter("me", "sk-eve")
    assert doorkeeper.may_enter("me", "sk-ann")
    assert doorkeeper.may_enter("me", "sk-ann")
    assert not doorkeeper.may_enter("me", "sk-bob")
    assert doorkeeper.may_enter("other", "sk-bob")
    assert [doorkeeper.key_name_of(user) for user in ("me", "other", None)] == ["ann", "bob", "anybody"]
