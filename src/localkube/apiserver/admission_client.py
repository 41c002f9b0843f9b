"""Call admission webhooks over TLS.

In: a clientConfig and a body. Out: the decoded answer, or CallError with the text that Kubernetes
would give. Promises: the server's certificate is always verified, against caBundle and for the name
`<service>.<namespace>.svc`; a call ends within its time limit; a body is never larger than the
limit. A Service is reached at one of its ready endpoints, so no VIP is needed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader

ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""An AdmissionReview answer holds at most a patch of one object; objects end at 1.5 MB."""


_ATTEMPTS_PER_ADDRESS = 2


class CallError(Exception):
    """The webhook gave no usable answer; the text says why, in Kubernetes' words."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send a call: `url` as shown to people, and how to reach it."""

    url: str
    addresses: tuple[tuple[str, int], ...]
    """Candidates (host, port), tried in turn until one accepts the connection."""
    server_name: str
    path: str


class WebhookClient:
    """Posts JSON to webhooks. Close it when done."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader
        self._session: aiohttp.ClientSession | None = None
        self._turn = 0

    async def close(self) -> None:
        """Close the connections that are kept for the next call."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, config: Object, body: Object, timeout_s: int) -> Object:
        """The decoded JSON answer. Raises CallError."""
        target = self._resolve(config, timeout_s)
        prefix = f'Post "{target.url}": '
        try:
            context = _context(str(config.get("caBundle") or ""))
        except ssl.SSLError as error:
            raise CallError(
                f"{prefix}unable to load root certificates: caBundle is not PEM certificates"
            ) from error
        try:
            async with asyncio.timeout(timeout_s):
                return await self._post(target, context, msgspec.json.encode(body), prefix)
        except TimeoutError as error:
            raise CallError(f"{prefix}context deadline exceeded") from error

    async def _post(
        self, target: Target, context: ssl.SSLContext, body: bytes, prefix: str
    ) -> Object:
        problem = ""
        for host, port in target.addresses:
            for _ in range(_ATTEMPTS_PER_ADDRESS):
                try:
                    return await self._send(target, host, port, context, body, prefix)
                except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                    problem = f"{prefix}EOF"  # perhaps a kept connection to a server that restarted
                except aiohttp.ClientConnectorCertificateError as error:
                    text = _certificate_text(error.certificate_error)
                    raise CallError(prefix + text) from error
                except aiohttp.ClientConnectorSSLError as error:
                    raise CallError(f"{prefix}tls: {error.strerror or error}") from error
                except aiohttp.ClientConnectorError as error:
                    problem = f"{prefix}dial tcp {host}:{port}: connect: {_os_text(error)}"
                    break
                except (aiohttp.ClientError, OSError) as error:
                    problem = f"{prefix}{error}"
                    break
        raise CallError(problem)

    async def _send(
        self,
        target: Target,
        host: str,
        port: int,
        context: ssl.SSLContext,
        body: bytes,
        prefix: str,
    ) -> Object:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        async with self._session.post(
            f"https://{_bracket(host)}:{port}{target.path}",
            data=body,
            headers={
                "Content-Type": "application/json",
                "Accept": "application/json, */*",
                "User-Agent": "kube-apiserver-admission",
                "Host": urlsplit(target.url).netloc,
            },
            ssl=context,
            server_hostname=target.server_name,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:
            content = await _read(answer, prefix)
            return _decode(answer.status, content)

    def _resolve(self, config: Object, timeout_s: int) -> Target:
        url = config.get("url")
        query = f"timeout={timeout_s}s"
        if url:
            parts = urlsplit(str(url))
            path = parts.path or "/"
            shown = f"https://{parts.netloc}{path}?{query}"
            host, port = parts.hostname or "", parts.port or 443
            return Target(shown, ((host, port),), host, f"{path}?{query}")
        service = config.get("service") or {}
        name, namespace = str(service.get("name") or ""), str(service.get("namespace") or "")
        number = int(service.get("port") or 443)
        path = "/" + str(service.get("path") or "").lstrip("/")
        server_name = f"{name}.{namespace}.svc"
        shown = f"https://{server_name}:{number}{path}?{query}"
        addresses = self._endpoints(namespace, name, number, f'Post "{shown}": ')
        return Target(shown, addresses, server_name, f"{path}?{query}")

    def _endpoints(
        self, namespace: str, name: str, number: int, prefix: str
    ) -> tuple[tuple[str, int], ...]:
        service = self._reader.read("", "services", namespace, name)
        if service is None:
            raise CallError(f'{prefix}service "{name}" not found')
        spec = service.get("spec") or {}
        if spec.get("type") == "ExternalName":
            return ((str(spec.get("externalName") or ""), number),)
        port = next((p for p in spec.get("ports") or () if p.get("port") == number), None)
        if port is None:
            raise CallError(f'{prefix}no service port {number} found for service "{name}"')
        found = sorted(set(self._ready(namespace, name, port.get("name") or "")))
        if not found:
            raise CallError(f'{prefix}no endpoints available for service "{name}"')
        # Calls take turns over the endpoints, and go on to the next where one is unreachable.
        self._turn += 1
        start = self._turn % len(found)
        return tuple(found[start:] + found[:start])

    def _ready(self, namespace: str, service: str, port_name: str) -> Iterator[tuple[str, int]]:
        for piece in self._reader.read_all("discovery.k8s.io", "endpointslices", namespace):
            labels = piece["metadata"].get("labels") or {}
            if labels.get("kubernetes.io/service-name") != service:
                continue
            for port in piece.get("ports") or ():
                if (port.get("name") or "") != port_name or not port.get("port"):
                    continue
                for endpoint in piece.get("endpoints") or ():
                    if (endpoint.get("conditions") or {}).get("ready") is not False:
                        for address in endpoint.get("addresses") or ():
                            yield str(address), int(port["port"])


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@lru_cache(maxsize=64)
def _context(ca_bundle: str) -> ssl.SSLContext:
    """TLS that trusts the (base64) bundle; the machine's authorities when it is empty."""
    if not ca_bundle:
        return ssl.create_default_context()
    try:
        pem = base64.b64decode(ca_bundle).decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ssl.SSLError("not base64") from error
    context = ssl.create_default_context(cadata=pem)
    # Authorities that people make for webhooks often lack the extensions that Python 3.13 wants.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a pinned leaf is an authority, as in Go
    return context


async def _read(answer: aiohttp.ClientResponse, prefix: str) -> bytes:
    content = await answer.content.read(ANSWER_BYTES_MAX + 1)
    while not answer.content.at_eof():
        if len(content) > ANSWER_BYTES_MAX:
            raise CallError(f"{prefix}the answer is larger than {ANSWER_BYTES_MAX} bytes")
        content += await answer.content.read(ANSWER_BYTES_MAX + 1 - len(content))
    return content


def _decode(status: int, content: bytes) -> Object:
    if not 200 <= status < 300:
        text = content[:1024].decode(errors="replace").strip()
        if status >= 500:
            raise CallError(
                f'an error on the server ("{text or "unknown"}") has prevented the request from '
                "succeeding"
            )
        raise CallError(f"the server rejected our request with status {status}: {text}")
    try:
        decoded: Any = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise CallError(f"couldn't get version/kind; json parse error: {error}") from error
    if not isinstance(decoded, dict):
        raise CallError("couldn't get version/kind; json parse error: not an object")
    return decoded


def _certificate_text(error: Exception) -> str:
    reason = getattr(error, "verify_message", "") or str(error)
    words = {
        "unable to get local issuer certificate": "certificate signed by unknown authority",
        "self-signed certificate": "certificate signed by unknown authority",
        "self-signed certificate in certificate chain": "certificate signed by unknown authority",
        "certificate has expired": "certificate has expired or is not yet valid",
        "certificate is not yet valid": "certificate has expired or is not yet valid",
    }
    return f"tls: failed to verify certificate: x509: {words.get(reason, reason)}"


def _os_text(error: aiohttp.ClientConnectorError) -> str:
    number = error.os_error.errno
    return (os.strerror(number) if number and number > 0 else str(error.os_error)).lower()
