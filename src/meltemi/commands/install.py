"""``install``, ``uninstall`` and ``manifest generate``: the installer from the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click
import yaml

from meltemi.commands.cluster import connection_flags, dump_documents, read_documents
from meltemi.commands.failure import EX_USAGE, CommandError, run
from meltemi.install.profiles import merge
from meltemi.install.render import Installation, render

API = "install.istio.io/v1alpha1"
NAME = "installed-state"


def operator_spec(files: Iterable[str], sets: Iterable[str], revision: str) -> dict[str, Any]:
    """The IstioOperator spec of files, laid over one another, with ``--set path=value`` on top."""
    spec: dict[str, Any] = {}
    for document in read_documents(files):
        if document["kind"] != "IstioOperator":
            raise CommandError(
                f"{document['kind']} in a file of -f: only IstioOperator is read here"
            )
        _check(document)
        spec = merge(spec, document.get("spec") or {})
    for setting in sets:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise CommandError(f"--set {setting}: write path=value", EX_USAGE)
        try:
            value: Any = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise CommandError(f"--set {setting}: the value is not YAML", EX_USAGE) from error
        spec = merge(spec, _nested(spec, _steps(path), value, setting))
    if revision:
        spec["revision"] = revision
    _check({"apiVersion": API, "kind": "IstioOperator", "metadata": {"name": NAME}, "spec": spec})
    return spec


def _steps(path: str) -> list[str | int]:
    """``a.b[0].c`` as its steps. A dot inside a name is written ``\\.``, as in Helm."""
    steps: list[str | int] = []
    for part in path.replace("\\.", "\0").split("."):
        name, *indexes = re.split(r"\[(\d+)\]", part)
        steps.append(name.replace("\0", "."))
        steps += [int(index) for index in indexes if index]
    return steps


def _nested(under: Any, steps: list[str | int], value: Any, setting: str) -> Any:
    """``value`` at the place that ``steps`` name; of lists on the way, which a merge replaces, all of ``under``."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(step, str):
        below = under.get(step) if isinstance(under, dict) else None
        return {step: _nested(below, rest, value, setting)}
    entries = list(under) if isinstance(under, list) else []
    if step > len(entries):
        raise CommandError(f"--set {setting}: entry {len(entries)} comes before {step}", EX_USAGE)
    old = entries[step] if step < len(entries) else None
    new = _nested(old, rest, value, setting)
    entries[step:] = [merge(old, new) if old is not None else new, *entries[step + 1 :]]
    return entries


def _check(document: dict[str, Any]) -> None:
    from meltemi.config.decode import load
    from meltemi.model.origin import Level

    _, findings = load(document)
    errors = [str(finding) for finding in findings if finding.level is Level.ERROR]
    if errors:
        raise CommandError("\n".join(errors))
    for finding in findings:
        if finding.level is Level.WARNING:
            click.echo(str(finding), err=True)


def _rendered(spec: dict[str, Any]) -> Installation:
    from meltemi.config.crds import crd_manifests

    try:
        return render(NAME, spec.get("namespace") or "istio-system", spec, crd_manifests())
    except ValueError as error:
        raise CommandError(str(error)) from error


_FILE = click.option(
    "-f", "--filename", "files", multiple=True, help="IstioOperator file; - reads standard input"
)
_SET = click.option("-s", "--set", "sets", multiple=True, help="path=value, e.g. profile=demo")
_REVISION = click.option("-r", "--revision", default="", help="revision of the control plane")


@click.command()
@_FILE
@_SET
@_REVISION
@click.option("-y", "--skip-confirmation", is_flag=True, help="do not ask")
@click.option("--readiness-timeout", default=300.0, help="seconds to wait for each component")
@connection_flags
def install(
    files: tuple[str, ...],
    sets: tuple[str, ...],
    revision: str,
    skip_confirmation: bool,
    readiness_timeout: float,
    kubeconfig: str,
    context: str,
) -> None:
    """Install or change the mesh in a cluster."""
    from meltemi.commands.progress import Steps

    spec = operator_spec(files, sets, revision)
    installation = _rendered(spec)
    profile = installation.context.spec["profile"]
    if not skip_confirmation:
        click.confirm(
            f"This will install the mesh with profile {profile!r} into the cluster. Proceed?",
            abort=True,
        )

    async def work() -> None:
        from meltemi.adapters import kube_connection
        from meltemi.adapters.installer import Installer
        from meltemi.adapters.kube_api import KubeApi
        from meltemi.install.plan import ComponentHealth, overall

        async with KubeApi(kube_connection.load(kubeconfig, context), "meltemi-install") as api:
            with Steps() as steps:

                async def report(health: ComponentHealth) -> None:
                    if health.status == "RECONCILING":
                        steps.begin(health.name, f"{health.name}")
                    else:
                        steps.end(health.name, health.error)

                installer = Installer(api, ready_timeout_s=readiness_timeout)
                healths = await installer.install(installation, report)
        if overall(healths) == "ERROR":
            raise CommandError("the installation is not complete: see above")

    run(work())
    click.echo("Installation complete")


@click.command()
@click.option(
    "--purge",
    is_flag=True,
    help="remove every installation, the operator, the CRDs with all their objects",
)
@click.option("-r", "--revision", default="", help="remove this revision only")
@click.option("-y", "--skip-confirmation", is_flag=True, help="do not ask")
@connection_flags
def uninstall(
    purge: bool, revision: str, skip_confirmation: bool, kubeconfig: str, context: str
) -> None:
    """Remove the mesh from a cluster."""
    if not purge and not revision:
        raise CommandError("say what to remove: --purge (everything) or --revision NAME", EX_USAGE)
    if not skip_confirmation:
        what = (
            "all of the mesh and its operator, its CRDs and every object of their kinds, and its authority"
            if purge
            else f"revision {revision}"
        )
        click.confirm(f"This will remove {what}. Proceed?", abort=True)

    async def work() -> tuple[int, list[str]]:
        from meltemi.adapters import kube_connection
        from meltemi.adapters.installer import Installer
        from meltemi.adapters.kube_api import KubeApi
        from meltemi.adapters.uninstaller import Uninstaller

        count = 0
        async with KubeApi(kube_connection.load(kubeconfig, context), "meltemi-install") as api:
            uninstaller = Uninstaller(api)
            gone = uninstaller.purge() if purge else Installer(api).remove_revision(revision)
            async for label in gone:
                click.echo(f"removed {label}")
                count += 1
            return count, uninstaller.kept

    count, kept = run(work())
    for text in kept:
        click.echo(f"kept {text}")
    click.echo("Uninstall complete" if count else "Nothing to remove")


@click.group()
def manifest() -> None:
    """What an installation consists of."""


@manifest.command()
@_FILE
@_SET
@_REVISION
def generate(files: tuple[str, ...], sets: tuple[str, ...], revision: str) -> None:
    """Print the objects of an installation as YAML, in the order to apply them."""
    installation = _rendered(operator_spec(files, sets, revision))
    click.echo(dump_documents(installation.manifests), nl=False)
