"""What the operator and the command line do to an installation. Runs last: the mesh is taken away and put back."""

from __future__ import annotations

import pytest

from e2e.conftest import Ingress, Shell, Workload, adopt_environment, steadily, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
SYSTEM = "-n istio-system"


def deployments(mesh: Shell) -> set[str]:
    found = mesh(f"kubectl get deployments {SYSTEM} -o jsonpath='{{.items[*].metadata.name}}'")
    return set(found.split())


def address(mesh: Shell) -> Ingress:
    """The ingress gateway as it is now; a new Service may have a new address."""
    from meltemi.commands.demo import ingress_url

    def base() -> str | None:
        service = mesh.json(f"kubectl {SYSTEM} get service istio-ingressgateway -o json")
        return ingress_url(service)

    return Ingress(wait_for("an ingress address", base))


def rollout(mesh: Shell, name: str) -> None:
    wait_for(name, lambda: name in deployments(mesh))
    mesh(f"kubectl rollout status {SYSTEM} deployment/{name} --timeout=60s")


def test_drift_is_repaired(mesh: Shell, ingress: Ingress) -> None:
    mesh(f"kubectl scale {SYSTEM} deployment/istio-ingressgateway --replicas=3")
    wait_for(
        "one replica again",
        lambda: mesh(
            f"kubectl get {SYSTEM} deployment istio-ingressgateway -o jsonpath='{{.spec.replicas}}'"
        ),
        accept=lambda count: count == "1",
    )
    old = mesh(
        f"kubectl get {SYSTEM} deployment istio-ingressgateway -o jsonpath='{{.metadata.uid}}'"
    )
    mesh(f"kubectl delete {SYSTEM} deployment istio-ingressgateway")
    rollout(mesh, "istio-ingressgateway")
    new = mesh(
        f"kubectl get {SYSTEM} deployment istio-ingressgateway -o jsonpath='{{.metadata.uid}}'"
    )
    assert new != old
    wait_for("the page", steadily(ingress.whole))


def test_a_component_that_is_switched_off_is_pruned_and_comes_back(
    mesh: Shell, ingress: Ingress
) -> None:
    def egress(enabled: str) -> None:
        gateways = f'[{{"name":"istio-egressgateway","enabled":{enabled}}}]'
        mesh(
            f"kubectl patch {SYSTEM} istiooperator istio --type=merge"
            f""" -p '{{"spec":{{"components":{{"egressGateways":{gateways}}}}}}}'"""
        )

    egress("false")
    wait_for("no egress gateway", lambda: "istio-egressgateway" not in deployments(mesh))
    wait_for(
        "nothing else of it",
        lambda: mesh(f"kubectl get services,serviceaccounts,pdb {SYSTEM} -o name"),
        accept=lambda names: "egressgateway" not in names,
    )
    assert {"istiod", "istio-ingressgateway"} <= deployments(mesh)
    egress("true")
    rollout(mesh, "istio-egressgateway")
    assert ingress.whole()


def test_state_survives_down_and_up(mesh: Shell, ingress: Ingress) -> None:
    before = mesh("kubectl get services,deployments,virtualservices,gateways -A -o name")
    root = mesh(f"kubectl get secret {SYSTEM} istio-ca-secret -o jsonpath='{{.data}}'")
    mesh("meltemi local down", timeout=90)
    mesh("meltemi local up --detach", timeout=90)
    adopt_environment(mesh)
    assert mesh("kubectl get services,deployments,virtualservices,gateways -A -o name") == before
    wait_for("the page at the old address", steadily(ingress.whole), timeout=90)
    mesh("kubectl wait pods --all -n bookinfo --for=condition=Ready --timeout=90s")
    assert mesh(f"kubectl get secret {SYSTEM} istio-ca-secret -o jsonpath='{{.data}}'") == root
    images = "jsonpath='{.items[*].spec.containers[*].image}'"
    assert "/proxy:" in mesh(f"kubectl get pods -n bookinfo -l app=productpage -o {images}")


def test_deleting_the_resource_removes_the_mesh_and_applying_it_brings_it_back(
    mesh: Shell, ingress: Ingress
) -> None:
    mesh(f"kubectl delete {SYSTEM} istiooperator istio --timeout=90s")
    wait_for("no mesh", lambda: not deployments(mesh))
    left = mesh("kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations -o name")
    assert "istio" not in left
    mesh("kubectl apply -f samples/istio-manifest.yaml")
    for name in ("istiod", "istio-ingressgateway"):
        rollout(mesh, name)
    wait_for("the page", steadily(lambda: address(mesh).whole()), timeout=90)


def traces(mesh: Shell) -> set[str]:
    """Every object of the cluster, of whatever kind, that is named after the mesh; Events tell of the past."""
    kinds = set(mesh("kubectl api-resources --verbs=list -o name").split())
    kinds -= {"events", "events.events.k8s.io"}
    found = mesh(f"kubectl get {','.join(sorted(kinds))} -A -o name")
    return {name for name in found.split() if "istio" in name}


def test_uninstall_leaves_nothing_and_install_starts_anew(mesh: Shell, ingress: Ingress) -> None:
    refused = mesh("meltemi operator remove || echo refused", check=False)
    assert "refused" in refused
    assert "IstioOperator resources exist (istio-system/istio): delete them first" in refused
    # With all in place: the operator must not put back what is taken away.
    done = mesh("meltemi uninstall --purge -y", timeout=150)
    assert "removed IstioOperator/istio in istio-system" in done
    assert "removed Namespace/istio-operator" in done
    assert "kept" not in done
    # The namespace is the user's own: the walk-through made it.
    assert traces(mesh) == {"namespace/istio-system"}
    # Pods go on without a mesh.
    assert (
        Workload(mesh, "details").fetch("details", "http://localhost:9080/health").startswith("200")
    )
    mesh("kubectl delete namespace istio-system")
    mesh("meltemi install -y --set profile=demo", timeout=120)
    rollout(mesh, "istio-ingressgateway")
    mesh("kubectl delete pods --all -n bookinfo")
    mesh("kubectl apply -n bookinfo -f samples/bookinfo/networking/bookinfo-gateway.yaml")
    mesh("kubectl wait pods --all -n bookinfo --for=condition=Ready --timeout=90s", timeout=100)
    wait_for("the page", steadily(lambda: address(mesh).whole()), timeout=90)

    mesh("kubectl create secret generic shop-credential -n istio-system --from-literal=key=value")
    done = mesh("meltemi uninstall --purge -y", timeout=150)
    assert "kept Namespace/istio-system, because of Secret/shop-credential" in done
    assert traces(mesh) == {"namespace/istio-system"}
    mesh("kubectl delete secret shop-credential -n istio-system")
    assert "removed Namespace/istio-system" in mesh("meltemi uninstall --purge -y")
    assert not traces(mesh)
    assert "Nothing to remove" in mesh("meltemi uninstall --purge -y")
