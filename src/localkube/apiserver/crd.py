"""CustomResourceDefinitions: their rules, their status, and the resources that they make.

In: CRD objects. Out: field errors, the status that the server sets (names accepted, established),
and `Resource` values with a parsed `CustomVersion` each. `CustomResources` keeps a resource table
and a schema index in step with the stored CRDs. Conversion between versions changes only the
apiVersion (strategy None).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localkube.apiserver import crd_rules, crd_schema
from localkube.apiserver import validation_errors as fe
from localkube.apiserver import validation_formats as formats
from localkube.apiserver.errors import FieldError
from localkube.apiserver.resources import PrinterColumn, Resource, ResourceTable

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader
    from localkube.apiserver.schema import Schema, SchemaIndex

GROUP = "apiextensions.k8s.io"
PLURAL = "customresourcedefinitions"
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_SCOPES = ("Cluster", "Namespaced")


@dataclass(frozen=True, slots=True, eq=False)
class CustomVersion:
    """One served version of a CRD, as validation, defaulting and selection need it."""

    group: str
    version: str
    kind: str
    schema: Schema
    has_rules: bool
    deprecation: str
    """The text for a Warning header; empty unless the version is deprecated."""
    selectable_fields: tuple[str, ...]
    """JSON paths, with their leading dot."""


# -- rules ------------------------------------------------------------------------------------


def validate_crd(obj: Object) -> list[FieldError]:
    """Errors in a CRD that is to be created."""
    errors: list[FieldError] = []
    spec = obj.get("spec") or {}
    group, names = str(spec.get("group") or ""), spec.get("names") or {}
    _validate_names(obj, group, names, errors)
    if spec.get("scope") not in _SCOPES:
        errors.append(fe.unsupported("spec.scope", spec.get("scope"), _SCOPES))
    if spec.get("preserveUnknownFields"):
        detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec."
        detail += "versions[*].schema instead"
        errors.append(fe.invalid("spec.preserveUnknownFields", True, detail))
    _validate_conversion(spec.get("conversion") or {}, errors)
    versions = spec.get("versions") or []
    if not versions:
        errors.append(fe.required("spec.versions"))
    elif sum(1 for version in versions if version.get("storage")) != 1:
        shown = [version.get("name") for version in versions]
        detail = "must have exactly one version marked as storage version"
        errors.append(fe.invalid("spec.versions", shown, detail))
    seen: set[str] = set()
    for index, version in enumerate(versions):
        name = str(version.get("name") or "")
        if name in seen:
            errors.append(fe.invalid("spec.versions", name, "must contain unique version names"))
        seen.add(name)
        _validate_version(version, f"spec.versions[{index}]", errors)
    return errors


def _validate_names(obj: Object, group: str, names: Object, errors: list[FieldError]) -> None:
    plural = str(names.get("plural") or "")
    if not group:
        errors.append(fe.required("spec.group"))
    elif problem := formats.check_dns_subdomain(group):
        errors.append(fe.invalid("spec.group", group, problem))
    elif "." not in group:
        errors.append(fe.invalid("spec.group", group, "should be a domain with at least one dot"))
    if (obj.get("metadata") or {}).get("name") != f"{plural}.{group}":
        errors.append(
            fe.invalid(
                "metadata.name",
                (obj.get("metadata") or {}).get("name"),
                'must be spec.names.plural+"."+spec.group',
            )
        )
    for field in ("plural", "singular", "kind", "listKind"):
        value = str(names.get(field) or "")
        path = f"spec.names.{field}"
        if not value:
            errors.append(fe.required(path))
        elif problem := formats.check_dns_1035(value.lower()):
            errors.append(
                fe.invalid(
                    path, value, f"may have mixed case, but should otherwise match: {problem}"
                )
            )
    if names.get("kind") and names.get("kind") == names.get("listKind"):
        detail = "kind and listKind may not be the same"
        errors.append(fe.invalid("spec.names.listKind", names["listKind"], detail))
    for index, short in enumerate(names.get("shortNames") or ()):
        if problem := formats.check_dns_1035(str(short)):
            errors.append(fe.invalid(f"spec.names.shortNames[{index}]", short, problem))


def _validate_conversion(conversion: Object, errors: list[FieldError]) -> None:
    strategies = ("None", "Webhook")
    strategy = conversion.get("strategy")
    if strategy not in (None, *strategies):
        errors.append(fe.unsupported("spec.conversion.strategy", strategy, strategies))
    if strategy == "Webhook" and not (conversion.get("webhook") or {}).get("clientConfig"):
        errors.append(
            fe.required(
                "spec.conversion.webhook.clientConfig",
                "required when strategy is set to Webhook",
            )
        )


def _validate_version(version: Object, path: str, errors: list[FieldError]) -> None:
    name = str(version.get("name") or "")
    if problem := formats.check_dns_1035(name):
        errors.append(fe.invalid(f"{path}.name", name, problem))
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    errors += crd_schema.validate_structural(schema, f"{path}.schema.openAPIV3Schema")
    for index, column in enumerate(version.get("additionalPrinterColumns") or ()):
        here = f"{path}.additionalPrinterColumns[{index}]"
        for field in ("name", "type", "jsonPath"):
            if not column.get(field):
                errors.append(fe.required(f"{here}.{field}"))
        if column.get("type") and column["type"] not in _COLUMN_TYPES:
            errors.append(fe.unsupported(f"{here}.type", column["type"], _COLUMN_TYPES))
        if column.get("jsonPath") and not str(column["jsonPath"]).startswith("."):
            detail = "must be a simple json path starting with ."
            errors.append(fe.invalid(f"{here}.jsonPath", column["jsonPath"], detail))
    scale = (version.get("subresources") or {}).get("scale")
    if isinstance(scale, dict):
        here = f"{path}.subresources.scale"
        for field, root in (("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")):
            value = str(scale.get(field) or "")
            if not value:
                errors.append(fe.required(f"{here}.{field}"))
            elif not value.startswith(root):
                detail = f"should be a json path under {root[:-1]}"
                errors.append(fe.invalid(f"{here}.{field}", value, detail))


def validate_crd_update(new: Object, old: Object) -> list[FieldError]:
    """Errors in a change of a CRD: group, scope and kind stay, stored versions may not go."""
    errors: list[FieldError] = []
    before, after = old.get("spec") or {}, new.get("spec") or {}
    for path in (("group",), ("scope",), ("names", "kind"), ("names", "plural")):
        first, second = before, after
        for name in path:
            first, second = (first or {}).get(name), (second or {}).get(name)
        if first != second:
            errors.append(fe.invalid(f"spec.{'.'.join(path)}", second, "field is immutable"))
    names = {version.get("name") for version in after.get("versions") or ()}
    stored = (new.get("status") or {}).get("storedVersions") or ()
    for index, version in enumerate(stored):
        if version not in names:
            errors.append(
                fe.invalid(
                    f"status.storedVersions[{index}]",
                    version,
                    "missing from spec.versions; versions that were previously a storage version "
                    "must remain in spec.versions until the storage has been migrated",
                )
            )
    return errors


def warnings_for(obj: Object) -> list[str]:
    """Texts for Warning headers: what of this CRD is not done here."""
    found = []
    spec = obj.get("spec") or {}
    if (spec.get("conversion") or {}).get("strategy") == "Webhook":
        found.append(
            "spec.conversion.strategy: webhook conversion is not done: objects are served with "
            "only their apiVersion changed"
        )
    for index, version in enumerate(spec.get("versions") or ()):
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if isinstance(schema, dict):
            path = f"spec.versions[{index}].schema.openAPIV3Schema"
            for where, rule, why in crd_rules.unusable_rules(schema, path):
                shown = " ".join(rule.split())
                found.append(f"{where}: rule {shown!r} is not evaluated: {why}")
    return found


# -- status -----------------------------------------------------------------------------------


def build_status(crd: Object, others: Iterable[Object], now: str) -> Object:
    """The status of a CRD among the others: accepted names, conditions, stored versions.

    `now` is the time (metav1.Time) for conditions that change.
    """
    old = crd.get("status") or {}
    names = crd["spec"]["names"]
    conflict = _name_conflict(crd, others)
    accepted = (
        ("True", "NoConflicts", "no conflicts found") if conflict is None else ("False", *conflict)
    )
    established = (
        ("True", "InitialNamesAccepted", "the initial names have been accepted")
        if conflict is None
        else ("False", "NotAccepted", "not all names are accepted")
    )
    stored = list(old.get("storedVersions") or ())
    for version in crd["spec"]["versions"]:
        if version.get("storage") and version["name"] not in stored:
            stored.append(version["name"])
    conditions = [
        _condition(kind, values, old, now)
        for kind, values in (("NamesAccepted", accepted), ("Established", established))
    ]
    known = {condition["type"] for condition in conditions}
    conditions += [c for c in old.get("conditions") or () if c.get("type") not in known]
    return {
        "conditions": conditions,
        "acceptedNames": copy.deepcopy(names) if conflict is None else {"plural": "", "kind": ""},
        "storedVersions": stored,
    }


def _condition(kind: str, values: tuple[str, str, str], old: Object, now: str) -> Object:
    status, reason, message = values
    for condition in old.get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            now = condition.get("lastTransitionTime") or now
    return {
        "type": kind,
        "status": status,
        "lastTransitionTime": now,
        "reason": reason,
        "message": message,
    }


def _all_names(names: Object) -> tuple[set[str], set[str]]:
    words = {names.get("plural"), names.get("singular"), *(names.get("shortNames") or ())}
    kinds = {names.get("kind"), names.get("listKind")}
    return {w for w in words if w}, {k for k in kinds if k}


def _name_conflict(crd: Object, others: Iterable[Object]) -> tuple[str, str] | None:
    spec = crd["spec"]
    for other in others:
        same = other["metadata"]["name"] == crd["metadata"]["name"]
        if same or other["spec"]["group"] != spec["group"]:
            continue
        if not is_established(other):
            continue
        other_words, other_kinds = _all_names(other["spec"]["names"])
        for reason, names, taken in (
            ("PluralConflict", [spec["names"]["plural"]], other_words),
            ("SingularConflict", [spec["names"].get("singular")], other_words),
            ("ShortNamesConflict", spec["names"].get("shortNames") or [], other_words),
            ("KindConflict", [spec["names"]["kind"]], other_kinds),
            ("ListKindConflict", [spec["names"].get("listKind")], other_kinds),
        ):
            for name in names:
                if name in taken:
                    return reason, f'"{name}" is already in use'
    return None


def is_established(crd: Object) -> bool:
    """Whether the CRD's resources are served."""
    return any(
        condition.get("type") == "Established" and condition.get("status") == "True"
        for condition in (crd.get("status") or {}).get("conditions") or ()
    )


