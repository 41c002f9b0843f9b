"""Reading objects: total on any input, precise on wrong input."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meltemi.config.admission import validate_review
from meltemi.config.decode import decode, load, parse_yaml
from meltemi.config.kinds import KINDS
from meltemi.config.shapes import Choice, ListOf, MapOf, Record, Scalar, Shape, record
from meltemi.model.origin import Level

VIRTUAL_SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  namespace: bookinfo
spec:
  hosts: [reviews]
  http:
  - match:
    - headers:
        end-user: {exact: jason}
    timeout: 1m30s
    route:
    - destination: {host: reviews, subset: v2, port: {number: 9080}}
      weight: 90
    - destination: {host: reviews, subset: v1}
      weight: 10
"""


def load_one(text: str) -> tuple[Any, list[Any]]:
    objects, findings = parse_yaml(text, "test.yaml")
    assert findings == []
    (raw,) = objects
    return load(raw)


def edited(old: str, new: str) -> str:
    assert old in VIRTUAL_SERVICE
    return VIRTUAL_SERVICE.replace(old, new)


def test_decodes_to_frozen_hashable_values() -> None:
    config, findings = load_one(VIRTUAL_SERVICE)
    assert findings == []
    route = config.spec.http[0]
    assert route.timeout == 90.0
    assert route.match[0].headers["end-user"].exact == "jason"
    assert route.route[0].destination.port.number == 9080
    assert hash(config.spec) == hash(load_one(VIRTUAL_SERVICE)[0].spec)
    assert config == load_one(VIRTUAL_SERVICE)[0]


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_versions_are_alike(version: str) -> None:
    config, _ = load_one(edited("istio.io/v1", f"istio.io/{version}"))
    assert config.spec == load_one(VIRTUAL_SERVICE)[0].spec


def test_origin_knows_the_line() -> None:
    config, _ = load_one(VIRTUAL_SERVICE)
    origin = config.origin("spec.http[0].route[1].weight")
    assert (origin.source, origin.line) == ("test.yaml", 17)
    assert config.origin("spec.http[0].route[0].destination.host").line == 14
    assert config.origin("spec.http[0].fault.delay").line == 9  # the nearest known: http[0]


@pytest.mark.parametrize(
    ("old", "new", "path", "text", "remedy", "usable"),
    [
        ("http:", "htpp:", "spec.htpp", "unknown field", 'did you mean "http"', False),
        ("hosts:", "gatways: []\n  hosts:", "spec.gatways", "unknown field", '"gateways"', True),
        ("exact:", "exat:", "spec.http[0].match[0].headers.end-user.exat", "unknown", "exact", True),
        ("1m30s", "90", "spec.http[0].timeout", "the number 90", "10s", False),
        ("1m30s", "abc", "spec.http[0].timeout", "not a duration", "500ms", False),
        ("weight: 90", 'weight: "90"', "spec.http[0].route[0].weight", "whole number", "quotes", False),
        ("number: 9080", "number: 99999", ".port.number", "out of range", "65535", False),
        ("hosts: [reviews]", "hosts: reviews", "spec.hosts", "expected a list", "- ", False),
        ("hosts: [reviews]", 'hosts: ["*"]', "spec.hosts[0]", '"*" cannot', "gateways", False),
        ("host: reviews, subset: v1", "subset: v1", "destination.host", "is required", "host", False),
        ("exact: jason", 'regex: "(?=a)"', "end-user.regex", "not a regular", "RE2", False),
        ("weight: 90", "weight: 0", "", "", "", True),
        ("weight: 10", "weight: -1", "spec.http[0].route[1].weight", "out of range", "0", False),
        ("timeout: 1m30s", "redirect: {uri: /x}", "redirect", "exclude each other", "keep", False),
        ("timeout: 1m30s", "retries: {attempts: 1, retryOn: 5xxx}", "retryOn", "5xxx", "5xx", False),
        ("timeout: 1m30s", "fault: {abort: {httpStatus: 1000}}", "httpStatus", "1000", "599", False),
        ("timeout: 1m30s", "corsPolicy: {allowMethods: [FETCH]}", "allowMethods[0]", "FETCH", "", False),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    old: str, new: str, path: str, text: str, remedy: str, usable: bool
) -> None:
    config, findings = load_one(edited(old, new))
    assert (config is not None) == usable
    if not path:
        assert findings == []
        return
    finding = next(f for f in findings if f.level is Level.ERROR)
    assert path in finding.origin.path
    assert text in finding.text
    assert remedy in finding.remedy
    assert finding.origin.line > 0


def test_enum_typo() -> None:
    text = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: a}
