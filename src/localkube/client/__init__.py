"""A small Kubernetes API client on plain dicts: ApiClient (requests, watches) and Informer (cache)."""

from localkube.client.api import ApiClient, PatchType, WatchEvent
from localkube.client.errors import ApiConnectionError, ApiStatusError
from localkube.client.informer import Informer, object_key
from localkube.client.resources import ResourceType

__all__ = [
    "ApiClient",
    "ApiConnectionError",
    "ApiStatusError",
    "Informer",
    "PatchType",
    "ResourceType",
    "WatchEvent",
    "object_key",
]
