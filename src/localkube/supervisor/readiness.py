"""Questions to a cluster's API server, asked synchronously by the supervisor and the CLI.

In: a state directory. Out: decoded answers, or None while there is no answer. Uses the
administrator's certificate from the state directory and nothing but the standard library, because
it is on the way to a fast start.
"""

import http.client
import json
import ssl
from typing import Any

from localkube.supervisor.state import StateDirectory


class ApiProbe:
    """Asks one API server on 127.0.0.1, over one kept connection."""

    def __init__(self, state: StateDirectory, port: int) -> None:
        self._state = state
        self._port = port
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPSConnection | None = None

    def get(self, path: str, timeout: float = 1.0) -> tuple[int, bytes] | None:
        """(status, body), or None when the server does not answer in time."""
        try:
            if self._connection is None:
                tls = self._context()
                self._connection = http.client.HTTPSConnection(
                    "127.0.0.1", self._port, timeout=timeout, context=tls
                )
            self._connection.request("GET", path)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return None

    def get_json(self, path: str, timeout: float = 1.0) -> dict[str, Any] | None:
        """The decoded body of a 200 answer, else None."""
        answer = self.get(path, timeout)
        if answer is None or answer[0] != 200:
            return None
        document: dict[str, Any] = json.loads(answer[1])
        return document

    def api_ready(self) -> bool:
        """Whether /readyz says ok."""
        answer = self.get("/readyz")
        return answer is not None and answer[0] == 200

    def node_ready(self, name: str) -> bool:
        """Whether the node's Ready condition is true."""
        node = self.get_json(f"/api/v1/nodes/{name}")
        return node is not None and condition_true(node, "Ready")

    def close(self) -> None:
        """Close the connection; the next question opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            pki = self._state.pki
            # FileNotFoundError (an OSError) until the control plane has made the keys.
            tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
            tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
            self._tls = tls
        return self._tls


def condition_true(obj: dict[str, Any], kind: str) -> bool:
    """Whether the status condition `kind` of an object is "True"."""
    for condition in obj.get("status", {}).get("conditions") or []:
        if condition.get("type") == kind:
            return bool(condition.get("status") == "True")
    return False
