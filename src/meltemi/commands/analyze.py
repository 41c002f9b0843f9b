"""``analyze``: mistakes that only show when objects are seen together, in files, in a cluster, or in both.

Exit code 79 when something of at least the failure threshold was found, as istioctl's.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import click

from meltemi.commands.cluster import connection_flags
from meltemi.commands.failure import EX_ANALYZE, run
from meltemi.commands.validate import as_json, files_of, read_source
from meltemi.model.origin import Finding, Level

_RANK = {Level.INFO: 0, Level.WARNING: 1, Level.ERROR: 2}
_LEVELS = {level.value: level for level in Level}
# What the analyzers read beside the mesh's own kinds.
_KUBERNETES = (
    ("v1", "namespaces"),
    ("v1", "nodes"),
    ("v1", "services"),
    ("v1", "pods"),
    ("v1", "secrets"),
    ("discovery.k8s.io/v1", "endpointslices"),
)


@click.command()
@click.argument("paths", nargs=-1)
@click.option(
    "-k",
    "--use-kube",
    "cluster",
    type=bool,
    is_flag=False,
    flag_value=True,
    default=None,
    help="look at the cluster too; --use-kube=false for files alone",
)
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True)
@click.option("-n", "--namespace", default="", help="namespace whose findings to show")
@click.option("--failure-threshold", type=click.Choice(list(_LEVELS)), default="Error")
@click.option("--output-threshold", type=click.Choice(list(_LEVELS)), default="Info")
@click.option("-o", "--output", type=click.Choice(["log", "json", "yaml"]), default="log")
@connection_flags
def analyze(
    paths: tuple[str, ...],
    cluster: bool | None,
    everywhere: bool,
    namespace: str,
    failure_threshold: str,
    output_threshold: str,
    output: str,
    kubeconfig: str,
    context: str,
) -> int:
    """Find mistakes in files, in the cluster, or in files as if they were applied to it."""
    from meltemi.analyze.analysis import analyze as find
    from meltemi.config.decode import load, parse_yaml

    use_cluster = cluster if cluster is not None else not paths
    configs: dict[Any, Any] = {}
    findings: list[Finding] = []
    where = namespace
    if use_cluster:
        objects, default_namespace = run(_from_cluster(kubeconfig, context))
        where = "" if everywhere else namespace or default_namespace
        for body in objects:
            config, found = load(body)
            findings += found
            if config is not None:
                configs[config.key] = config
    for path in files_of(paths):
        raws, unreadable = parse_yaml(*read_source(path))
        findings += unreadable
        for raw in raws:
            if raw.kind != "Namespace" and not raw.namespace:
                metadata = {**raw.metadata, "namespace": namespace or "default"}
                raw = replace(raw, metadata=metadata)
            config, found = load(raw)
            findings += found
            if config is not None:
                configs[config.key] = config
    findings += find(configs.values(), whole=use_cluster)
    shown = [
        finding
        for finding in findings
        if _RANK[finding.level] >= _RANK[_LEVELS[output_threshold]]
        and (
            not use_cluster
            or not where
            or finding.origin.source
            or finding.origin.namespace in ("", where)
        )
    ]
    _print(shown, output, where)
    worst = max((_RANK[finding.level] for finding in shown), default=-1)
    return EX_ANALYZE if worst >= _RANK[_LEVELS[failure_threshold]] else 0


def _print(findings: list[Finding], output: str, namespace: str) -> None:
    if output == "json":
        click.echo(json.dumps([as_json(finding) for finding in findings], indent=2))
    elif output == "yaml":
        import yaml

        click.echo(
            yaml.safe_dump([as_json(finding) for finding in findings], sort_keys=False), nl=False
        )
    else:
        for finding in findings:
            click.echo(str(finding))
        if not findings:
            place = f" in namespace {namespace}" if namespace else ""
            click.echo(f"No validation issues found{place}.")


async def _from_cluster(kubeconfig: str, context: str) -> tuple[list[dict[str, Any]], str]:
    """Every object that the analyzers read, and the connection's namespace."""
    from meltemi.adapters import kube_connection
    from meltemi.adapters.kube_api import KubeApi
    from meltemi.config.kinds import KINDS

    connection = kube_connection.load(kubeconfig, context)
    wanted = [*_KUBERNETES]
    wanted += [(f"{info.group}/{info.versions[0]}", info.plural) for info in KINDS.values()]
    async with KubeApi(connection, "meltemi") as api:
        listed = await asyncio.gather(*(api.list(*kind) for kind in wanted))
    return [item for items in listed for item in items], connection.namespace
