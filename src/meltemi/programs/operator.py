"""The operator: keeps the mesh as its ``IstioOperator`` resources say.

In: IstioOperator objects (``install.istio.io/v1alpha1``). Out: the objects of the mesh, applied in order; a status per
component on the resource; removal of what the spec no longer names. It reacts to a change of the resource, to a
change or loss of any object it owns, and looks at everything again once a minute.

``GET /healthz`` on 8080 answers when the operator can work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import kopf

from meltemi.adapters import kube_connection
from meltemi.adapters.installer import Installer
from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.config.crds import crd_manifests
from meltemi.config.decode import load
from meltemi.install.context import MANAGED, OWNER, OWNER_NAMESPACE
from meltemi.install.plan import ComponentHealth, overall, status
from meltemi.install.render import render
from meltemi.model.origin import Level

GROUP, VERSION, PLURAL = "install.istio.io", "v1alpha1", "istiooperators"
FINALIZER = "istio-finalizer.install.istio.io"
DRIFT_PERIOD_S = 60.0
COMPONENTS = ("Base", "Pilot", "IngressGateways", "EgressGateways")
LOOK_S = 1.0  # how often a resource is looked at while its components are waited for
RETRY_S = 5.0
_SUPERSEDED = -1.0
# Kinds whose change or loss is repaired at once; the others at the next look.
WATCHED = (
    ("apps", "v1", "deployments"),
    ("", "v1", "services"),
    ("", "v1", "configmaps"),
    ("", "v1", "serviceaccounts"),
    ("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations"),
)
# Changes of several owned objects at once lead to one look.
SETTLE_S = 0.5

log = logging.getLogger("operator")


class Reconciler:
    """Serialises the work on each resource and remembers which generation is in place."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._installer = Installer(api)
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._settling: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def reconcile(self, resource: Mapping[str, Any], *, quiet: bool = False) -> float | None:
        """Bring the cluster to what ``resource`` says; returns after how many seconds to try again.

        None when all is healthy, or when only another spec can help.
        """
        metadata = resource["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        async with self._locks.setdefault((namespace, name), asyncio.Lock()):
            while True:
                delay = await self._bring_about(resource, quiet)
                if delay != _SUPERSEDED:
                    return delay
                log.info("%s/%s has changed meanwhile", namespace, name)
                # Not left to kopf: it sees no change where the old spec has come back.
                try:
                    resource = await self._api.json("GET", _path(namespace, name))
                except KubeError as error:
                    return None if error.code == HTTPStatus.NOT_FOUND else RETRY_S
                if resource["metadata"].get("deletionTimestamp"):
                    return None

    async def _bring_about(self, resource: Mapping[str, Any], quiet: bool) -> float | None:
        """One attempt at what ``resource`` says; its outcome as of ``reconcile``, or _SUPERSEDED."""
        metadata = resource["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        generation = int(metadata.get("generation") or 0)
        if not quiet:
            log.info("begin reconciling resources for %s/%s", namespace, name)
        unusable = False
        try:
            healths = await self._unless_superseded(resource, quiet)
        except ValueError as error:
            unusable, healths = True, [ComponentHealth("Base", "ERROR", str(error))]
        if healths is None:
            return _SUPERSEDED
        await self._write(namespace, name, healths, generation, complete=True)
        state = overall(healths)
        for health in healths:
            if health.error:
                log.error("%s: %s", health.name, health.error)
        if not quiet:
            log.info("%s/%s is %s", namespace, name, state)
            log.info("end reconciling resources")
        return None if unusable or state in ("HEALTHY", "NONE") else RETRY_S

    async def _unless_superseded(
        self, resource: Mapping[str, Any], quiet: bool
    ) -> list[ComponentHealth] | None:
        """Apply; None when the resource changed or went meanwhile: what never gets ready must not
        hold up the correction."""
        metadata = resource["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        generation = int(metadata.get("generation") or 0)
        work = asyncio.ensure_future(self._apply(resource, namespace, name, generation, quiet))
        watch = asyncio.ensure_future(self._superseded(namespace, name, generation))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _superseded(self, namespace: str, name: str, generation: int) -> None:
        """Return when the resource is not any more what is being worked on."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                metadata = (await self._api.json("GET", _path(namespace, name)))["metadata"]
            except KubeError as error:
                if error.code == HTTPStatus.NOT_FOUND:
                    return
                continue
            if metadata.get("deletionTimestamp") or metadata.get("generation") != generation:
                return

    async def _apply(
        self, resource: Mapping[str, Any], namespace: str, name: str, generation: int, quiet: bool
    ) -> list[ComponentHealth]:
        """Install. Raises ValueError, with a text for the user, for a spec that cannot be followed."""
        _, findings = load(dict(resource))
        errors = [str(finding) for finding in findings if finding.level is Level.ERROR]
        if errors:
            raise ValueError("; ".join(errors))
        for finding in findings:
            if finding.level is Level.WARNING and not quiet:
                log.warning("%s", finding)
        installation = render(name, namespace, resource.get("spec") or {}, crd_manifests())
        seen: dict[str, ComponentHealth] = {}

        async def report(health: ComponentHealth) -> None:
            seen[health.name] = health
            if health.status != "RECONCILING":
                log.info("component %s is %s", health.name, health.status)
            else:
                log.debug("component %s", health.name)
                live = resource.get("status") or {}
                known = (live.get("componentStatus") or {}).get(health.name, {}).get("status")
                if known is None or live.get("observedGeneration") != generation:
                    await self._write(namespace, name, list(seen.values()), generation)

        return await self._installer.install(installation, report)

    async def _write(
        self,
        namespace: str,
        name: str,
        healths: list[ComponentHealth],
        generation: int,
        complete: bool = False,
    ) -> None:
        path = _path(namespace, name) + "/status"
        body = status(healths, generation)
        # A component that is no longer installed, or an error of the past, must not linger: this
        # is a merge patch.
        entries = {c: {"error": None, **entry} for c, entry in body["componentStatus"].items()}
        gone = dict.fromkeys(COMPONENTS) if complete else {}
        body["componentStatus"] = {**gone, **entries}
        with contextlib.suppress(KubeError):  # the resource may have gone meanwhile
            await self._api.merge_patch(path, {"status": body})

    async def remove(self, namespace: str, name: str) -> None:
        """Delete what belongs to a deleted resource."""
        async with self._locks.setdefault((namespace, name), asyncio.Lock()):
            for label in await self._installer.remove(name, namespace):
                log.info("removed %s", label)

    def drifted(self, namespace: str, name: str, what: str) -> None:
        """An owned object changed or went: look again, soon, once."""
        key = (namespace, name)
        if key in self._settling or self._locks.get(key, _FREE).locked():
            return
        log.debug("%s changed", what)
        self._settling[key] = asyncio.get_running_loop().create_task(self._settle(key))

    async def _settle(self, key: tuple[str, str]) -> None:
        await asyncio.sleep(SETTLE_S)
        del self._settling[key]
        try:
            resource = await self._api.json("GET", _path(*key))
            if not resource["metadata"].get("deletionTimestamp"):
                await self.reconcile(resource, quiet=True)
        except KubeError as error:
            log.warning("cannot look at %s/%s: %s", *key, error)


def _path(namespace: str, name: str) -> str:
    return collection(f"{GROUP}/{VERSION}", PLURAL, namespace, name)


_FREE = asyncio.Lock()


def _register(registry: kopf.OperatorRegistry, reconciler: Reconciler) -> None:
    """Tell kopf which handler serves what."""
    versions: dict[tuple[str, str, str, str], int] = {}

    async def changed(body: kopf.Body, **_: Any) -> None:
        delay = await reconciler.reconcile(dict(body))
        if delay is not None:
            raise kopf.TemporaryError("not healthy yet; trying again", delay=delay)

    async def deleted(body: kopf.Body, **_: Any) -> None:
        await reconciler.remove(str(body.metadata.namespace), str(body.metadata.name))

    async def looked(body: kopf.Body, **_: Any) -> None:
        await reconciler.reconcile(dict(body), quiet=True)

    async def owned(type: str | None, body: kopf.Body, **_: Any) -> None:
        labels, metadata = body.metadata.labels, body.metadata
        generation = int(metadata.get("generation") or 0)
        key = (
            str(body.get("kind")),
            metadata.get("namespace") or "",
            str(metadata.get("name")),
            str(metadata.get("uid")),
        )
        before = versions.get(key)
        if type == "DELETED":
            versions.pop(key, None)
        else:
            versions[key] = generation
        # Deployments report status all the time; only their generation tells of a change. Kinds
        # without a generation always count, which costs an apply that changes nothing.
        if type is None or (type != "DELETED" and before == generation and generation):
            return
        if type != "DELETED" and before is None:
            return
        reconciler.drifted(labels[OWNER_NAMESPACE], labels[OWNER], f"{key[0]}/{key[2]}")

    istio_operator = (GROUP, VERSION, PLURAL)
    # kopf keeps a handler's progress in an annotation named by its id: those that it makes up for
    # functions inside a function are not names that Kubernetes allows.
    kopf.on.create(*istio_operator, id="changed", registry=registry)(changed)
    kopf.on.update(*istio_operator, id="changed", field="spec", registry=registry)(changed)
    kopf.on.resume(*istio_operator, id="changed", registry=registry)(changed)
    kopf.on.delete(*istio_operator, id="deleted", registry=registry)(deleted)
    kopf.on.timer(
        *istio_operator,
        id="looked",
        interval=DRIFT_PERIOD_S,
        initial_delay=DRIFT_PERIOD_S,
        registry=registry,
    )(looked)
    for group, version, plural in WATCHED:
        selector = (group, version, plural) if group else (version, plural)
        kopf.on.event(
            *selector, labels={OWNER: kopf.PRESENT, MANAGED: "Reconcile"}, registry=registry
        )(owned)


async def _serve() -> None:
    connection = kube_connection.load()
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
        prefix="install.istio.io"
    )
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(
        prefix="install.istio.io", key="last-handled-configuration"
    )
    settings.posting.level = logging.WARNING
    settings.scanning.disabled = True
    registry = kopf.OperatorRegistry()
    watched = [name for name in os.environ.get("WATCH_NAMESPACE", "").split(",") if name]
    async with KubeApi(connection, "istio-operator") as api:
        _register(registry, Reconciler(api))
        kopf.on.login(registry=registry)(_login)
        log.info("operator started")
        await kopf.operator(
            registry=registry,
            settings=settings,
            clusterwide=not watched,
            namespaces=watched,
            standalone=True,
            liveness_endpoint="http://0.0.0.0:8080/healthz",
        )


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account, or a kubeconfig: kopf's own two ways."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def main() -> None:
    """Run until SIGTERM: ``meltemi-operator server``."""
    if sys.argv[1:] not in ([], ["server"]):
        sys.exit("usage: meltemi-operator [server]")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s\t%(levelname)s\t%(message)s", stream=sys.stdout
    )
    for noisy in ("kopf", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        asyncio.run(_serve())
    except kube_connection.ConnectionConfigError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        log.info("stopped")


if __name__ == "__main__":
    main()
