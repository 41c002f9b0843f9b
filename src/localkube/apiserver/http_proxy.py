"""The proxy subresource of pods and services: plain HTTP to what listens in the cluster.

In: a `Call` whose name is `[scheme:]name[:port]` and whose tail is the path to ask for. Out: the
backend's answer, streamed. Pod addresses are reachable from here directly; upgrades are refused.
"""

from __future__ import annotations

import random
import ssl
from typing import Any

import aiohttp
from aiohttp import web

from localkube.apiserver import errors
from localkube.apiserver.context import Call
from localkube.apiserver.node_proxy import NodeProxy
from localkube.apiserver.tables import dig

JsonObject = dict[str, Any]

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "authorization",
        "content-length",
        "accept-encoding",
    }
)


async def proxy_http(call: Call, proxy: NodeProxy) -> web.StreamResponse:
    """Pass the request on to the named pod or service."""
    scheme, name, port = _split(call.name)
    if call.resource.storage == "services":
        host, number = _service_backend(call, name, port)
    elif call.resource.storage == "pods":
        host, number = _pod_backend(call, name, port)
    else:
        raise errors.no_such_path()
    path = call.info.tail or "/"
    query = call.request.rel_url.raw_query_string
    url = f"{scheme}://{host}:{number}{path}" + (f"?{query}" if query else "")
    headers = {k: v for k, v in call.request.headers.items() if k.lower() not in _HOP_BY_HOP}
    try:
        async with proxy.session().request(
            call.request.method,
            _encoded(url),
            headers=headers,
            data=call.request.content if call.request.can_read_body else None,
            allow_redirects=False,
            ssl=_unverified() if scheme == "https" else True,
        ) as upstream:
            response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            for key, value in upstream.headers.items():
                if key.lower() not in _HOP_BY_HOP:
                    response.headers.add(key, value)
            await response.prepare(call.request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            return response
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise errors.unavailable(f"error trying to reach {name}:{number}: {why}") from None


def _encoded(url: str) -> Any:
    import yarl

    return yarl.URL(url, encoded=True)


def _unverified() -> ssl.SSLContext:
    """Backends have certificates of their own making, as kube-apiserver assumes too."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _split(name: str) -> tuple[str, str, str]:
    parts = name.split(":")
    if len(parts) == 1:
        return "http", parts[0], ""
    if len(parts) == 2:
        return "http", parts[0], parts[1]
    if len(parts) == 3 and parts[0] in ("http", "https", ""):
        return parts[0] or "http", parts[1], parts[2]
    raise errors.bad_request(f'invalid proxy name "{name}": write [scheme:]name[:port]')


def _pod_backend(call: Call, name: str, port: str) -> tuple[str, int]:
    stored = call.server.store.get("pods", call.namespace, name)
    if stored is None:
        raise errors.not_found("pods", name)
    address = dig(stored.object, "status.podIP", "")
    if not address:
        raise errors.bad_request("address not allowed: the pod has no address yet")
    if port:
        return str(address), _number(port)
    for container in dig(stored.object, "spec.containers", ()):
        for one in container.get("ports") or ():
            return str(address), int(one["containerPort"])
    return str(address), 80


def _number(port: str) -> int:
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.bad_request(f'invalid port "{port}"')
    return int(port)


def _service_backend(call: Call, name: str, port: str) -> tuple[str, int]:
    store = call.server.store
    stored = store.get("services", call.namespace, name)
    if stored is None:
        raise errors.not_found("services", name)
    ports = dig(stored.object, "spec.ports", [])
    chosen = _service_port(name, ports, port)
    backends: list[tuple[str, int]] = []
    for slice_ in store.list("endpointslices.discovery.k8s.io", call.namespace):
        labels = slice_.object["metadata"].get("labels") or {}
        if labels.get("kubernetes.io/service-name") != name:
            continue
        for one in slice_.object.get("ports") or ():
            if (one.get("name") or "") != (chosen.get("name") or "") or not one.get("port"):
                continue
            for endpoint in slice_.object.get("endpoints") or ():
                if dig(endpoint, "conditions.ready", True):
                    backends += [(ip, int(one["port"])) for ip in endpoint.get("addresses") or ()]
    if not backends:
        raise errors.unavailable(f'no endpoints available for service "{name}"')
    return random.choice(backends)  # noqa: S311 - spreads load, decides nothing


def _service_port(name: str, ports: list[JsonObject], wanted: str) -> JsonObject:
    if not wanted and len(ports) == 1:
        return ports[0]
    for one in ports:
        if wanted in (str(one.get("port")), one.get("name") or ""):
            return one
    raise errors.unavailable(f'no service port "{wanted}" found for service "{name}"')
