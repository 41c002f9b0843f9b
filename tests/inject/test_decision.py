"""Which pods get a proxy, as a table: Istio's rules, one row each."""

from __future__ import annotations

from typing import Any

import pytest

from meltemi.inject import InjectionConfig
from meltemi.inject.decision import decide, matches

ENABLED = {"istio-injection": "enabled"}
DISABLED = {"istio-injection": "disabled"}
CANARY = InjectionConfig(revision="canary", revision_tags=("prod",))
BY_DEFAULT = InjectionConfig(enable_namespaces_by_default=True)
NEVER = InjectionConfig(never_inject=({"matchLabels": {"app": "batch"}},))
ALWAYS = InjectionConfig(
    always_inject=({"matchExpressions": [{"key": "app", "operator": "Exists"}]},)
)


def pod(labels: dict[str, str] | None = None, **extra: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": labels or {}, "annotations": extra.pop("annotations", {})},
        "spec": {"containers": [{"name": "app"}], **extra},
    }


INJECT, REFUSE = {"sidecar.istio.io/inject": "true"}, {"sidecar.istio.io/inject": "false"}

ROWS = [
    ("namespace enabled", pod(), ENABLED, None, True),
    ("namespace silent", pod(), {}, None, False),
    ("namespace disabled", pod(), DISABLED, None, False),
    ("namespace disabled, pod wants", pod(INJECT), DISABLED, None, False),
    ("namespace silent, pod wants", pod(INJECT), {}, None, True),
    ("namespace enabled, pod refuses", pod(REFUSE), ENABLED, None, False),
    ("annotation refuses", pod(annotations=REFUSE), ENABLED, None, False),
    ("label wins over annotation", pod(INJECT, annotations=REFUSE), ENABLED, None, True),
    ("host network", pod(INJECT, hostNetwork=True), ENABLED, None, False),
    ("this revision on the namespace", pod(), {"istio.io/rev": "canary"}, CANARY, True),
    ("a tag of this revision", pod(), {"istio.io/rev": "prod"}, CANARY, True),
    ("another revision", pod(), {"istio.io/rev": "other"}, CANARY, False),
    ("another revision, not this default one", pod(), {"istio.io/rev": "canary"}, None, False),
    ("default revision by label", pod(), {"istio.io/rev": "default"}, None, True),
    ("istio-injection is for the default revision", pod(), ENABLED, CANARY, False),
    (
        "istio-injection wins over the revision label",
        pod(),
        {**ENABLED, "istio.io/rev": "canary"},
        None,
        True,
    ),
    ("pod names this revision", pod({"istio.io/rev": "canary"}), {}, CANARY, True),
    ("pod names another revision", pod({"istio.io/rev": "x", **INJECT}), {}, None, False),
    ("pod wants, but not this revision", pod(INJECT), {}, CANARY, False),
    ("namespaces by default", pod(), {}, BY_DEFAULT, True),
    ("namespaces by default, disabled", pod(), DISABLED, BY_DEFAULT, False),
    ("never selector", pod({"app": "batch"}), ENABLED, NEVER, False),
    ("never selector, pod wants", pod({"app": "batch", **INJECT}), ENABLED, NEVER, True),
    ("always selector", pod({"app": "web"}), {}, ALWAYS, True),
    ("always selector, pod refuses", pod({"app": "web", **REFUSE}), {}, ALWAYS, False),
]


@pytest.mark.parametrize(
    ("name", "subject", "labels", "config", "expected"),
    ROWS,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_decision(
    name: str,
    subject: dict[str, Any],
    labels: dict[str, str],
    config: InjectionConfig | None,
    expected: bool,
) -> None:
    """The row's decision, with a reason."""
    decision = decide(subject, "bookinfo", labels, config or InjectionConfig())
    assert (decision.inject, bool(decision.reason)) == (expected, True), decision


def test_system_namespaces_are_never_injected() -> None:
    """Kubernetes' own namespaces stay outside, whatever their labels."""
    decision = decide(pod(INJECT), "kube-system", ENABLED, InjectionConfig())
    assert decision.reason == "namespace kube-system is never injected"


def test_a_misspelt_wish_is_reported_and_ignored() -> None:
    """``inject: "ture"`` falls back to the namespace's word, with a warning that quotes it."""
    decision = decide(pod({"sidecar.istio.io/inject": "ture"}), "ns", ENABLED, InjectionConfig())
    assert decision.inject
    assert '"ture" is ignored' in decision.warnings[0]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, False),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["0"]}]}, False),
    ],
)
def test_selectors(selector: dict[str, Any], expected: bool) -> None:
    """Kubernetes' label selectors; an empty one selects nothing."""
    assert matches(selector, {"a": "1"}) is expected
