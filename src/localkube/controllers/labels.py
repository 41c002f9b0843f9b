"""Label selectors, as objects carry them.

In: a metav1.LabelSelector or a plain map, and labels. Out: whether they match. Source: the
Kubernetes documentation "Labels and Selectors" (In, NotIn, Exists, DoesNotExist; NotIn and
DoesNotExist match objects without the label; an empty selector matches everything, none nothing).
"""

from collections.abc import Mapping
from typing import Any


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a metav1.LabelSelector selects `labels`."""
    if selector is None:
        return False
    for name, value in (selector.get("matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    return all(_expression(e, labels) for e in selector.get("matchExpressions") or [])


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False


def map_matches(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether a plain map, such as a Service's selector, selects `labels`. Empty: nothing."""
    return bool(selector) and all(
        labels.get(name) == value for name, value in (selector or {}).items()
    )
