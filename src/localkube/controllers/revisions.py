"""ControllerRevisions: the template history of StatefulSets and DaemonSets.

In: the owner, its revisions. Out: the revision of the current template (to be created if new), and
those to delete. `kubectl rollout history | undo` reads them: data is the patch that restores a
template.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Final

from localkube.client import ResourceType
from localkube.client.resources import CONTROLLER_REVISIONS
from localkube.controllers.actions import Create, Delete, Patch, PlanBuilder
from localkube.controllers.pods import owner_reference, template_hash

Object = dict[str, Any]
REVISION_LABEL: Final = "controller-revision-hash"


def revision_data(owner: Object) -> Object:
    """What a revision keeps: the template, as a strategic merge patch that replaces it."""
    template = copy.deepcopy(owner["spec"]["template"])
    return {"spec": {"template": {**template, "$patch": "replace"}}}


def template_of(revision: Object) -> Object:
    """The pod template that a revision keeps."""
    template = copy.deepcopy(revision["data"]["spec"]["template"])
    template.pop("$patch", None)
    return dict(template)


def hash_of(revision: Object) -> str:
    """The value of `controller-revision-hash` for pods of this revision."""
    return str((revision["metadata"].get("labels") or {}).get(REVISION_LABEL, ""))


def current_revision(
    plan: PlanBuilder, resource: ResourceType, owner: Object, revisions: Sequence[Object]
) -> Object:
    """The revision of the owner's template; the plan creates it, or makes it the newest."""
    data = revision_data(owner)
    highest = max((int(r["revision"]) for r in revisions), default=0)
    for revision in revisions:
        if revision["data"] == data:
            if int(revision["revision"]) < highest:
                plan.add(Patch(CONTROLLER_REVISIONS, revision, {"revision": highest + 1}))
            return revision
    hashed = template_hash(owner["spec"]["template"])
    labels = (owner["spec"]["template"].get("metadata") or {}).get("labels") or {}
    created = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"{owner['metadata']['name']}-{hashed}",
            "namespace": owner["metadata"]["namespace"],
            "labels": {**labels, REVISION_LABEL: hashed},
            "ownerReferences": [owner_reference(resource, owner)],
        },
        "data": data,
        "revision": highest + 1,
    }
    plan.add(Create(CONTROLLER_REVISIONS, created, exists_ok=True))
    return created


def forget_old(
    plan: PlanBuilder, owner: Object, revisions: Sequence[Object], used: Iterable[str]
) -> None:
    """Delete the oldest revisions beyond revisionHistoryLimit that no pod uses."""
    needed = set(used)
    limit = int(owner["spec"].get("revisionHistoryLimit", 10))
    unused = sorted(
        (r for r in revisions if hash_of(r) not in needed), key=lambda r: int(r["revision"])
    )
    for revision in unused[: max(0, len(unused) - limit)]:
        plan.add(Delete(CONTROLLER_REVISIONS, revision))
