"""Small pure parts: paths, selectors, JSONPath, durations, table cells, addresses, protobuf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from localkube.apiserver import json_path
from localkube.apiserver.bodies import decode_json, decode_yaml
from localkube.apiserver.builtin_resources import builtin_table
from localkube.apiserver.errors import ApiError
from localkube.apiserver.ipalloc import ServiceAllocator
from localkube.apiserver.protobuf_bodies import _table, decode_protobuf, message_name
from localkube.apiserver.request_info import parse_request
from localkube.apiserver.responses import negotiate
from localkube.apiserver.schema import SchemaIndex
from localkube.apiserver.selectors import build_predicate, parse_label_selector
from localkube.apiserver.table_workloads import pod_status
from localkube.apiserver.tables import build_table, human_duration

TABLE = builtin_table()
PODS = TABLE.lookup("", "v1", "pods")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
assert PODS is not None


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "/api/v1/pods", {}, ("list", "", "", "pods", "", "")),
        ("GET", "/api/v1/pods", {"watch": "true"}, ("watch", "", "", "pods", "", "")),
        ("GET", "/api/v1/watch/pods", {}, ("watch", "", "", "pods", "", "")),
        ("GET", "/apis/apps/v1/namespaces/a/deployments/b/scale", {},
         ("get", "apps", "a", "deployments", "b", "scale")),
        ("PUT", "/api/v1/namespaces/a/finalize", {},
         ("update", "", "a", "namespaces", "a", "finalize")),
        ("POST", "/api/v1/namespaces", {}, ("create", "", "", "namespaces", "", "")),
        ("DELETE", "/api/v1/namespaces/a/pods", {}, ("deletecollection", "", "a", "pods", "", "")),
        ("PATCH", "/apis/x.y/v1/things/system%3Aa", {},
         ("patch", "x.y", "", "things", "system:a", "")),
        ("GET", "/api/v1/namespaces/a/pods", {"fieldSelector": "metadata.name=p"},
         ("list", "", "a", "pods", "p", "")),
    ],
)  # fmt: skip
def test_paths_are_read_as_kubernetes_reads_them(
    method: str, path: str, query: dict[str, str], expected: tuple[str, ...]
) -> None:
    info = parse_request(method, path, query)
    assert info.is_resource
    found = (info.verb, info.group, info.namespace, info.plural, info.name, info.subresource)
    assert found == expected


def test_a_proxy_path_keeps_its_tail() -> None:
    info = parse_request("GET", "/api/v1/namespaces/a/services/http:s:80/proxy/x/y%20z", {})
    assert (info.name, info.subresource, info.tail) == ("http:s:80", "proxy", "/x/y%20z")


@pytest.mark.parametrize(
    ("selector", "matching"),
    [
        ("a=1", {"a": "1"}),
        ("a==1,b!=2", {"a": "1", "b": "3"}),
        ("a in (1, 2),!b", {"a": "2"}),
        ("a notin (1)", {}),
        ("a", {"a": ""}),
        ("x.io/a=1", {"x.io/a": "1"}),
        ("n>3,n<10", {"n": "7"}),
        ("", {"whatever": "x"}),
    ],
)
def test_label_selectors(selector: str, matching: dict[str, str]) -> None:
    assert all(term.matches(matching) for term in parse_label_selector(selector))
    other = {"a": "9", "b": "2", "n": "99"}
    if selector and selector not in ("a", "a notin (1)"):
        assert not all(term.matches(other) for term in parse_label_selector(selector))


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "=x", "a,,b", "a=!x"])
def test_broken_label_selectors_are_refused(selector: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_label_selector(selector)
    assert caught.value.code == 400


def test_field_selectors_know_their_kind() -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}
    assert build_predicate("", "spec.nodeName=n,status.phase!=Failed", PODS)(pod)
    assert not build_predicate("", "metadata.name=q", PODS)(pod)
    with pytest.raises(ApiError, match="field label not supported"):
        build_predicate("", "spec.color=red", PODS)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".spec.size", [3]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[*].type", ["Ready", "Synced"]),
        (".status.conditions[-1].type", ["Synced"]),
        (r".metadata.labels.a\.b/c", ["x"]),
        (".metadata.labels['a.b/c']", ["x"]),
        (".nothing.here", []),
        ("[[", []),
    ],
)
def test_json_path_of_printer_columns(path: str, expected: list[Any]) -> None:
    conditions = [{"type": "Ready", "status": "True"}, {"type": "Synced", "status": "False"}]
    obj = {
        "metadata": {"labels": {"a.b/c": "x"}},
        "spec": {"size": 3},
        "status": {"conditions": conditions},
    }
    assert json_path.select(obj, path) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (119, "119s"), (120, "2m"), (190, "3m10s"), (600, "10m"), (3600 * 2, "120m"),
        (3600 * 3, "3h"), (3600 * 5 + 60 * 7, "5h7m"), (3600 * 30, "30h"), (86400 * 3, "3d"),
        (86400 * 3 + 7200, "3d2h"), (86400 * 40, "40d"), (86400 * 800, "2y70d"),
        (86400 * 365 * 9, "9y"),
    ],
)  # fmt: skip
def test_durations_read_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


def _status(**state: Any) -> dict[str, Any]:
    return {"name": "a", "restartCount": 0, **state}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Running", "containerStatuses": [
            _status(state={"waiting": {"reason": "CrashLoopBackOff"}})]}, "CrashLoopBackOff"),
        ({"phase": "Running", "containerStatuses": [
            _status(ready=True, state={"running": {}})]}, "Running"),
        ({"phase": "Failed", "containerStatuses": [
            _status(state={"terminated": {"exitCode": 3, "reason": "Error"}})]}, "Error"),
        ({"phase": "Failed", "containerStatuses": [
            _status(state={"terminated": {"exitCode": 3}})]}, "ExitCode:3"),
        ({"phase": "Succeeded", "containerStatuses": [
            _status(state={"terminated": {"exitCode": 0, "reason": "Completed"}})]}, "Completed"),
        ({"phase": "Pending", "initContainerStatuses": [
            _status(name="i", state={"running": {}})]}, "Init:0/1"),
        ({"phase": "Pending", "initContainerStatuses": [
            _status(name="i", state={"waiting": {"reason": "ImagePullBackOff"}})]},
         "Init:ImagePullBackOff"),
    ],
)  # fmt: skip
def test_pod_status_column(status: dict[str, Any], expected: str) -> None:
    spec = {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}
    pod = {"metadata": {"name": "p"}, "spec": spec, "status": status}
    assert pod_status(pod) == expected
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    finished = status["phase"] in ("Failed", "Succeeded")
    assert pod_status(pod) == (expected if finished else "Terminating")


@pytest.mark.parametrize("resource", list(TABLE.all()), ids=lambda r: r.qualified)
def test_every_kind_prints_even_when_nearly_empty(resource: Any) -> None:
    obj = {"metadata": {"name": "x"}, "kind": resource.kind}
    table = build_table(resource, [obj], now=NOW)
    assert len(table["rows"][0]["cells"]) == len(table["columnDefinitions"])


def test_restarts_say_when_the_last_one_was() -> None:
    ended = (NOW - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    last = {"terminated": {"finishedAt": ended}}
    status = _status(restartCount=4, lastState=last, ready=True, state={"running": {}})
    pod = {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a"}]},
        "status": {"phase": "Running", "containerStatuses": [status]},
    }
    assert build_table(PODS, [pod], now=NOW)["rows"][0]["cells"][1:4] == [
        "1/1",
        "Running",
        "4 (5m ago)",
    ]


def _service(uid: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": uid, "uid": uid}, "spec": spec}


def test_addresses_and_node_ports_are_unique_and_kept() -> None:
    allocator = ServiceAllocator("10.96.0.0/16", (30000, 30001))
    first = _service("a", type="NodePort", ports=[{"port": 80}])
    allocator.allocate(first, None, [])
    second = _service("b", type="NodePort", ports=[{"port": 80}])
    allocator.allocate(second, None, [first])
    assert first["spec"]["clusterIP"] != second["spec"]["clusterIP"]
    assert {s["spec"]["ports"][0]["nodePort"] for s in (first, second)} == {30000, 30001}
    update = _service("a", type="NodePort", ports=[{"port": 80}])
    allocator.allocate(update, first, [first, second])
    assert update["spec"] == first["spec"]
    third = _service("c", type="NodePort", ports=[{"port": 80}])
    with pytest.raises(ApiError, match="no free node port"):
        allocator.allocate(third, None, [first, second])


def test_asked_addresses_are_checked() -> None:
    allocator = ServiceAllocator("10.96.0.0/16", (30000, 30001))
    taken = _service("a", clusterIP="10.96.0.9", ports=[])
    for wanted in ("10.96.0.9", "10.1.0.1", "nonsense"):
        with pytest.raises(ApiError) as caught:
            allocator.allocate(_service("b", clusterIP=wanted), None, [taken])
        assert caught.value.code == 422
    headless = _service("b", clusterIP="None")
    allocator.allocate(headless, None, [taken])
    assert headless["spec"]["clusterIPs"] == ["None"]
    external = _service("b", type="ExternalName", externalName="x.org")
    allocator.allocate(external, None, [taken])
    assert "clusterIP" not in external["spec"]


@pytest.mark.parametrize(
    ("accept", "media_type", "form"),
    [
        ("", "application/json", ""),
        ("application/vnd.kubernetes.protobuf,application/json", "application/json", ""),
        (
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            "application/json",
            "Table",
        ),
        (
            "application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            "application/json",
            "",
        ),
        ("application/yaml", "application/yaml", ""),
    ],
)
def test_content_negotiation(accept: str, media_type: str, form: str) -> None:
    wanted = negotiate(accept)
    assert (wanted.media_type, wanted.form) == (media_type, form)


def test_hostile_bodies_are_refused() -> None:
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
    )
    for body in (laughs.encode(), b"a: [" * 5000, b"a: b: c", b"\xff\xff"):
        with pytest.raises(ApiError) as caught:
            decode_yaml(body)
        assert caught.value.code == 400
    for body in (b"[" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500, b"{", b"nope"):
        with pytest.raises(ApiError) as caught:
            decode_json(body)
        assert caught.value.code == 400
    assert decode_yaml(b"when: 2026-01-01\nok: yes") == {"when": "2026-01-01", "ok": True}


# -- protobuf -------------------------------------------------------------------------------------


def _field(number: int, value: bytes | int) -> bytes:
    def varint(n: int) -> bytes:
        out = b""
        while n > 0x7F:
            out += bytes([n & 0x7F | 0x80])
            n >>= 7
        return out + bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    return varint(number << 3 | 2) + varint(len(value)) + value


def _envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    meta = _field(1, api_version.encode()) + _field(2, kind.encode())
    return b"k8s\x00" + _field(1, meta) + _field(2, raw)


def test_protobuf_becomes_the_same_object_as_in_json() -> None:
    labels = _field(11, _field(1, b"a") + _field(2, b"b"))
    metadata = _field(1, b"p") + _field(8, b"") + labels
    port = _field(1, b"http") + _field(2, 0) + _field(3, 8080) + _field(4, b"")
    get = _field(2, _field(1, b"/x") + _field(2, _field(1, 1) + _field(2, 0) + _field(3, b"http")))
    probe = _field(1, get) + _field(2, 0) + _field(3, 0)
    container = _field(1, b"c") + _field(6, port) + _field(10, probe) + _field(16, 0)
    volume = _field(1, b"v") + _field(2, _field(2, b""))
    spec = _field(1, volume) + _field(2, container) + _field(4, 0) + _field(2000, 1)
    obj, unknown = decode_protobuf(_envelope("v1", "Pod", _field(1, metadata) + _field(2, spec)))
    assert obj == {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "p", "labels": {"a": "b"}},
        "spec": {
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [
                {
                    "name": "c",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "livenessProbe": {"httpGet": {"path": "/x", "port": "http"}},
                }
            ],
            "terminationGracePeriodSeconds": 0,
        },
    }
    assert unknown == ["spec, protobuf field 2000"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"k8s\x00\xff\xff", 400),
        (b"{}", 400),
        (_envelope("v1", "Pod", b"\x0a\xff\x01"), 400),
        (_envelope("example.com/v1", "Widget", b""), 415),
    ],
)
def test_broken_or_unknown_protobuf_is_refused(body: bytes, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        decode_protobuf(body)
    assert caught.value.code == code


def test_protobuf_knows_the_fields_that_the_schemas_have() -> None:
    """The table of numbers and the OpenAPI schemas are two sources for the same types."""
    schemas = SchemaIndex()
    without = ("apiextensions.k8s.io", "apiregistration.k8s.io")
    for resource in TABLE.all():
        if resource.group in without:
            continue
        message = message_name(resource.api_version, resource.kind)
        assert message is not None, resource
    names = set(schemas.names())
    for message, fields in _table().items():
        if message not in names:
            continue
        properties = schemas.definition(message).get("properties") or {}
        for field in fields.values():
            assert field.flag == "inline" or field.name in properties, (message, field)
