"""JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386).

In: a document and a decoded patch. Out: a new document; the given one is not changed. A patch that
does not fit is an ApiError as kube-apiserver answers it (400 malformed, 422 does not apply).
"""

from __future__ import annotations

import copy
from typing import Any

from localkube.apiserver.errors import ApiError, bad_request

# kube-apiserver refuses longer patches.
MAX_OPERATIONS = 10_000


def apply_json_patch(document: Any, patch: Any) -> Any:
    """Return the document after all operations. Raises ApiError 400, 413 or 422."""
    import jsonpatch  # imported here because few requests need it and start-up counts

    if not isinstance(patch, list):
        raise bad_request(
            "a JSON patch is a list of operations, such as "
            '[{"op": "replace", "path": "/spec/replicas", "value": 2}]'
        )
    if len(patch) > MAX_OPERATIONS:
        raise ApiError(
            413,
            "RequestEntityTooLarge",
            f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(patch)}",
        )
    try:
        return jsonpatch.JsonPatch(patch).apply(document, in_place=False)
    except (jsonpatch.InvalidJsonPatch, jsonpatch.JsonPointerException) as error:
        if isinstance(error, jsonpatch.InvalidJsonPatch):
            raise bad_request(f"the JSON patch is malformed: {error}") from None
        raise _does_not_apply(error) from None
    except (jsonpatch.JsonPatchConflict, jsonpatch.JsonPatchTestFailed) as error:
        raise _does_not_apply(error) from None
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise bad_request(f"the JSON patch is malformed: {error}") from None


def _does_not_apply(error: Exception) -> ApiError:
    return ApiError(
        422, "Invalid", f"the server rejected our request due to an error in our request: {error}"
    )


def apply_merge_patch(document: Any, patch: Any) -> Any:
    """Return the document merged with the patch; null removes a member."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = apply_merge_patch(result.get(key), value)
        else:
            result[key] = copy.deepcopy(value)
    return result
