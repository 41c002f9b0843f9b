"""The formats of access logs: Istio's defaults, and what the mesh configuration says instead."""

from __future__ import annotations

import json

from meltemi.model.mesh import MeshConfig

# Istio's default fields, in its order.
_FIELDS = (
    ("start_time", "[%START_TIME%]"),
    ("request", '"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%"'),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", '"%UPSTREAM_TRANSPORT_FAILURE_REASON%"'),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", '"%REQ(X-FORWARDED-FOR)%"'),
    ("user_agent", '"%REQ(USER-AGENT)%"'),
    ("request_id", '"%REQ(X-REQUEST-ID)%"'),
    ("authority", '"%REQ(:AUTHORITY)%"'),
    ("upstream_host", '"%UPSTREAM_HOST%"'),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
)
DEFAULT_TEXT = " ".join(value for _, value in _FIELDS) + "\n"
DEFAULT_JSON = {
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    **{name: value.strip('"[]') for name, value in _FIELDS if name != "request"},
}


def mesh_format(mesh: MeshConfig) -> tuple[str, str]:
    """(text, JSON document) of the mesh configuration; one of them is empty."""
    if mesh.access_log_encoding != "JSON":
        return mesh.access_log_format or DEFAULT_TEXT, ""
    document = DEFAULT_JSON
    if mesh.access_log_format:
        try:
            given = json.loads(mesh.access_log_format)
        except ValueError:
            given = None  # validation reports it; the default keeps requests visible
        if isinstance(given, dict):
            document = given
    return "", json.dumps(document, sort_keys=True)
