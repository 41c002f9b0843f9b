"""``experimental workload`` (``x workload``): bring machines into the mesh.

``group create`` prints a WorkloadGroup; ``entry configure`` writes the files that a machine's proxy starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import yaml

from meltemi.commands.cluster import connection_flags, dump_documents, read_documents
from meltemi.commands.failure import CommandError, run

_EAST_WEST = "istio-eastwestgateway"


@click.group()
def experimental() -> None:
    """Verbs that istioctl calls experimental."""


@experimental.group()
def workload() -> None:
    """Machines and other workloads without pods."""


@workload.group()
def group() -> None:
    """WorkloadGroups: what machines have in common."""


@workload.group()
def entry() -> None:
    """Single machines."""


def _pairs(texts: Iterable[str], flag: str) -> dict[str, str]:
    """``a=1,b=2``, the flag repeated or not."""
    found: dict[str, str] = {}
    for part in (part for text in texts for part in text.split(",") if part):
        name, sign, value = part.partition("=")
        if not sign or not name:
            raise click.UsageError(f"{flag} {part}: write name=value")
        found[name] = value
    return found


@group.command()
@click.option("--name", default="", help="name of the WorkloadGroup")
@click.option("-n", "--namespace", default="", help="its namespace")
@click.option("-l", "--labels", multiple=True, help="labels of its machines: app=db,version=v1")
@click.option("-a", "--annotations", multiple=True, help="annotations of their WorkloadEntries")
@click.option("-p", "--ports", multiple=True, help="ports by name: http=8080,grpc=9090")
@click.option("-s", "--serviceAccount", "account", default="default", show_default=True)
def create(
    name: str,
    namespace: str,
    labels: tuple[str, ...],
    annotations: tuple[str, ...],
    ports: tuple[str, ...],
    account: str,
) -> None:
    """Print a WorkloadGroup, for kubectl apply -f -."""
    if not name:
        raise click.UsageError("--name: a WorkloadGroup needs a name")
    if not namespace:
        raise click.UsageError("-n: a WorkloadGroup needs a namespace")
    metadata: dict[str, Any] = {}
    if found := _pairs(labels, "--labels"):
        metadata["labels"] = found
    if found := _pairs(annotations, "--annotations"):
        metadata["annotations"] = found
    template: dict[str, Any] = {"serviceAccount": account}
    if found := _pairs(ports, "--ports"):
        if wrong := [
            f"{port}={number}" for port, number in found.items() if not number.isdecimal()
        ]:
            raise click.UsageError(f"--ports {wrong[0]}: a port is a number")
        template["ports"] = {port: int(number) for port, number in found.items()}
    made = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**({"metadata": metadata} if metadata else {}), "template": template},
    }
    _usable(made)
    click.echo(dump_documents([made]), nl=False)


def _usable(manifest: dict[str, Any]) -> Any:
    """The WorkloadGroup, decoded. Fails with all that is wrong with it."""
    from meltemi.config.decode import load
    from meltemi.model.origin import Level

    config, findings = load(manifest)
    wrong = [str(finding) for finding in findings if finding.level is Level.ERROR]
    if config is None or wrong:
        raise CommandError("\n".join(wrong) or "this is no WorkloadGroup")
    return config


@entry.command()
@click.option("-f", "--file", "path", default="", help="a WorkloadGroup; - reads standard input")
@click.option("--name", default="", help="name of a WorkloadGroup in the cluster, without -f")
@click.option("-n", "--namespace", default="", help="its namespace")
@click.option("-o", "--output", required=True, help="folder to write to")
@click.option("--clusterID", "cluster_id", default="Kubernetes", show_default=True)
@click.option("--tokenDuration", "token_s", default=3600, show_default=True, help="seconds")
@click.option("--ingressIP", "ingress_ip", default="", help="address at which istiod is reached")
@click.option("--ingressService", "ingress_service", default=_EAST_WEST, show_default=True)
@click.option(
    "--internalIP", "internal_ip", default="", help="the machine's address in its network"
)
@click.option("--externalIP", "external_ip", default="", help="the machine's address for the mesh")
@click.option("--autoregister", is_flag=True, help="its WorkloadEntry is made when it connects")
@click.option("--capture-dns/--no-capture-dns", "dns", default=True, show_default=True)
@click.option("-i", "--istioNamespace", "mesh_namespace", default="istio-system")
@click.option("-r", "--revision", default="")
@connection_flags
def configure(**flags: Any) -> None:
    """Write cluster.env, mesh.yaml, root-cert.pem, istio-token and hosts for the machines of a WorkloadGroup."""
    from meltemi.agent import machine

    if not flags["path"] and not (flags["name"] and flags["namespace"]):
        raise click.UsageError(
            "give -f with a WorkloadGroup, or --name and -n of one in the cluster"
        )
    files = run(_files(flags))
    folder = Path(flags["output"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o600 if name == machine.TOKEN else 0o644)
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    if not files[machine.HOSTS]:
        click.echo(
            f"Warning: there is no {flags['ingress_service']} with an address, and no --ingressIP: the machine "
            "must be able to resolve istiod's name itself",
            err=True,
        )
    click.echo(
        f"Configuration written to {folder}. Start the proxy there: meltemi-agent machine {folder}"
    )


async def _files(flags: dict[str, Any]) -> dict[str, str]:
    """The texts of all files. Raises KubeError and CommandError."""
    from meltemi.adapters import kube_connection
    from meltemi.adapters.kube_api import KubeApi, collection
    from meltemi.agent import machine
    from meltemi.config.encode import as_json
    from meltemi.config.mesh import parse_mesh_config

    suffix = f"-{flags['revision']}" if flags["revision"] not in ("", "default") else ""
    space = flags["mesh_namespace"]
    async with KubeApi(
        kube_connection.load(flags["kubeconfig"], flags["context"]), "meltemi"
    ) as api:
        manifest = await _group(api, flags)
        config = _usable(manifest)
        namespace, spec = config.meta.namespace, config.spec
        account = spec.template.service_account or "default"
        settings = await api.find("v1", "ConfigMap", space, f"istio{suffix}")
        roots = await api.find("v1", "ConfigMap", namespace, "istio-ca-root-cert")
        if settings is None or roots is None:
            raise CommandError(
                f"there is no mesh in namespace {space}, or it has not come to namespace {namespace} yet"
            )
        request = {"audiences": ["istio-ca"], "expirationSeconds": flags["token_s"]}
        path = collection("v1", "serviceaccounts", namespace, account) + "/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": request}
        token = (await api.json("POST", path, body=body))["status"]["token"]
        ingress = flags["ingress_ip"] or await _ingress(api, space, flags["ingress_service"])
    mesh, _ = parse_mesh_config(settings["data"].get("mesh", ""), "ConfigMap istio")
    host = f"istiod{suffix}.{space}.svc"
    extra = spec.metadata.labels if spec.metadata is not None else {}
    facts = machine.MachineFacts(
        group=config.meta.name,
        namespace=namespace,
        service_account=account,
        labels={**spec.template.labels, **extra},
        network=spec.template.network,
        probe=as_json(spec.probe) if spec.probe is not None else {},
        settings=as_json(mesh.default_config),
        discovery_address=f"{host}:15012",
        mtls_address=f"{host}:15013",
        cluster_id=flags["cluster_id"],
        trust_domain=mesh.trust_domain,
        address=flags["external_ip"] or flags["internal_ip"],
        register=flags["autoregister"],
        dns_capture=flags["dns"],
    )
    return {
        machine.ENVIRONMENT: machine.render_environment(facts),
        machine.MESH: yaml.safe_dump(machine.render_mesh(facts), sort_keys=False),
        machine.ROOT: roots["data"]["root-cert.pem"],
        machine.TOKEN: token,
        machine.HOSTS: f"{ingress} {host}\n" if ingress else "",
    }


async def _group(api: Any, flags: dict[str, Any]) -> dict[str, Any]:
    if not flags["path"]:
        found: dict[str, Any] | None = await api.find(
            "networking.istio.io/v1", "WorkloadGroup", flags["namespace"], flags["name"]
        )
        if found is None:
            raise CommandError(f"there is no WorkloadGroup {flags['namespace']}/{flags['name']}")
        return found
    documents = [d for d in read_documents([flags["path"]]) if d["kind"] == "WorkloadGroup"]
    if len(documents) != 1:
        raise CommandError(f"{flags['path']}: holds {len(documents)} WorkloadGroups; one is needed")
    metadata = documents[0].setdefault("metadata", {})
    if flags["name"]:
        metadata["name"] = flags["name"]
    if flags["namespace"]:
        metadata["namespace"] = flags["namespace"]
    metadata.setdefault("namespace", api.connection.namespace or "default")
    return documents[0]


async def _ingress(api: Any, namespace: str, name: str) -> str:
    """The first address of the Service through which machines reach istiod; "" when there is none."""
    found = await api.find("v1", "Service", namespace, name)
    status = ((found or {}).get("status") or {}).get("loadBalancer") or {}
    for each in status.get("ingress") or ():
        if each.get("ip"):
            return str(each["ip"])
    return ""
