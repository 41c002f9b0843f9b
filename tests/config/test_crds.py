"""CRDs are structural as the API server demands, and agree with the decoder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from meltemi.config.crds import crd_manifests
from meltemi.config.decode import parse_yaml
from meltemi.config.kinds import KINDS

MANIFESTS = crd_manifests()
SAMPLES = Path(__file__).parents[2] / "samples"
LOGIC = ("allOf", "anyOf", "oneOf", "not")
# What a nested logical schema may not contain (Kubernetes: "structural schemas", rule 4).
FORBIDDEN = {"description", "type", "default", "additionalProperties", "nullable"}


def problems(schema: dict[str, Any], path: str = "") -> list[str]:
    """Violations of the structural rules."""
    found = [f"{path}: $ref"] if "$ref" in schema else []
    free = schema.get("x-kubernetes-preserve-unknown-fields") is True
    either = schema.get("x-kubernetes-int-or-string") is True
    if not schema.get("type") and not free and not either:
        found.append(f"{path}: no type")
    if either and "type" in schema:
        found.append(f"{path}: int-or-string with a type")
    if "properties" in schema and "additionalProperties" in schema:
        found.append(f"{path}: properties and additionalProperties")
    if schema.get("type") == "array" and "items" not in schema:
        found.append(f"{path}: array without items")
    for name, child in schema.get("properties", {}).items():
        found += problems(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            found += problems(schema[name], f"{path}[]")
    missing = set(schema.get("required", ())) - set(schema.get("properties", {}))
    if missing:
        found.append(f"{path}: requires unknown {missing}")
    return found + logic(schema, schema, path)


def logic(schema: dict[str, Any], outer: dict[str, Any], path: str) -> list[str]:
    found = []
    for name in LOGIC:
        children = schema.get(name, [])
        for child in [children] if isinstance(children, dict) else children:
            if FORBIDDEN & child.keys():
                found.append(f"{path}.{name}: {FORBIDDEN & child.keys()}")
            unknown = set(child.get("required", ())) - set(outer.get("properties", {}))
            if unknown:
                found.append(f"{path}.{name}: requires unknown {unknown}")
            found += logic(child, outer, f"{path}.{name}")
    return found


@pytest.mark.parametrize("crd", MANIFESTS, ids=lambda crd: crd["spec"]["names"]["kind"])
def test_structural(crd: dict[str, Any]) -> None:
    spec = crd["spec"]
    assert crd["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert sum(version["storage"] for version in spec["versions"]) == 1
    for version in spec["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        assert problems(schema) == []
        assert schema["type"] == "object"
        jsonschema.Draft7Validator.check_schema(schema)
        assert version["subresources"] == {"status": {}}
        assert version["additionalPrinterColumns"][-1]["name"] == "Age"


def test_all_kinds() -> None:
    kinds = {crd["spec"]["names"]["kind"] for crd in MANIFESTS}
    assert kinds == set(KINDS)
    assert len(kinds - {"IstioOperator"}) == 15


@functools.cache
def validator_for(kind: str) -> jsonschema.Draft202012Validator:
    """Checks objects; that the schema itself is one is checked once."""
    schema = schema_for(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def schema_for(kind: str) -> dict[str, Any]:
    crd = next(crd for crd in MANIFESTS if crd["spec"]["names"]["kind"] == kind)
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_samples_fit_their_schemas() -> None:
    checked = 0
    for path in sorted(SAMPLES.rglob("*.yaml")):
        objects, findings = parse_yaml(path.read_text(), str(path))
        assert findings == []
        for raw in objects:
            if raw.kind in KINDS and raw.api_version.startswith(KINDS[raw.kind].group):
                validator_for(raw.kind).validate(raw.body)
                checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("VirtualService", {"http": [{"timeout": "10"}]}),
        ("VirtualService", {"http": [{"timeout": 10}]}),
        ("VirtualService", {"http": [{"match": [{"uri": {"exact": "a", "prefix": "b"}}]}]}),
        ("PeerAuthentication", {"mtls": {"mode": "strict"}}),
        ("DestinationRule", {}),
        ("Gateway", {"servers": [{"hosts": ["*"], "port": {"number": 70000, "name": "a"}}]}),
    ],
)
def test_wrong_values_are_refused(kind: str, spec: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator_for(kind).validate({"spec": spec})