# -- resources --------------------------------------------------------------------------------


def build_resources(crd: Object) -> list[Resource]:
    """The resources, one per served version, that a CRD defines."""
    spec = crd["spec"]
    names = spec["names"]
    storage = next(v["name"] for v in spec["versions"] if v.get("storage"))
    found = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        parsed = _parse_version(spec["group"], names["kind"], version)
        subresources = version.get("subresources") or {}
        found.append(
            Resource(
                group=spec["group"],
                version=version["name"],
                plural=names["plural"],
                kind=names["kind"],
                singular=names.get("singular") or "",
                list_kind=names.get("listKind") or "",
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                namespaced=spec["scope"] == "Namespaced",
                subresources=frozenset(s for s in ("status", "scale") if s in subresources),
                storage_version=storage,
                schema_name=None,
                printer_columns=_printer_columns(version),
                scale_paths=_scale_paths(subresources.get("scale")),
                crd=parsed,
            )
        )
    return found


def _parse_version(group: str, kind: str, version: Object) -> CustomVersion:
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {"type": "object"}
    deprecation = ""
    if version.get("deprecated"):
        deprecation = version.get("deprecationWarning") or (
            f"{group}/{version['name']} {kind} is deprecated"
        )
    return CustomVersion(
        group=group,
        version=version["name"],
        kind=kind,
        schema=schema,
        has_rules=crd_rules.has_rules(schema),
        deprecation=deprecation,
        selectable_fields=tuple(
            str(field.get("jsonPath")) for field in version.get("selectableFields") or ()
        ),
    )


