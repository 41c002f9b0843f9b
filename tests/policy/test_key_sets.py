"""Key sets are reduced to what Envoy takes; the key that stands for none is one that nobody can sign with."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from meltemi.translate.key_sets import NO_KEYS, UNUSABLE_KEY, usable_keys
from policy.tokens import Issuer

GOOD = json.loads(Issuer("x").keys)["keys"][0]


def _b64(number: int) -> str:
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_nobody_has_the_unusable_key() -> None:
    """Its point comes from a hash, so its private half is unknown; and it is a point."""
    x = base64.urlsafe_b64decode(UNUSABLE_KEY["x"] + "=")
    assert x == hashlib.sha256(b"meltemi: a key that nobody has 0").digest()
    assert not usable_keys(NO_KEYS)[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"keys":{}}',
        '{"keys":[]}',
        '{"keys":[1]}',
        '{"keys":[{"kty":"oct","k":"YQ"}]}',
    ]
    + [
        json.dumps({"keys": [{**GOOD, name: bad}]})
        for name in ("x", "crv", "alg", "kty")
        for bad in ("", "AA", 1)
        if (name, bad) != ("alg", "")
    ],
)
def test_unusable_sets(text: str) -> None:
    """No key is left, and somebody is told why."""
    keys, problems = usable_keys(text)
    assert keys == NO_KEYS
    assert problems


def test_good_keys_stay_without_private_parts() -> None:
    """RSA and EC; what a proxy need not know is taken off."""
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    entry = {"kty": "RSA", "n": _b64(numbers.n), "e": _b64(numbers.e), "d": "secret", "kid": "r"}
    keys, problems = usable_keys(json.dumps({"keys": [entry, {**GOOD, "d": "secret"}]}))
    assert not problems
    assert [key["kty"] for key in json.loads(keys)["keys"]] == ["RSA", "EC"]
    assert "secret" not in keys
