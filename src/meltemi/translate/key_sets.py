"""Key sets that users wrote, reduced to the keys that a proxy can use.

Envoy refuses a whole listener for one key that it cannot read, so every key is read here first. In: JSON text. Out: JSON text
that Envoy takes, and what is wrong with the keys that were left out. With no key left there is one that nobody can sign
with, so that every token of the issuer is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

# A point of P-256 whose x is the first SHA-256 of "meltemi: a key that nobody has <n>" that is one (n = 0): nobody knows its
# private key.
UNUSABLE_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ES256",
    "kid": "none",
    "x": "LYujzcvNay5pfTdUyXZnFYu-ZVT-dMXlHgMxBlJIb54",
    "y": "miSpSlP918rwgiiGlqXllU8r-p4CD04I8ciWJfPZpm0",
}
NO_KEYS = json.dumps({"keys": [UNUSABLE_KEY]}, separators=(",", ":"), sort_keys=True)
_CURVES: dict[str, tuple[type[ec.EllipticCurve], int, str]] = {
    "P-256": (ec.SECP256R1, 32, "ES256"),
    "P-384": (ec.SECP384R1, 48, "ES384"),
    "P-521": (ec.SECP521R1, 66, "ES512"),
}
_RSA_ALGORITHMS = ("", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_RSA_BITS = range(1024, 16385)


def _bytes(key: dict[str, Any], name: str) -> bytes:
    text = key.get(name)
    if not isinstance(text, str) or not text or "=" in text:
        raise ValueError(f"{name} is missing or not base64url")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is not base64url") from None


def _number(key: dict[str, Any], name: str) -> int:
    return int.from_bytes(_bytes(key, name), "big")


def _check_ec(key: dict[str, Any], algorithm: str) -> None:
    curve, size, wanted = _CURVES.get(key.get("crv", ""), (None, 0, ""))
    if curve is None:
        raise ValueError(f"crv is none of {', '.join(_CURVES)}")
    if algorithm not in ("", wanted):
        raise ValueError(f"alg {algorithm} does not go with this curve")
    if len(_bytes(key, "x")) > size or len(_bytes(key, "y")) > size:
        raise ValueError("x or y is too long")
    ec.EllipticCurvePublicNumbers(_number(key, "x"), _number(key, "y"), curve()).public_key()


def _check_rsa(key: dict[str, Any], algorithm: str) -> None:
    if algorithm not in _RSA_ALGORITHMS:
        raise ValueError(f"alg {algorithm} is not one of RSA")
    modulus, exponent = _number(key, "n"), _number(key, "e")
    if modulus.bit_length() not in _RSA_BITS or not modulus & 1:
        raise ValueError("n is not a modulus of 1024 to 16384 bits")
    if not exponent & 1 or not 3 <= exponent < 1 << 32:
        raise ValueError("e is not a public exponent")
    rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _check_okp(key: dict[str, Any], algorithm: str) -> None:
    if key.get("crv") != "Ed25519" or algorithm not in ("", "EdDSA"):
        raise ValueError("only Ed25519 is supported")
    ed25519.Ed25519PublicKey.from_public_bytes(_bytes(key, "x"))


_CHECKS = {"EC": _check_ec, "RSA": _check_rsa, "OKP": _check_okp}
# What Envoy reads of a key.
_FIELDS = ("kty", "kid", "alg", "use", "crv", "x", "y", "n", "e")


def _usable(key: Any) -> dict[str, str]:
    """The key with its public fields only, all text. Raises ValueError."""
    if not isinstance(key, dict):
        raise ValueError("is not an object")
    check = _CHECKS.get(key["kty"]) if isinstance(key.get("kty"), str) else None
    if check is None:
        raise ValueError(f"kty is none of {', '.join(_CHECKS)}")
    made = {name: key[name] for name in _FIELDS if key.get(name) not in (None, "")}
    for name, text in made.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} is not a string")
    check(made, made.get("alg", ""))
    return made


def usable_keys(text: str) -> tuple[str, tuple[str, ...]]:
    """(key set, problems) for a key set in JSON."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return NO_KEYS, ("the key set is not JSON",)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return NO_KEYS, ('the key set has not the form {"keys": [...]}',)
    good, problems = [], []
    for index, entry in enumerate(entries):
        try:
            good.append(_usable(entry))
        except ValueError as problem:
            problems.append(f"keys[{index}]: {problem}")
    if not good:
        return NO_KEYS, (*problems, "no key is left")
    return json.dumps({"keys": good}, separators=(",", ":"), sort_keys=True), tuple(problems)
