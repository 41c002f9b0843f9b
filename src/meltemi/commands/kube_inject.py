"""``kube-inject``: sidecars in manifests, offline, by the same function that the webhook calls."""

from __future__ import annotations

from pathlib import Path

import click

from meltemi.commands.cluster import connection_flags, dump_documents, read_documents
from meltemi.commands.failure import CommandError, run, why


@click.command(name="kube-inject")
@click.option("-f", "--filename", "path", required=True, help="manifests; - reads standard input")
@click.option("-o", "--output", default="", help="file to write; standard output otherwise")
@click.option("-i", "--istioNamespace", "mesh_namespace", default="istio-system")
@click.option(
    "--meshConfigFile", "mesh_file", default="", help="mesh settings instead of the cluster's"
)
@click.option(
    "--injectConfigFile", "config_file", default="", help="injector's config, with --meshConfigFile"
)
@click.option(
    "--valuesFile", "values_file", default="", help="injector's values, with --meshConfigFile"
)
@click.option("-r", "--revision", default="")
@connection_flags
def kube_inject(
    path: str,
    output: str,
    mesh_namespace: str,
    mesh_file: str,
    config_file: str,
    values_file: str,
    revision: str,
    kubeconfig: str,
    context: str,
) -> None:
    """Print manifests with the sidecar inside."""
    from meltemi.config.mesh import parse_mesh_config
    from meltemi.inject import inject_resource, parse_injection_config
    from meltemi.model.origin import Level

    if mesh_file:
        texts = tuple(_read(name) for name in (mesh_file, config_file, values_file))
    else:
        texts = run(_from_cluster(kubeconfig, context, mesh_namespace, revision))
    mesh, findings = parse_mesh_config(texts[0], mesh_file or "ConfigMap istio")
    bad = [str(finding) for finding in findings if finding.level is Level.ERROR]
    config, problems = parse_injection_config(texts[1], texts[2])
    for problem in (*bad, *problems):
        click.echo(f"Warning: {problem}", err=True)
    made = []
    for document in read_documents([path]):
        resource, result = inject_resource(document, {"istio-injection": "enabled"}, config, mesh)
        name = f"{document['kind']}/{(document.get('metadata') or {}).get('name', '')}"
        if result.error:
            raise CommandError(f"{name}: {result.error}")
        for warning in result.warnings:
            click.echo(f"Warning: {name}: {warning}", err=True)
        made.append(resource)
    text = dump_documents(made)
    if output:
        Path(output).write_text(text, encoding="utf-8")
    else:
        click.echo(text, nl=False)


def _read(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {why(error)}") from error


async def _from_cluster(
    kubeconfig: str, context: str, namespace: str, revision: str
) -> tuple[str, str, str]:
    """The mesh's settings and the injector's, from the cluster's ConfigMaps."""
    from meltemi.adapters import kube_connection
    from meltemi.adapters.kube_api import KubeApi

    suffix = f"-{revision}" if revision else ""
    async with KubeApi(kube_connection.load(kubeconfig, context), "meltemi") as api:
        mesh = await api.find("v1", "ConfigMap", namespace, f"istio{suffix}")
        injector = await api.find("v1", "ConfigMap", namespace, f"istio-sidecar-injector{suffix}")
    if mesh is None or injector is None:
        raise CommandError(
            f"there is no mesh in namespace {namespace}: install one, or give --meshConfigFile"
        )
    data = injector["data"]
    return mesh["data"]["mesh"], data.get("config", ""), data.get("values", "")
