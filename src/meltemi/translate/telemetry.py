"""Access logs and metrics of a chain, from the mesh configuration."""

from __future__ import annotations

import json

from meltemi.ir.telemetry import AccessLog, FileLog, Side, StandardStats, StatsKind
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


def file_logs(mesh: MeshConfig, only: str = "") -> tuple[FileLog, ...]:
    """The access log that the mesh asks for, if any. ``only`` limits it, as in ``FileLog``."""
    if not mesh.access_log_file:
        return ()
    if mesh.access_log_encoding == "JSON":
        document = json.dumps(DEFAULT_JSON, sort_keys=True)
        if mesh.access_log_format:
            try:
                given = json.loads(mesh.access_log_format)
            except ValueError:
                given = None  # validation reports it; the default keeps requests visible
            if isinstance(given, dict):
                document = json.dumps(given, sort_keys=True)
        return (FileLog(mesh.access_log_file, json=document, filter=only),)
    text = mesh.access_log_format or DEFAULT_TEXT
    return (FileLog(mesh.access_log_file, text=text, filter=only),)


def client_logs(mesh: MeshConfig, kind: StatsKind) -> tuple[AccessLog, ...]:
    """What the calling side records."""
    return (StandardStats(Side.CLIENT, kind), *file_logs(mesh))


def server_logs(mesh: MeshConfig, kind: StatsKind, *, mtls: bool) -> tuple[AccessLog, ...]:
    """What the called side records. Only an mTLS peer's word about itself counts."""
    stats = StandardStats(Side.SERVER, kind, security="mutual_tls" if mtls else "none", peer=mtls)
    return (stats, *file_logs(mesh))
