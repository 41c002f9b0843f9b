"""``version``: of this program; with a cluster at hand also of its control plane."""

from __future__ import annotations

import json
from typing import Any

import click

from meltemi.commands.cluster import connection_flags
from meltemi.install.profiles import VERSION


@click.command()
@click.option("--short", "-s", is_flag=True, help="only the numbers")
@click.option("--remote/--no-remote", default=False, help="ask the cluster too")
@click.option("-o", "--output", type=click.Choice(["", "json", "yaml"]), default="")
@connection_flags
def version(short: bool, remote: bool, output: str, kubeconfig: str, context: str) -> None:
    """Versions of this program and of the control plane."""
    found: dict[str, Any] = {"clientVersion": {"version": VERSION}}
    if remote:
        from meltemi.commands.failure import run

        found["meshVersion"] = run(_control_planes(kubeconfig, context))
    if output == "json":
        click.echo(json.dumps(found, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(found, sort_keys=False), nl=False)
    else:
        click.echo(VERSION if short and not remote else f"client version: {VERSION}")
        for plane in found.get("meshVersion", []):
            click.echo(f"control plane version: {plane['version']} (revision {plane['revision']})")


async def _control_planes(kubeconfig: str, context: str) -> list[dict[str, str]]:
    from meltemi.adapters import kube_connection
    from meltemi.adapters.kube_api import KubeApi

    async with KubeApi(kube_connection.load(kubeconfig, context), "meltemi") as api:
        deployments = await api.list("apps/v1", "deployments", selector="app=istiod")
    return [
        {
            "version": item["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[
                2
            ],
            "revision": item["metadata"]["labels"].get("istio.io/rev", "default"),
        }
        for item in deployments
    ]
