"""An issuer of JSON Web Tokens for tests: ES256 keys, tokens with any claims, the key set in JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _json(data: dict[str, Any]) -> str:
    return _b64(json.dumps(data, separators=(",", ":")).encode())


@dataclass
class Issuer:
    """One key under one name."""

    name: str
    key_id: str = "k1"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def token(self, **claims: Any) -> str:
        """A signed token; ``iss`` and ``sub`` are there unless told otherwise, None leaves a claim out."""
        payload = {"iss": self.name, "sub": "alice", "exp": 4_000_000_000, **claims}
        payload = {name: value for name, value in payload.items() if value is not None}
        head = {"alg": "ES256", "typ": "JWT", "kid": self.key_id}
        text = f"{_json(head)}.{_json(payload)}"
        der = self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(der)
        return f"{text}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    @property
    def keys(self) -> str:
        """The public half as a key set."""
        numbers = self.key.public_key().public_numbers()
        entry = {
            "kty": "EC",
            "crv": "P-256",
            "alg": "ES256",
            "use": "sig",
            "kid": self.key_id,
            "x": _b64(numbers.x.to_bytes(32, "big")),
            "y": _b64(numbers.y.to_bytes(32, "big")),
        }
        return json.dumps({"keys": [entry]})
