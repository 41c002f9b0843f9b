"""``operator init | dump | remove``: the in-cluster operator."""

from __future__ import annotations

from typing import Any

import click

from meltemi.commands.cluster import connection_flags, dump_documents
from meltemi.commands.failure import CommandError, run
from meltemi.install import operator_manifests
from meltemi.install.profiles import HUB, VERSION

READY_TIMEOUT_S = 120.0


def _manifests(hub: str, tag: str, namespace: str, watched: str) -> list[dict[str, Any]]:
    from meltemi.config.crds import crd_manifests

    return operator_manifests.render(
        crd_manifests(), hub=hub, tag=tag, namespace=namespace, watched=watched
    )


@click.group()
def operator() -> None:
    """The in-cluster operator, which keeps the mesh as its IstioOperator resources say."""


_HUB = click.option("--hub", default=HUB, help="where the operator's image comes from")
_TAG = click.option("--tag", default=VERSION, help="version of the operator's image")
_NAMESPACE = click.option("--operatorNamespace", "namespace", default="istio-operator")
_WATCHED = click.option("--watchedNamespaces", "watched", default="", help="all when empty")


@operator.command()
@_HUB
@_TAG
@_NAMESPACE
@_WATCHED
@connection_flags
def init(hub: str, tag: str, namespace: str, watched: str, kubeconfig: str, context: str) -> None:
    """Install the operator and wait until it works."""
    from meltemi.commands.progress import Steps

    manifests = _manifests(hub, tag, namespace, watched)

    async def work() -> None:
        from meltemi.adapters import kube_connection
        from meltemi.adapters.installer import Installer
        from meltemi.adapters.kube_api import KubeApi
        from meltemi.install.render import Component

        async with KubeApi(kube_connection.load(kubeconfig, context), "meltemi-operator") as api:
            with Steps() as steps:
                steps.begin("operator", "Installing the operator")
                # The namespace must be there before what lives in it.
                await api.apply(manifests[0])
                installer = Installer(api, ready_timeout_s=READY_TIMEOUT_S)
                health = await installer.component(Component("operator", tuple(manifests[1:])))
                steps.end("operator", health.error)
        if health.error:
            raise CommandError(health.error)

    run(work())
    click.echo(
        "Operator installed; give it work with: kubectl apply -f samples/istio-manifest.yaml"
    )


@operator.command()
@_HUB
@_TAG
@_NAMESPACE
@_WATCHED
def dump(hub: str, tag: str, namespace: str, watched: str) -> None:
    """Print the operator's manifests."""
    click.echo(dump_documents(_manifests(hub, tag, namespace, watched)), nl=False)


@operator.command()
@_NAMESPACE
@click.option("--force", is_flag=True, help="even while IstioOperator resources exist")
@connection_flags
def remove(namespace: str, force: bool, kubeconfig: str, context: str) -> None:
    """Remove the operator. The mesh that it installed stays."""

    async def work() -> bool:
        from meltemi.adapters import kube_connection
        from meltemi.adapters.kube_api import KubeApi

        async with KubeApi(kube_connection.load(kubeconfig, context), "meltemi-operator") as api:
            managed = await api.list("install.istio.io/v1alpha1", "istiooperators")
            if managed and not force:
                names = ", ".join(
                    f"{item['metadata']['namespace']}/{item['metadata']['name']}"
                    for item in managed
                )
                raise CommandError(
                    f"IstioOperator resources exist ({names}): delete them first, which removes the mesh, "
                    "or use --force to leave the mesh running without its operator"
                )
            for item in managed:
                # Nobody is left to run the finalizer.
                path = await api.path(
                    item["apiVersion"],
                    item["kind"],
                    item["metadata"]["namespace"],
                    item["metadata"]["name"],
                )
                await api.merge_patch(path, {"metadata": {"finalizers": None}})
            gone = False
            for manifest in reversed(_manifests(HUB, VERSION, namespace, "")):
                if manifest["kind"] != "CustomResourceDefinition":
                    gone = await api.delete(manifest) or gone
            return gone

    click.echo("Operator removed" if run(work()) else "There is no operator to remove")
