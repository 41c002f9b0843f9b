"""IstioOperator (install.istio.io/v1alpha1): what the installer and the operator make of a mesh.

In: nothing; these are types. Same promises as ``model.traffic``. ``mesh_config`` and ``values`` are free-form here:
they are merged with a profile before anything reads them.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from meltemi.model.fields import AnyValue, FreeForm, IntOrString, Spec, UInt32
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.traffic import StringMap


class OverlayPatch(Spec, frozen=True):
    """One change to a rendered object.

    path: ``spec.template.spec.containers.[name:discovery].args.[1]``; ``[key:value]`` selects in a list.
    value: What to put there; absent deletes.
    """

    path: str = ""
    value: AnyValue = None


class K8sObjectOverlay(Spec, frozen=True):
    """Changes to one rendered object."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    patches: tuple[OverlayPatch, ...] = ()


class KubernetesResourcesSpec(Spec, frozen=True):
    """Kubernetes settings of a component; free-form parts have Kubernetes' own form."""

    affinity: FreeForm | None = None
    env: tuple[FreeForm, ...] = ()
    hpa_spec: FreeForm | None = None
    image_pull_policy: str = ""
    node_selector: StringMap = field(default_factory=lambda: EMPTY_MAP)
    pod_disruption_budget: FreeForm | None = None
    pod_annotations: StringMap = field(default_factory=lambda: EMPTY_MAP)
    priority_class_name: str = ""
    readiness_probe: FreeForm | None = None
    replica_count: UInt32 | None = None
    resources: FreeForm | None = None
    service: FreeForm | None = None
    strategy: FreeForm | None = None
    tolerations: tuple[FreeForm, ...] = ()
    service_annotations: StringMap = field(default_factory=lambda: EMPTY_MAP)
    security_context: FreeForm | None = None
    volumes: tuple[FreeForm, ...] = ()
    volume_mounts: tuple[FreeForm, ...] = ()
    overlays: tuple[K8sObjectOverlay, ...] = ()


class ComponentSpec(Spec, frozen=True):
    """A component of the mesh."""

    enabled: bool | None = None
    namespace: str = ""
    hub: str = ""
    tag: IntOrString = ""
    spec: FreeForm | None = None
    k8s: KubernetesResourcesSpec | None = None


class GatewaySpec(Spec, frozen=True):
    """A gateway component.

    label: Labels of the gateway's pods, beside those of every gateway.
    """

    enabled: bool | None = None
    namespace: str = ""
    name: str = ""
    label: StringMap = field(default_factory=lambda: EMPTY_MAP)
    hub: str = ""
    tag: IntOrString = ""
    k8s: KubernetesResourcesSpec | None = None


class IstioComponentSetSpec(Spec, frozen=True):
    """All components."""

    base: ComponentSpec | None = None
    pilot: ComponentSpec | None = None
    cni: ComponentSpec | None = None
    ztunnel: ComponentSpec | None = None
    istiod_remote: ComponentSpec | None = None
    ingress_gateways: tuple[GatewaySpec, ...] = ()
    egress_gateways: tuple[GatewaySpec, ...] = ()


class IstioOperator(Spec, frozen=True):
    """The whole installation.

    profile: default, demo, minimal, empty, ... or a file.
    hub: Registry and organisation of the images.
    tag: Tag of the images.
    revision: Name of this control plane beside others.
    mesh_config: MeshConfig.
    values: Values as the charts know them (global, pilot, gateways, ...).
    """

    REQUIRED: ClassVar[tuple[str, ...]] = ()
    profile: str = ""
    install_package_path: str = ""
    hub: str = ""
    tag: IntOrString = ""
    namespace: str = ""
    revision: str = ""
    compatibility_version: str = ""
    mesh_config: FreeForm | None = None
    components: IstioComponentSetSpec | None = None
    addon_components: FreeForm | None = None
    values: FreeForm | None = None
    unvalidated_values: FreeForm | None = None