spec: {mtls: {mode: strict}}
"""
    config, (finding, instead) = load_one(text)
    assert "did you mean STRICT" in finding.remedy
    assert finding.origin.line == 4
    assert config is not None  # a policy that cannot be read opens nothing
    assert config.spec.mtls.mode == "STRICT"
    assert instead.code == "MLT0013"


def test_one_broken_document_does_not_hide_the_others() -> None:
    text = f"{VIRTUAL_SERVICE}---\nkind: [\n---\n{VIRTUAL_SERVICE}---\n- no object\n---\n# empty\n"
    objects, findings = parse_yaml(text, "many.yaml")
    assert [raw.name for raw in objects] == ["reviews", "reviews"]
    assert [finding.code for finding in findings] == ["MLT0001", "MLT0001"]
    assert 18 < findings[0].origin.line <= 21
    assert objects[1].source_map.lines["spec.hosts"][0] == 20 + 7


def test_lists_and_json() -> None:
    text = '{"apiVersion":"v1","kind":"List","items":[\n\t{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}]}'
    objects, findings = parse_yaml(text, "list.json")
    assert findings == []
    assert [(raw.kind, raw.name) for raw in objects] == [("Namespace", "a")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 010", 8), ("a: 0x1F", 31), ("a: 1_000", 1000), ("a: yes", True), ("a: 'yes'", "yes"),
        ("a: 1e3", 1000.0), ("a: 12:30:45", "12:30:45"), ("a: 2001-01-01", "2001-01-01"),
        ("a: ~", None), ("a: !!str 5", "5"), ("a: -.inf", float("-inf")), ("a: |\n  x\n", "x\n"),
        ("b: &x {c: 1}\na: *x", {"c": 1}), ("b: &x {c: 1}\na: {<<: *x, d: 2}", {"c": 1, "d": 2}),
        ("a: {<<: {c: 1}, c: 3}", {"c": 3}),
    ],
)  # fmt: skip
def test_scalars_resolve_as_kubectl_does(text: str, value: object) -> None:
    objects, findings = parse_yaml(f"apiVersion: v1\nkind: X\n{text}\n", "x")
    assert findings == []
    assert objects[0].body["a"] == value


def test_hostile_yaml_is_bounded() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    for text in (bomb, "[" * 5000, "{a: " * 5000, "a: *missing", "a: !!python/object:x {}", "\x00"):
        objects, findings = parse_yaml(text, "bad")
        assert objects == []
        assert [finding.code for finding in findings] == ["MLT0001"]


def test_double_keys_are_reported() -> None:
    objects, findings = parse_yaml("apiVersion: v1\nkind: A\nkind: B\n", "x")
    assert len(objects) == 1
    assert "kind" in findings[0].text
    assert findings[0].origin.line == 3


def test_unknown_kinds_and_versions() -> None:
    base = {"metadata": {"name": "a", "namespace": "b"}, "spec": {}}
    assert decode({"apiVersion": "apps/v1", "kind": "Deployment", **base}) == (None, [])
    _, (finding,) = decode(
        {"apiVersion": "networking.istio.io/v1", "kind": "VirtualServce", **base}
    )
    assert "VirtualService" in finding.remedy
    _, findings = decode({"apiVersion": "networking.istio.io/v9", "kind": "Gateway", **base})
    assert "networking.istio.io/v1" in findings[0].remedy


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def values_for(shape: Shape, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that mostly have the right shape, so that semantic rules see them too."""
    if isinstance(shape, Record):
        fields = {
            name: values_for(field.shape, depth + 1)
            for name, field in shape.fields.items()
            if depth < 7
        }
        return st.fixed_dictionaries({}, optional=fields)
    if isinstance(shape, ListOf):
        return st.lists(values_for(shape.item, depth + 1), max_size=2)
    if isinstance(shape, MapOf):
        keys = st.sampled_from(["a", "8080", "", "x/y.z", "*"])
        return st.dictionaries(keys, values_for(shape.value, depth + 1), max_size=2)
    if isinstance(shape, Choice):
        return st.sampled_from(shape.values)
    assert isinstance(shape, Scalar)
    if shape.format == "duration":
        return st.sampled_from(["1s", "0s", "-5m", "1.5h", "abc", ""])
    if shape.type == "string":
        return st.sampled_from(["", "*", "a", "a.b.c", "10.0.0.0/8", "{**}/{*}", "/x", "²", "~/*"])
    if shape.type == "integer":
        return st.sampled_from([0, 1, 80, 65535, -1, 2**40])
    if shape.type == "boolean":
        return st.booleans()
    return json_values


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_loading_is_total(kind: str, data: st.DataObject) -> None:
    info = KINDS[kind]
    spec = data.draw(values_for(record(info.spec)) | json_values)
    metadata = data.draw(
        json_values | st.just({"name": "a", "namespace": "b", "labels": {"x": "y"}})
    )
    body = {"apiVersion": info.api_version, "kind": kind, "metadata": metadata, "spec": spec}
    config, findings = load(body)
    if config is None:
        assert any(finding.level is Level.ERROR for finding in findings)
    else:
        hash(config.spec)
    answer = validate_review({"request": {"uid": "1", "operation": "CREATE", "object": body}})
    refused = any(finding.level is Level.ERROR for finding in findings)
    assert answer["response"]["allowed"] is not refused


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_any_json_is_answered(value: object) -> None:
    if isinstance(value, dict):
        load(value)
    answer = validate_review(value)
    assert answer["response"]["allowed"] in (True, False)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a:-[]{}&*!|>'\"\n \t#%@`,<0", max_size=60))
def test_any_text_is_parsed(text: str) -> None:
    objects, _ = parse_yaml(text, "fuzz")
    for raw in objects:
        load(raw)
