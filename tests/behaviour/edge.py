"""Short ways to write the gateways that tests talk about."""

from __future__ import annotations

import base64
from collections.abc import Mapping


def gateway(
    servers: str,
    *,
    name: str = "edge",
    namespace: str = "default",
    selector: str = "{istio: ingressgateway}",
) -> str:
    """A Gateway. ``servers`` is a list in YAML, one ``- {...}`` per line."""
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\n"
        f"spec:\n  selector: {selector}\n  servers:\n{_indented(servers)}\n"
    )


def routes(
    rules: str,
    *,
    hosts: str = '["*"]',
    gateways: str = "[edge]",
    name: str = "edge",
    namespace: str = "default",
    kind: str = "http",
) -> str:
    """A VirtualService with one kind of rules, a list in YAML."""
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\n"
        f"spec:\n  hosts: {hosts}\n  gateways: {gateways}\n  {kind}:\n{_indented(rules)}\n"
    )


def to(host: str, port: int = 9080, subset: str = "") -> str:
    """A rule (without conditions) that sends everything to one destination."""
    more = f", subset: {subset}" if subset else ""
    return f"- route: [{{destination: {{host: {host}, port: {{number: {port}}}{more}}}}}]"


def secret(
    name: str,
    data: Mapping[str, str],
    *,
    namespace: str = "istio-system",
    kind: str = "Opaque",
) -> str:
    """A Secret."""
    lines = "".join(
        f"  {key}: {base64.b64encode(text.encode()).decode()}\n" for key, text in data.items()
    )
    return (
        f"---\napiVersion: v1\nkind: Secret\ntype: {kind}\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\ndata:\n{lines}"
    )


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.strip("\n").split("\n"))


HTTP = '- {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}'