def _printer_columns(version: Object) -> tuple[PrinterColumn, ...]:
    columns = version.get("additionalPrinterColumns")
    if not columns:
        return (PrinterColumn("Age", "date", ".metadata.creationTimestamp"),)
    return tuple(
        PrinterColumn(
            name=column["name"],
            type=column["type"],
            json_path=column["jsonPath"],
            description=column.get("description") or "",
            format=column.get("format") or "",
            priority=int(column.get("priority") or 0),
        )
        for column in columns
    )


def _scale_paths(scale: Any) -> tuple[str, str, str] | None:
    if not isinstance(scale, dict):
        return None
    spec, status, selector = (
        str(scale.get(field) or "").removeprefix(".")
        for field in ("specReplicasPath", "statusReplicasPath", "labelSelectorPath")
    )
    return spec, status, selector


class CustomResources:
    """Keeps the resource table and the schema index in step with the stored, established CRDs."""

    def __init__(self, reader: ObjectReader, table: ResourceTable, schemas: SchemaIndex) -> None:
        self._reader = reader
        self._table = table
        self._schemas = schemas
        self._installed: dict[str, tuple[Object, list[Resource]]] = {}
        reader.on_change(GROUP, PLURAL, self.sync)
        self.sync()

    def sync(self) -> None:
        """Install what is new, replace what changed, and forget what is gone."""
        stored = {
            crd["metadata"]["name"]: crd
            for crd in self._reader.read_all(GROUP, PLURAL)
            if is_established(crd)
        }
        for name in [name for name in self._installed if name not in stored]:
            self._uninstall(name)
        for name, crd in stored.items():
            installed = self._installed.get(name)
            if installed is not None and installed[0] == crd["spec"]:
                continue
            if installed is not None:
                self._uninstall(name)
            self._install(name, crd)

    def _install(self, name: str, crd: Object) -> None:
        resources = build_resources(crd)
        for resource in resources:
            self._schemas.add_crd(
                resource.group,
                resource.version,
                resource.kind,
                resource.list_kind,
                resource.crd.schema,
            )
        self._installed[name] = (crd["spec"], resources)
        self._table.add(*resources)

    def _uninstall(self, name: str) -> None:
        _, resources = self._installed.pop(name)
        for resource in resources:
            self._schemas.remove_crd(
                resource.group, resource.version, resource.kind, resource.list_kind
            )
        self._table.remove(resources)
