"""Rules of IstioOperator beyond its schema: what the installer would otherwise pass over in silence.

In: a decoded object. Out: findings. ``meshConfig`` is read as istiod will read it; ``values`` are free-form, but their first
level is not: a misspelt one would do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meltemi.config.reader import Report, decode_spec, nearest, quoted
from meltemi.model.config import Config
from meltemi.model.install import IstioOperator
from meltemi.model.mesh import MeshConfig

# The first level of Istio's values. Not all of them have an effect here.
VALUES = (
    "base", "cni", "compatibilityVersion", "defaultRevision", "experimental", "gatewayClasses", "gateways", "global",
    "istio_cni", "istiodRemote", "meshConfig", "pilot", "profile", "revision", "revisionTags", "sidecarInjectorWebhook",
    "telemetry", "ztunnel",
)  # fmt: skip
# Components of Istio that do not exist here, and what does their work.
_ABSENT = {
    "cni": "every pod's init container captures its traffic",
    "ztunnel": "every pod has a proxy of its own",
    "istiod_remote": "istiod runs in its own cluster, and takes a kubeconfig",
}
_WIRE = {"istiod_remote": "istiodRemote"}
_UNSERVED = "MLT0011"


def validate_istio_operator(config: Config[IstioOperator], report: Report) -> None:
    """All rules of the IstioOperator kind."""
    spec = config.spec
    if spec.mesh_config is not None:
        decode_spec(MeshConfig, spec.mesh_config, "spec.meshConfig", report)
    _values(spec.values or {}, "spec.values", report)
    for name, instead in _ABSENT.items():
        component = getattr(spec.components, name) if spec.components is not None else None
        if component is not None and component.enabled:
            path = f"spec.components.{_WIRE.get(name, name)}"
            report.warn(path, "is not part of this mesh", f"leave it out: {instead}", _UNSERVED)
    for field, given in (
        ("addonComponents", spec.addon_components),
        ("compatibilityVersion", spec.compatibility_version),
        ("installPackagePath", spec.install_package_path),
    ):
        if given:
            report.warn(f"spec.{field}", "has no effect", "leave it out", _UNSERVED)


def _values(values: Mapping[str, Any], path: str, report: Report) -> None:
    for name in values:
        if name not in VALUES:
            meant = nearest(name, VALUES)
            remedy = f"did you mean {meant}?" if meant else f"known are {', '.join(VALUES)}"
            report.error(f"{path}.{name}", f"unknown field {quoted(name)}", remedy)
