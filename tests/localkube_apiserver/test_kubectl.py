"""Real kubectl against the server, with every kubectl that this machine has."""

from __future__ import annotations

from collections.abc import Callable

from localkube_apiserver.api_process import ApiProcess

Kubectl = Callable[..., str]

_WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "nginx:1", ports: [{containerPort: 80}], env: [{name: A, value: "1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
"""

_WIDGETS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.kubectl.test}
spec:
  group: kubectl.test
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {type: integer, description: How big the widget is.}
              replicas: {type: integer}
              colour: {type: string, default: red}
"""

_WIDGET = """
apiVersion: kubectl.test/v1
kind: Widget
metadata: {name: w}
spec: {size: 3}
"""


def test_apply_is_idempotent_and_three_way(kubectl: Kubectl, namespace: str) -> None:
    def apply(text: str) -> list[str]:
        lines = kubectl("apply", "-n", namespace, "-f", "-", stdin=text).splitlines()
        return [line.rpartition(" ")[2] for line in lines]

    assert apply(_WEB) == ["created", "created"]
    assert apply(_WEB) == ["unchanged", "unchanged"]
    kubectl("scale", "-n", namespace, "deployment/web", "--replicas=4")
    changed = _WEB.replace("nginx:1", "nginx:2").replace("name: A", "name: B")
    assert apply(changed.replace("  replicas: 2\n", "")) == ["configured", "unchanged"]
    path = "{.spec.replicas} {.spec.template.spec.containers[0].image} "
    path += "{.spec.template.spec.containers[0].env}"
    found = kubectl("get", "-n", namespace, "deployment/web", "-o", f"jsonpath={path}")
    assert found == '1 nginx:2 [{"name":"B","value":"1"}]'


def test_server_side_apply_conflicts_and_is_forced(kubectl: Kubectl, namespace: str) -> None:
    command = ("apply", "-n", namespace, "--server-side", "-f", "-")
    kubectl(*command, "--field-manager=one", stdin=_WEB)
    other = _WEB.replace("nginx:1", "nginx:2")
    refused = kubectl(*command, "--field-manager=two", stdin=other, code=1)
    assert 'conflict with "one": .spec.template.spec.containers[name="web"].image' in refused
    kubectl(*command, "--field-manager=two", "--force-conflicts", stdin=other)
    again = kubectl(*command, "--field-manager=one", stdin=_WEB, code=1)
    assert 'conflict with "two"' in again


def test_custom_resources(kubectl: Kubectl, namespace: str) -> None:
    kubectl("apply", "-f", "-", stdin=_WIDGETS)
    kubectl("wait", "--for=condition=Established", "crd/widgets.kubectl.test")
    kubectl("apply", "-n", namespace, "-f", "-", stdin=_WIDGET)
    lines = kubectl("get", "wd", "-n", namespace).splitlines()
    assert [line.split() for line in lines] == [["NAME", "SIZE"], ["w", "3"]]
    assert "How big the widget is." in kubectl("explain", "widget.spec.size")
    kubectl("scale", "-n", namespace, "wd/w", "--replicas=7")
    spec = kubectl("get", "-n", namespace, "wd/w", "-o", "jsonpath={.spec}")
    assert spec == '{"colour":"red","replicas":7,"size":3}'
    assert "wd" in kubectl("api-resources", "--api-group=kubectl.test")
    kubectl("delete", "-f", "-", stdin=_WIDGETS)


def test_typed_commands(kubectl: Kubectl, namespace: str) -> None:
    """They send protobuf."""
    n = ("-n", namespace)
    kubectl("create", *n, "configmap", "c", "--from-literal=a=b")
    kubectl("create", *n, "secret", "generic", "s", "--from-literal=a=b")
    kubectl("create", *n, "deployment", "d", "--image=x", "--port=80")
    kubectl("create", *n, "service", "loadbalancer", "l", "--tcp=80:8080")
    kubectl("create", *n, "role", "r", "--verb=get", "--resource=pods")
    kubectl("create", *n, "rolebinding", "rb", "--role=r", "--user=bob")
    kubectl("run", *n, "p", "--image=x", "--port=80")
    assert kubectl("create", *n, "token", "default").count(".") == 2
    table = kubectl("get", *n, "deployment,service,pod,secret,configmap", "--no-headers")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line}
    assert rows["deployment.apps/d"][0] == "0/1"
    assert rows["service/l"][2] == "<pending>"
    assert rows["pod/p"][:2] == ["0/1", "Pending"]
    assert rows["secret/s"][:2] == ["Opaque", "1"]
    assert rows["configmap/c"][0] == "1"
    who = ("--as=bob", *n)
    assert kubectl("auth", "can-i", "get", "pods", *who).strip() == "yes"
    assert "no" in kubectl("auth", "can-i", "create", "pods", *who, code=1)
    assert "kubernetes-admin" in kubectl("auth", "whoami")


def test_changes_in_place(kubectl: Kubectl, namespace: str) -> None:
    n = ("-n", namespace)
    kubectl("apply", *n, "-f", "-", stdin=_WEB)
    kubectl("label", *n, "deployment/web", "tier=front")
    kubectl("annotate", *n, "deployment/web", "note=x")
    kubectl("set", "image", *n, "deployment/web", "web=nginx:3")
    patch = '[{"op":"replace","path":"/spec/replicas","value":9}]'
    kubectl("patch", *n, "deployment/web", "--type=json", "-p", patch)
    containers = '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s"}]}}}}'
    kubectl("patch", *n, "deployment/web", "-p", containers)
    path = "{.metadata.labels.tier} {.spec.replicas} "
    path += "{.spec.template.spec.containers[*].image}"
    found = kubectl("get", *n, "deployment/web", "-o", f"jsonpath={path}")
    assert sorted(found.split()) == sorted(["front", "9", "nginx:3", "s"])
    assert "deployment.apps/web" in kubectl("rollout", "history", *n, "deployment/web")
    assert "web" in kubectl("describe", *n, "service", "web")
    kubectl("delete", *n, "deployment,service", "--all")
    assert "No resources found" in kubectl("get", *n, "deployment,service")


def test_watching_and_waiting(kubectl: Kubectl, api: ApiProcess, namespace: str) -> None:
    n = ("-n", namespace)
    kubectl("create", *n, "configmap", "c")
    shown = kubectl("get", *n, "configmap/c", "-w", "--output-watch-events", "--request-timeout=2s")
    assert "ADDED" in shown
    kubectl("delete", *n, "configmap/c", "--wait")
    kubectl("wait", *n, "--for=delete", "configmap/c", "--timeout=5s")


def test_mistakes_are_explained(kubectl: Kubectl, namespace: str) -> None:
    n = ("-n", namespace)
    wrong = _WEB.replace("replicas: 2", "replicaz: 2")
    assert 'unknown field "spec.replicaz"' in kubectl("apply", *n, "-f", "-", stdin=wrong, code=1)
    assert 'pods "x" not found' in kubectl("get", *n, "pod", "x", code=1)
    negative = _WEB.replace("replicas: 2", "replicas: -2")
    refused = kubectl("apply", *n, "-f", "-", stdin=negative, code=1)
    assert 'The Deployment "web" is invalid: spec.replicas' in refused
    unknown = _WEB.replace("kind: Deployment", "kind: Deploymant")
    refused = kubectl("apply", *n, "-f", "-", stdin=unknown, code=1)
    assert 'no matches for kind "Deploymant" in version "apps/v1"' in refused


def test_version_2_of_openapi_is_readable(kubectl: Kubectl) -> None:
    text = kubectl("explain", "pods.spec.containers", "--output=plaintext-openapiv2")
    assert "RESOURCE: containers <[]Object>" in text
    assert "name\t<string> -required-" in text


def test_chunks_and_raw_paths(kubectl: Kubectl, namespace: str) -> None:
    for number in range(5):
        kubectl("create", "-n", namespace, "configmap", f"c{number}")
    names = kubectl("get", "-n", namespace, "cm", "-o", "name", "--chunk-size=2").split()
    assert names == [f"configmap/c{number}" for number in range(5)]
    assert kubectl("get", "--raw", "/healthz") == "ok"
    assert "v1.37" in kubectl("version")
