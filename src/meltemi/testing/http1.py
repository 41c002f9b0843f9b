"""HTTP/1.1 for clients of the rig, on a socket that is connected already.

In: method, path, headers, body. Out: status, header fields, body. Blocking, with a deadline on the socket.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Answer:
    """An answer as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    version: str = "1.1"
    trailers: list[tuple[str, str]] = field(default_factory=list)
    reusable: bool = False


class Broken(ConnectionError):
    """The connection ended before the answer did."""


def encode_request(
    method: str, path: str, host: str, headers: Mapping[str, str], body: bytes
) -> bytes:
    """The request's bytes. A header of the caller wins over ours of the same name."""
    given = {name.lower() for name in headers}
    lines = [f"{method} {path} HTTP/1.1"]
    if "host" not in given:
        lines.append(f"host: {host}")
    if body and not given & {"content-length", "transfer-encoding"}:
        lines.append(f"content-length: {len(body)}")
    elif method in ("POST", "PUT", "PATCH") and not body and "content-length" not in given:
        lines.append("content-length: 0")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8") + body


def exchange(
    connection: socket.socket,
    method: str,
    path: str,
    host: str,
    headers: Mapping[str, str],
    body: bytes = b"",
) -> Answer:
    """One request and its answer. Raises Broken, TimeoutError."""
    try:
        connection.sendall(encode_request(method, path, host, headers, body))
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        content = response.read()
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise Broken(str(error) or type(error).__name__) from error
    version = "1.0" if response.version == 10 else "1.1"
    return Answer(
        response.status,
        response.getheaders(),
        content,
        version,
        reusable=not response.will_close,
    )
