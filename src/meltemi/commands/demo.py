"""``meltemi demo``: a cluster on this machine, the operator, the mesh, Bookinfo and a way in, from one command.

Without flags it stays in the foreground and takes everything away again at Ctrl-C. ``--check`` sends traffic, proves
what it claims in a table, and ends. ``--keep`` leaves all of it running.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from meltemi.commands.cluster import read_documents
from meltemi.commands.failure import CommandError, run
from meltemi.commands.local import localkube_command, localkube_environment
from meltemi.commands.progress import Steps

CLUSTER = "demo"
NAMESPACE = "bookinfo"
MESH_TIMEOUT_S = 180.0
APP_TIMEOUT_S = 180.0
PAGE_TIMEOUT_S = 60.0
POLL_S = 0.1
TRY = (
    ("canary", "nine of ten visitors see no stars, one sees red ones"),
    ("fault", "the details disappear; the rest of the page does not"),
    ("circuit-breaker", "many at once: some are refused at once instead of all waiting"),
)

console = Console(highlight=False)


def samples() -> Path:
    """The folder of the samples: in a checkout and in an installed wheel alike."""
    spec = importlib.util.find_spec("meltemi_samples")
    assert spec is not None, "the samples are part of this distribution"
    assert spec.submodule_search_locations, "and a package with a folder"
    return Path(next(iter(spec.submodule_search_locations)))


def shown(path: Path) -> str:
    """A path as a user in a checkout would write it."""
    relative = Path("samples") / path.relative_to(samples())
    if relative.exists():
        return str(relative)
    return str(path)


def _near(path: Path) -> Path:
    """The path as somebody in this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class Cluster:
    """The demo's own one-machine Kubernetes."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def _localkube(self, *arguments: str) -> str:
        command = localkube_command(arguments[0], "--name", self._name, *arguments[1:])
        process = await asyncio.create_subprocess_exec(
            *command,
            env=localkube_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            await process.wait()
            raise
        if process.returncode:
            raise CommandError(err.decode().strip() or out.decode().strip())
        return out.decode()

    async def running(self) -> bool:
        """Whether somebody has started it already."""
        try:
            await self._localkube("status")
        except CommandError:
            return False
        return True

    async def up(self) -> None:
        """Start it, or find it running."""
        await self._localkube("up", "--detach")

    async def kubeconfig(self) -> Path:
        """The file that kubectl needs."""
        for line in (await self._localkube("env")).splitlines():
            name, equals, value = line.removeprefix("export ").partition("=")
            if name == "KUBECONFIG" and equals:
                return Path(shlex.split(value)[0])
        raise CommandError("the cluster does not say where its kubeconfig is")

    async def remove(self) -> None:
        """Stop it and forget its state."""
        await self._localkube("down")
        await self._localkube("reset")


async def _until(what: str, deadline_s: float, probe: Any) -> Any:
    """Poll ``probe`` (a coroutine function: (done, result or what is missing)) until it is done."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    while True:
        done, result = await probe()
        if done:
            return result
        if loop.time() > deadline:
            raise CommandError(f"{what} did not become ready in {deadline_s:.0f} s: {result}")
        await asyncio.sleep(POLL_S)


async def install_operator(api: Any) -> None:
    """Install the operator and wait until it works."""
    from meltemi.adapters.installer import Installer
    from meltemi.config.crds import crd_manifests
    from meltemi.install import operator_manifests
    from meltemi.install.render import Component

    manifests = operator_manifests.render(crd_manifests())
    await api.apply(manifests[0])
    health = await Installer(api).component(Component("operator", tuple(manifests[1:])))
    if health.error:
        raise CommandError(health.error)


async def install_mesh(api: Any) -> None:
    """Give the operator its resource and wait until it reports health."""
    for name in ("istio-system", NAMESPACE):
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    (resource,) = read_documents([str(samples() / "istio-manifest.yaml")])
    await api.apply(resource)
    metadata = resource["metadata"]

    async def healthy() -> tuple[bool, str]:
        live = await api.find(
            resource["apiVersion"], resource["kind"], metadata["namespace"], metadata["name"]
        )
        status = (live or {}).get("status") or {}
        if status.get("status") == "ERROR":
            raise CommandError(f"the operator reports: {status.get('message')}")
        waiting = [
            name
            for name, entry in (status.get("componentStatus") or {}).items()
            if entry.get("status") != "HEALTHY"
        ]
        return status.get("status") == "HEALTHY", ", ".join(waiting) or "no status yet"

    await _until("the mesh", MESH_TIMEOUT_S, healthy)


async def install_bookinfo(api: Any) -> None:
    """Put Bookinfo and its gateway into a labelled namespace and wait for the pods."""
    await api.merge_patch(
        f"/api/v1/namespaces/{NAMESPACE}", {"metadata": {"labels": {"istio-injection": "enabled"}}}
    )
    folder = samples() / "bookinfo"
    files = (folder / "platform/kube/bookinfo.yaml", folder / "networking/bookinfo-gateway.yaml")
    documents = read_documents(map(str, files))
    for document in documents:
        await _applied(api, document)
    wanted = sum(document["kind"] == "Deployment" for document in documents)

    async def ready() -> tuple[bool, str]:
        pods = await api.list("v1", "pods", NAMESPACE)
        good = [pod for pod in pods if _pod_ready(pod)]
        return len(good) >= wanted, f"{len(good)} of {wanted} pods are ready"

    await _until("Bookinfo", APP_TIMEOUT_S, ready)


