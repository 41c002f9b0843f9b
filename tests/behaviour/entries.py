"""A short way to write ServiceEntries."""

from __future__ import annotations

CLOSED = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"


def entry(name: str, spec: str, namespace: str = "default", labels: str = "{}") -> str:
    """A ServiceEntry; ``spec`` is in flow style."""
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n"
        f"metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}\nspec: {{{spec}}}\n"
    )


HTTP = "ports: [{number: 80, name: http, protocol: HTTP}]"
TCP = "ports: [{number: 5000, name: tcp, protocol: TCP}]"
