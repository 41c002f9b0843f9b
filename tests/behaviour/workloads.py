"""A short way to write workloads and their Services."""

from __future__ import annotations


def pods(name: str, labels: str, spec: str = "", kind: str = "Deployment", more: str = "") -> str:
    """A workload; texts are in flow style."""
    ports = spec or "containers: [{name: app}]"
    return (
        f"---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n"
        f"spec: {{{more}template: {{metadata: {{labels: {{{labels}}}}}, "
        f"spec: {{serviceAccountName: {name}, {ports}}}}}}}\n"
    )


def service(name: str, ports: str, more: str = "", selector: str = "") -> str:
    """A Service over app ``name``, or another selector."""
    return (
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{selector: {{{selector or 'app: ' + name}}}, ports: [{ports}]{more}}}\n"
    )