async def _applied(api: Any, document: dict[str, Any]) -> None:
    """Apply, and again while istiod's webhooks are on their way back (a cluster that was kept)."""
    from meltemi.adapters.kube_api import KubeError

    async def attempt() -> tuple[bool, str]:
        try:
            await api.apply(document, namespace=NAMESPACE)
        except KubeError as error:
            if "failed calling webhook" not in str(error):
                raise
            return False, str(error)
        return True, ""

    await _until(f"{document['kind']} {document['metadata']['name']}", MESH_TIMEOUT_S, attempt)


def _pod_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return not pod["metadata"].get("deletionTimestamp") and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def ingress_url(service: dict[str, Any]) -> str | None:
    """Address of the ingress gateway: its port 80, or the port that stands in for it on this machine."""
    found = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    if not found:
        return None
    port = next(p["port"] for p in service["spec"]["ports"] if p["name"] == "http2")
    refused = {entry["port"] for entry in found[0].get("ports") or [] if entry.get("error")}
    if port in refused:
        announced = (service["metadata"].get("annotations") or {}).get(
            "localkube/forwarded-ports", ""
        )
        pairs = dict(pair.split("=") for pair in announced.split(",") if "=" in pair)
        if str(port) not in pairs:
            return None
        port = int(pairs[str(port)])
    host = found[0].get("ip") or found[0].get("hostname")
    return f"http://{host}" + ("" if port == 80 else f":{port}")


async def wait_for_page(api: Any) -> str:
    """Wait until the product page answers through the ingress; its base URL."""
    import aiohttp

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:

        async def answers() -> tuple[bool, str]:
            service = await api.find("v1", "Service", "istio-system", "istio-ingressgateway")
            base = ingress_url(service) if service else None
            if base is None:
                return False, "the ingress gateway has no address yet"
            try:
                async with session.get(f"{base}/productpage") as answer:
                    if answer.status == 200 and "served" in await answer.text():
                        return True, base
                    return False, f"{base}/productpage answers {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                return False, f"{base}/productpage: {error or 'timeout'}"

        return str(await _until("the product page", PAGE_TIMEOUT_S, answers))


async def _build(cluster: Cluster) -> tuple[Path, str]:
    """All steps, shown as they go; the kubeconfig and the base URL of the ingress."""
    from meltemi.adapters import kube_connection
    from meltemi.adapters.kube_api import KubeApi

    with Steps() as steps:

        async def step(key: str, text: str, work: Any) -> Any:
            steps.begin(key, text)
            try:
                result = await work
            except BaseException as error:
                steps.end(key, str(error) or "interrupted")
                raise
            steps.end(key)
            return result

        await step("cluster", "Kubernetes on this machine", cluster.up())
        kubeconfig = await cluster.kubeconfig()
        connection = kube_connection.load(str(kubeconfig))
        async with KubeApi(connection, "meltemi-demo") as api:
            await step("operator", "The operator", install_operator(api))
            await step("mesh", "The mesh: istiod, ingress and egress gateway", install_mesh(api))
            await step(
                "bookinfo", "Bookinfo, each pod with an Envoy sidecar", install_bookinfo(api)
            )
            base = await step(
                "page", "The product page through the ingress gateway", wait_for_page(api)
            )
    return kubeconfig, base


def _tell(name: str, base: str) -> None:
    console.print(f"\n[bold]The product page:[/bold] {base}/productpage\n")
    console.print("[bold]kubectl:[/bold]")
    if shutil.which("meltemi") is None:
        # Run by its path, as `make demo` does: what follows is in the same environment.
        console.print(f"  . {_near(Path(sys.executable).with_name('activate'))}", markup=False)
    console.print(f'  eval "$(meltemi local env --name {name})"', markup=False)
    console.print(f"  kubectl get pods -n {NAMESPACE}\n")
    console.print("[bold]Three things to try[/bold] (then reload the page; delete -f undoes each):")
    for name, effect in TRY:
        path = shown(samples() / "try" / f"{name}.yaml")
        console.print(f"  kubectl apply -n {NAMESPACE} -f {path}", soft_wrap=True)
        console.print(f"      [dim]{effect}[/dim]")
    console.print()


async def _until_interrupted() -> None:
    """Wait for Ctrl-C or a plain kill: from here on, that is how the demo ends well."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def _demo(check: bool, keep: bool) -> bool:
    name = os.environ.get("MELTEMI_DEMO_NAME", CLUSTER)
    cluster = Cluster(name)
    finished = False
    # A demo that runs already is only looked at.
    keep = keep or (check and await cluster.running())
    good = True
    try:
        kubeconfig, base = await _build(cluster)
        _tell(name, base)
        if check:
            from meltemi.commands.demo_check import check_demo

            good = await check_demo(str(kubeconfig), base, NAMESPACE, console)
        finished = True
        if not check and not keep:
            console.print("Ctrl-C stops all of it and leaves nothing behind.")
            await _until_interrupted()
    finally:
        if keep and finished:
            console.print(f"Still running; meltemi local down --name {name} stops it.")
        else:
            with console.status("taking everything away"):
                await asyncio.shield(cluster.remove())
    return good


@click.command()
@click.option(
    "--check",
    is_flag=True,
    help="send traffic, prove the mesh in a table, and end; a demo that runs already stays",
)
@click.option("--keep", is_flag=True, help="leave everything running")
def demo(check: bool, keep: bool) -> int:
    """A running mesh with Bookinfo on this machine."""
    # A plain `kill` must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return 0 if run(_demo(check, keep)) else 1
