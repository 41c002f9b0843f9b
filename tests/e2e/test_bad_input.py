"""What is wrong is refused or reported in words that help, and nothing else is disturbed by it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from e2e.conftest import Ingress, Shell, Workload, steadily, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
Apply = Callable[[str], None]
NETWORKING = "apiVersion: networking.istio.io/v1\nmetadata: {name: e2e-bad}\n"
BAD = {
    "invalid YAML": (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: e2e-bad\ndata: [a",
        r"error converting YAML to JSON: yaml: line \d+",
    ),
    "unknown kind": (
        NETWORKING + "kind: VirtualServise",
        r"no matches for kind \"VirtualServise\"",
    ),
    "unknown field": (
        NETWORKING
        + "kind: VirtualService\nspec: {hosts: [reviews], http: [{rout: [{destination: {host: reviews}}]}]}",
        r'VirtualService.* unknown field "spec.http\[0\].rout"',
    ),
    "unknown enum value": (
        NETWORKING
        + "kind: DestinationRule\nspec: {host: reviews, trafficPolicy: {loadBalancer: {simple: ROUND_ROBBIN}}}",
        r'spec.trafficPolicy.loadBalancer.simple: Unsupported value: "ROUND_ROBBIN": supported values: .*"ROUND_ROBIN"',
    ),
    "value that only the mesh can judge": (
        NETWORKING
        + 'kind: VirtualService\nspec: {hosts: [reviews], http: [{match: [{uri: {regex: "("}}],'
        " route: [{destination: {host: reviews}}]}]}",
        r'webhook "\S*validation.istio.io" denied the request: .*spec.http\[0\].match\[0\].uri.regex: "\(" is not a regular',
    ),
    "weights that have no sum": (
        NETWORKING
        + "kind: VirtualService\nspec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}, weight: 0},"
        " {destination: {host: details}, weight: 0}]}]}",
        r"denied the request: .*spec.http\[0\].route.*weight",
    ),
    "unknown mutual TLS mode": (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: e2e-bad}\n"
        "spec: {mtls: {mode: STRIKT}}",
        r'spec.mtls.mode: Unsupported value: "STRIKT": supported values: .*"STRICT"',
    ),
    "unknown field of a built-in kind": (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: e2e-bad}\nspec: {replica: 2, selector: {matchLabels:"
        " {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}",
        r'Deployment.* unknown field "spec.replica"',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_is_refused_by_name_and_reason(mesh: Shell, case: str) -> None:
    text, message = BAD[case]
    answer = mesh("kubectl apply -n bookinfo -f - || echo refused", stdin=text, check=False)
    assert "refused" in answer
    assert re.search(message, answer), answer
    assert "Traceback" not in answer
    left = mesh("kubectl get configmaps,deployments,vs,dr,peerauthentications -n bookinfo -o name")
    assert "e2e-bad" not in left


def test_the_good_documents_of_a_file_are_applied_beside_the_bad_one(mesh: Shell) -> None:
    good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: e2e-good}\n"
    text = f"{BAD['unknown enum value'][0]}\n---\n{good}"
    answer = mesh("kubectl apply -n bookinfo -f - || true", stdin=text)
    assert "configmap/e2e-good created" in answer
    mesh("kubectl delete -n bookinfo configmap e2e-good")


NOWHERE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: details}
spec:
  hosts: [details]
  http:
    - route: [{destination: {host: nowhere}}]
"""


def test_a_route_to_an_unknown_host_gives_503_there_and_a_warning(
    mesh: Shell, ingress: Ingress, applied: Apply
) -> None:
    applied(NOWHERE)
    productpage = Workload(mesh, "productpage")

    def ask(url: str) -> str:
        return productpage.fetch("productpage", url)

    wait_for(
        "503", lambda: ask("http://details:9080/details/0"), accept=lambda a: a.startswith("503 ")
    )
    assert ask("http://reviews:9080/reviews/0").startswith("200 ")
    assert ask("http://ratings:9080/ratings/0").startswith("200 ")
    assert steadily(lambda: ingress.get("/productpage")[0] == 200)()

    def messages() -> list[dict[str, object]]:
        found = mesh.json("kubectl get virtualservice -n bookinfo details -o json")
        return list(found.get("status", {}).get("validationMessages") or [])

    text = json.dumps(wait_for("a finding in status", messages))
    assert "IST0101" in text
    assert "nowhere" in text
    assert "spec.http[0].route[0].destination.host" in text
    mesh("kubectl delete -n bookinfo virtualservice details")
    wait_for(
        "details again",
        lambda: ask("http://details:9080/details/0"),
        accept=lambda a: a.startswith("200 "),
    )


WEBHOOK = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: e2e-{policy}}}
webhooks:
  - name: nobody.e2e.example.com
    admissionReviewVersions: [v1]
    sideEffects: None
    timeoutSeconds: 2
    failurePolicy: {policy}
    clientConfig: {{service: {{namespace: bookinfo, name: details, port: 9999}}}}
    objectSelector: {{matchLabels: {{e2e: {label}}}}}
    rules: [{{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}}]
"""


@pytest.mark.parametrize("policy", ["Fail", "Ignore"])
def test_the_failure_policy_of_a_dead_webhook_decides(mesh: Shell, policy: str) -> None:
    label = policy.lower()
    configuration = f"validatingwebhookconfiguration e2e-{label}"
    mesh(
        "kubectl apply -f -",
        stdin=WEBHOOK.format(policy=policy, label=label).replace(f"e2e-{policy}", f"e2e-{label}"),
    )
    labelled = (
        "apiVersion: v1\nkind: ConfigMap\n"
        f"metadata: {{name: e2e-{label}, namespace: bookinfo, labels: {{e2e: {label}}}}}\n"
    )
    try:
        answer = mesh("kubectl create -f - || true", stdin=labelled, check=False)
        if policy == "Fail":
            wait_for(
                "the webhook in force",
                lambda: mesh(
                    f"kubectl delete configmap -n bookinfo --ignore-not-found e2e-{label} >/dev/null;"
                    "kubectl create -f - || true",
                    stdin=labelled,
                    check=False,
                ),
                accept=lambda a: 'failed calling webhook "nobody.e2e.example.com"' in a,
            )
        else:
            assert "configmap/e2e-ignore created" in answer
        # Objects that the webhook does not select do not wait for it.
        mesh("kubectl create configmap -n bookinfo e2e-other --from-literal=a=b")
    finally:
        mesh(
            f"kubectl delete {configuration};"
            f"kubectl delete configmap -n bookinfo --ignore-not-found e2e-{label} e2e-other"
        )


def test_a_broken_installation_resource_leaves_the_mesh_alone(
    mesh: Shell, ingress: Ingress
) -> None:
    text = (
        "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n"
        "metadata: {name: e2e-bad, namespace: istio-system}\nspec: {profile: demonstration}\n"
    )
    before = mesh("kubectl get deployments,services -n istio-system -o name")
    mesh("kubectl apply -f -", stdin=text)
    try:
        status = wait_for(
            "an error in status",
            lambda: mesh(
                "kubectl get istiooperator -n istio-system e2e-bad -o jsonpath='{.status.status} {.status.message}'"
            ),
            accept=lambda s: s.startswith("ERROR"),
        )
        assert "there is no profile 'demonstration'" in status
    finally:
        mesh("kubectl delete istiooperator -n istio-system e2e-bad --timeout=30s")
    assert mesh("kubectl get deployments,services -n istio-system -o name") == before
    assert ingress.whole()
