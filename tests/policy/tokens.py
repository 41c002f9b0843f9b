"""Issuers of JSON Web Tokens for tests: ES256 keys, tokens with any claims, key sets, and a server of them."""

from __future__ import annotations

import base64
import http.server
import json
import socketserver
import threading
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


def key_set(*issuers: Issuer) -> str:
    """The public halves of several in one key set."""
    return json.dumps({"keys": [json.loads(each.keys)["keys"][0] for each in issuers]})


class KeyServer:
    """An issuer: its discovery document and ``keys``, or 503 while there are none."""

    def __init__(self) -> None:
        self.keys = b""
        self.asked = 0
        self.document: dict[str, object] | None = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = outer.keys
                if self.path.endswith("/.well-known/openid-configuration"):
                    body = json.dumps(outer.document).encode() if outer.document else b""
                self.send_response(200 if body else 503)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
