"""``compile``: YAML in, the exact Envoy configuration out, without a cluster.

Exit codes: 0; 1 when an object is wrong. Findings are on standard error, each with file, line, field and remedy; those about
objects that only together are wrong (conflicts, references to nothing) stop nothing, as they would not stop istiod.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from meltemi.commands.failure import EX_USAGE, CommandError
from meltemi.commands.validate import files_of, read_source

if TYPE_CHECKING:
    from meltemi.commands.compiled import Compiled, Compiler
    from meltemi.model.origin import Finding
    from meltemi.registry.offline import OfflineMesh, OfflineProxy


@click.command(name="compile")
@click.option(
    "-f",
    "--filename",
    "paths",
    multiple=True,
    required=True,
    help="file or folder, several times; - reads standard input",
)
@click.argument("more", nargs=-1)
@click.option("--proxy", "wanted", default="", help="POD.NAMESPACE, or WORKLOAD.NAMESPACE")
@click.option("--all", "everything", is_flag=True, help="every proxy (the default)")
@click.option("-n", "--namespace", default="default", help="namespace of objects that name none")
@click.option(
    "-o", "--output", type=click.Choice(["short", "json", "yaml", "bootstrap"]), default="short"
)
@click.option("--mesh-config", default="", help="file with a MeshConfig")
@click.option(
    "--certificates",
    default="",
    help="for -o bootstrap: folder with the workload's SDS files; without it, a throw-away identity",
)
@click.option("--keep-going", is_flag=True, help="leave wrong objects out, as istiod does")
def compile_(
    paths: tuple[str, ...],
    more: tuple[str, ...],
    wanted: str,
    everything: bool,
    namespace: str,
    output: str,
    mesh_config: str,
    certificates: str,
    keep_going: bool,
) -> int:
    """Show what every proxy of a mesh would be told, from files.

    Files may hold Deployments, StatefulSets, Pods, WorkloadEntries, Services and all configuration.
    """
    if wanted and everything:
        raise CommandError("--proxy and --all exclude each other", EX_USAGE)
    # A short-lived process that only builds: collecting would cost a third of its time.
    gc.disable()
    from meltemi.commands.compiled import Compiler

    mesh = _read((*paths, *more), namespace, mesh_config)
    wrong = _report(mesh.findings)
    if wrong and not keep_going:
        return 1
    compiler = Compiler(mesh)
    _report(compiler.findings())
    chosen = _chosen(compiler, wanted)
    made = (compiler.compile(proxy) for proxy in chosen)
    if output == "bootstrap":
        _print_bootstrap(made, len(chosen), mesh.mesh.trust_domain, certificates)
    elif output == "json":
        _print_json(made)
    elif output == "yaml":
        _print_yaml(made)
    else:
        from meltemi.commands.compiled_text import lines_of

        for each in made:
            click.echo("\n".join(lines_of(each)))
    return 1 if wrong else 0


def _read(paths: tuple[str, ...], namespace: str, mesh_config: str) -> OfflineMesh:
    from meltemi.registry.offline import complete, read_objects

    raws, unread = read_objects(read_source(path) for path in files_of(paths))
    settings = read_source(mesh_config)[0] if mesh_config else ""
    mesh = complete(raws, namespace=namespace, mesh_config=settings)
    mesh.findings[:0] = unread
    return mesh


def _report(findings: Iterable[Finding]) -> bool:
    """Findings go to standard error; True when one is an error."""
    from meltemi.model.origin import Level

    worst = False
    for finding in findings:
        click.echo(str(finding), err=True)
        worst = worst or finding.level is Level.ERROR
    return worst


def _chosen(compiler: Compiler, wanted: str) -> list[OfflineProxy]:
    from meltemi.commands.compiled import choose

    known = compiler.proxies()
    if not known:
        raise CommandError("the files describe no workload: no Deployment, Pod or WorkloadEntry")
    if not wanted:
        return known
    found = choose(known, wanted)
    if not found:
        names = ", ".join(dict.fromkeys(f"{p.workload}.{p.namespace}" for p in known))
        raise CommandError(f"no proxy {wanted!r} in the files; there are: {names[:2000]}")
    return found


def _print_json(made: Iterator[Compiled]) -> None:
    from meltemi.commands.compiled import as_json, json_text

    entries = ",\n".join(json_text(as_json(each)) for each in made)
    click.echo(f'{{"proxies": [{entries}]}}')


def _print_yaml(made: Iterator[Compiled]) -> None:
    """The representation that people read: our own words, with the origins of every decision."""
    import yaml

    from meltemi.ir.render import render

    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    for each in made:
        head = {"proxy": each.proxy.id, "workload": each.proxy.workload}
        body = render(each.ir)
        body.pop("findings", None)
        findings = [str(finding) for finding in each.findings]
        text = yaml.dump(
            {**head, **body, **({"findings": findings} if findings else {})},
            Dumper=dumper,
            sort_keys=False,
            allow_unicode=True,
            width=120,
        )
        click.echo("---\n" + text, nl=False)


def _print_bootstrap(
    made: Iterator[Compiled], count: int, trust_domain: str, certificates: str
) -> None:
    from meltemi.commands.compiled import json_text
    from meltemi.commands.static_bootstrap import static_bootstrap

    first = next(made)
    if count > 1:
        raise CommandError(
            f"a bootstrap is for one proxy, and the files describe {count}: choose with --proxy",
            EX_USAGE,
        )
    click.echo(json_text(static_bootstrap(first, trust_domain, certificates)))
