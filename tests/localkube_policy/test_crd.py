"""CustomResourceDefinitions and the objects of their kinds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import World, crd, widget

Object = dict[str, Any]
SCHEMA: Object = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 10},
                "mode": {"type": "string", "enum": ["fast", "safe"], "default": "safe"},
                "host": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                "port": {
                    "x-kubernetes-int-or-string": True,
                    "anyOf": [{"type": "integer"}, {"type": "string"}],
                },
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "template": {"type": "object", "x-kubernetes-embedded-resource": True},
                "match": {
                    "type": "object",
                    "properties": {"exact": {"type": "string"}, "prefix": {"type": "string"}},
                    "oneOf": [{"required": ["exact"]}, {"required": ["prefix"]}],
                },
                "rules": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"type": "string"},
                            "weight": {"type": "integer", "default": 1},
                        },
                    },
                },
            },
        },
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}


@pytest.fixture
async def served(world: World) -> World:
    """A world that serves Widgets."""
    await world.create(crd(SCHEMA, subresources={"status": {}}))
    return world


async def test_a_crd_is_established_at_once(world: World) -> None:
    """Its conditions say so, and its resource, schema and OpenAPI document are there."""
    stored, _ = await world.create(crd(SCHEMA))
    conditions = {c["type"]: c["status"] for c in stored["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert stored["status"]["storedVersions"] == ["v1"]
    assert stored["spec"]["names"]["listKind"] == "WidgetList"
    resource = world.table.lookup("example.com", "v1", "widgets")
    assert resource is not None and resource.short_names == ("wd",)
    document = msgspec.json.decode(world.policy.openapi_v3("apis/example.com/v1") or b"{}")
    assert "com.example.v1.Widget" in document["components"]["schemas"]
    world.remove("customresourcedefinitions", "widgets.example.com", group="apiextensions.k8s.io")
    assert world.table.lookup("example.com", "v1", "widgets") is None
    assert world.policy.openapi_v3("apis/example.com/v1") is None


async def test_conflicting_names_are_not_accepted(world: World) -> None:
    """A second CRD of the group with a taken kind is stored, but not served."""
    await world.create(crd(SCHEMA))
    second = crd(SCHEMA)
    second["metadata"]["name"] = "gadgets.example.com"
    second["spec"]["names"] = {"plural": "gadgets", "singular": "gadget", "kind": "Widget"}
    stored, _ = await world.create(second)
    first = stored["status"]["conditions"][0]
    assert (first["type"], first["status"], first["reason"]) == (
        "NamesAccepted",
        "False",
        "KindConflict",
    )
    assert world.table.lookup("example.com", "v1", "gadgets") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"size": "big"},
            'spec.size: Invalid value: "string": spec.size in body must be of type '
            'integer: "string"',
        ),
        (
            {"size": 11},
            "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10",
        ),
        ({}, "spec.size: Required value"),
        (
            {"size": 1, "mode": "x"},
            'spec.mode: Unsupported value: "x": supported values: "fast", "safe"',
        ),
        (
            {"size": 1, "host": "A"},
            "spec.host: Invalid value: \"A\": spec.host in body should match '^[a-z]+$'",
        ),
        ({"size": 1, "host": "abcdefg"}, "spec.host: Too long: may not be more than 5 bytes"),
        ({"size": 1, "port": True}, "spec.port in body must be of type integer,string"),
        (
            {"size": 1, "match": {"exact": "a", "prefix": "b"}},
            '"spec.match" must validate one and only one schema (oneOf). Found 2 valid alternatives',
        ),
        ({"size": 1, "match": {}}, "(oneOf). Found none valid"),
        (
            {"size": 1, "rules": [{"name": "a"}, {"name": "a"}]},
            'spec.rules[1]: Duplicate value: {"name":"a"}',
        ),
        ({"size": 1, "labels": {"a": 1}}, "spec.labels.a in body must be of type string"),
    ],
)
async def test_schema_violations(served: World, fields: Object, message: str) -> None:
    """Each violation is told as kube-apiserver tells it."""
    errors = served.check(widget(spec=fields))
    assert any(message in error for error in errors), errors


async def test_missing_spec(served: World) -> None:
    assert served.check(widget()) == ["spec: Required value"]


async def test_defaults_at_every_depth(served: World) -> None:
    """Defaults fill missing fields, also in list items, and replace a null."""
    decoded, _ = served.decode(widget(spec={"size": 1, "mode": None, "rules": [{"name": "a"}]}))
    assert decoded["spec"]["mode"] == "safe"
    assert decoded["spec"]["rules"] == [{"name": "a", "weight": 1}]


async def test_pruning(served: World) -> None:
    """Unknown fields go, except where the schema keeps them."""
    spec = {
        "size": 1,
        "typo": 1,
        "free": {"any": {"thing": 1}},
        "rules": [{"name": "a", "odd": 1}],
        "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}},
    }
    decoded, warnings = served.decode(widget(spec=spec, status={"x": 1}), "Warn")
    assert warnings == [
        'unknown field "spec.typo"',
        'unknown field "spec.rules[0].odd"',
        'unknown field "spec.template.spec"',
    ]
    assert decoded["spec"]["free"] == {"any": {"thing": 1}}
    assert decoded["spec"]["template"]["metadata"] == {"name": "x"}
    assert decoded["status"] == {"x": 1}
    with pytest.raises(ApiError, match=r'strict decoding error: unknown field "spec\.typo"'):
        served.decode(widget(spec=spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["metadata"].update(name="x.example.com"), "must be spec.names.plural"),
        (lambda c: c["spec"]["versions"][0].update(storage=False), "exactly one version marked"),
        (lambda c: c["spec"]["versions"][0].pop("schema"), "openAPIV3Schema: Required value"),
        (lambda c: c["spec"].update(scope="Here"), 'spec.scope: Unsupported value: "Here"'),
        (lambda c: c["spec"].update(group="nodots"), "metadata.name: Invalid value"),
        (
            lambda c: c["spec"]["versions"][0]["schema"].update(
                openAPIV3Schema={"type": "object", "properties": {"spec": {"properties": {}}}}
            ),
            "properties[spec].type: Required value: must not be empty for specified object fields",
        ),
    ],
)
def test_bad_definitions(world: World, change: Any, message: str) -> None:
    """A CRD that makes no sense is refused with the field at fault."""
    definition = crd(SCHEMA)
    change(definition)
    errors = world.check(definition)
    assert any(message in error for error in errors), errors


def test_scope_is_immutable(world: World) -> None:
    changed = crd(SCHEMA)
    changed["spec"]["scope"] = "Cluster"
    assert 'spec.scope: Invalid value: "Cluster": field is immutable' in world.check_update(
        changed, crd(SCHEMA)
    )


# -- CEL --------------------------------------------------------------------------------------


def ruled(rules: list[Object], **properties: Object) -> Object:
    return {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": properties,
                "x-kubernetes-validations": rules,
            }
        },
    }


async def test_rule_message(world: World) -> None:
    """A false rule gives its message at the place where it stands."""
    number = {"type": "integer"}
    rule = {"rule": "self.low <= self.high", "message": "low must not exceed high"}
    await world.create(crd(ruled([rule], low=number, high=number)))
    assert world.check(widget(spec={"low": 1, "high": 2})) == []
    assert world.check(widget(spec={"low": 3, "high": 2})) == [
        'spec: Invalid value: "object": low must not exceed high'
    ]


async def test_transition_rule(world: World) -> None:
    """A rule on oldSelf says nothing on creation and guards updates."""
    name = {
        "type": "string",
        "x-kubernetes-validations": [
            {"rule": "self == oldSelf", "message": "is immutable", "fieldPath": ""}
        ],
    }
    await world.create(crd(ruled([], name=name)))
    assert world.check(widget(spec={"name": "a"})) == []
    errors = world.check_update(widget(spec={"name": "b"}), widget(spec={"name": "a"}))
    assert errors == ['spec.name: Invalid value: "string": is immutable']


@pytest.mark.parametrize(
    ("rule", "spec", "valid"),
    [
        ("has(self.a) != has(self.b)", {"a": "x"}, True),
        ("has(self.a) != has(self.b)", {"a": "x", "b": "y"}, False),
        ("self.l.all(x, x.matches('^[a-z]+$'))", {"l": ["a", "B"]}, False),
        ("self.l.exists_one(x, x == 'a')", {"l": ["a", "b"]}, True),
        ("size(self.l) <= 1 || self.l[0] != self.l[1]", {"l": ["a", "a"]}, False),
        ("self.?a.orValue('d') == 'd'", {}, True),
        ("quantity(self.a).isGreaterThan(quantity('1Mi'))", {"a": "1Gi"}, True),
        ("isURL(self.a) && url(self.a).getHostname() == 'h'", {"a": "https://h:1/p"}, True),
        ("cidr('10.0.0.0/8').containsIP(self.a)", {"a": "11.0.0.1"}, False),
        ("duration(self.a) >= duration('1ms')", {"a": "5s"}, True),
        ("self.__namespace__ == 'n' && self.x__dash__y == 1", {"namespace": "n", "x-y": 1}, True),
        ("self.f / 2.0 == 1.5", {"f": 3}, True),
    ],
)
async def test_language(world: World, rule: str, spec: Object, valid: bool) -> None:
    """The parts of CEL that CRDs commonly use."""
    text = {"type": "string"}
    properties: dict[str, Object] = {
        "a": text,
        "b": text,
        "namespace": text,
        "x-y": {"type": "integer"},
        "f": {"type": "number"},
        "l": {"type": "array", "items": text},
    }
    _, warnings = await world.create(crd(ruled([{"rule": rule}], **properties)))
    assert warnings == []
    assert (world.check(widget(spec=spec)) == []) is valid


async def test_optional_old_self_and_message_expression(world: World) -> None:
    """optionalOldSelf makes a transition rule run on creation; messages may be computed."""
    rule = {
        "rule": "oldSelf.hasValue() || self.a == 'first'",
        "optionalOldSelf": True,
        "messageExpression": "'must be first, not ' + self.a",
    }
    await world.create(crd(ruled([rule], a={"type": "string"})))
    assert world.check(widget(spec={"a": "first"})) == []
    assert world.check(widget(spec={"a": "no"})) == [
        'spec: Invalid value: "object": must be first, not no'
    ]
    assert world.check_update(widget(spec={"a": "x"}), widget(spec={"a": "first"})) == []


async def test_unknown_function_is_warned_about(world: World) -> None:
    """A rule that cannot be evaluated here is told once, when the CRD is written."""
    rule = {"rule": "self.a.frobnicate()"}
    _, warnings = await world.create(crd(ruled([rule], a={"type": "string"})))
    assert len(warnings) == 1
    assert "rule 'self.a.frobnicate()' is not evaluated: undeclared reference" in warnings[0]
    assert world.check(widget(spec={"a": "x"})) == []


async def test_rule_that_fails_to_evaluate_is_an_error(world: World) -> None:
    await world.create(crd(ruled([{"rule": "self.a == 'x'"}], a={"type": "string"})))
    assert world.check(widget(spec={})) == [
        'spec: Invalid value: "object": rule evaluation error: no such key: a, evaluating rule: '
        "self.a == 'x'"
    ]
