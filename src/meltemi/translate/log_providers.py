"""Access log providers of the mesh configuration, by name: files, Envoy's log services, OpenTelemetry."""

from __future__ import annotations

import json

from meltemi.ir.telemetry import FileLog, GrpcLog
from meltemi.model.frozen import thaw
from meltemi.model.names import outbound_cluster
from meltemi.model.origin import Origin
from meltemi.model.providers import FileLogFormat, MeshExtensionProvider
from meltemi.translate.build import Build
from meltemi.translate.log_formats import DEFAULT_TEXT, mesh_format
from meltemi.translate.telemetry_rules import Logging


def provider_of(build: Build, name: str) -> MeshExtensionProvider | None:
    """The provider of a name, if the mesh has it."""
    return next((p for p in build.context.mesh.extension_providers if p.name == name), None)


def service_cluster(build: Build, service: str, port: int) -> tuple[str, str] | str:
    """(cluster, host) of a provider's service, written ``namespace/host`` or ``host``; else what is wrong with it."""
    namespace, _, host = service.rpartition("/")
    known = build.scope.by_host.get(host)
    if known is None or (namespace and known.namespace != namespace):
        return f"this proxy knows no service {service}"
    if known.port(port) is None:
        return f"service {host} has no port {port}"
    return outbound_cluster(host, port), host


def _format(settings: FileLogFormat | None, mesh_text: str, mesh_json: str) -> tuple[str, str]:
    if settings is not None and settings.labels is not None:
        return "", json.dumps(thaw(settings.labels), sort_keys=True)
    if settings is not None and settings.text:
        text = settings.text
        return (text if text.endswith("\n") else text + "\n"), ""
    return mesh_text, mesh_json


def provided_log(
    build: Build, log: Logging, *, http: bool, only: str = ""
) -> FileLog | GrpcLog | None:
    """The log of one provider; None for one that does not log this kind of traffic, or is wrong (reported)."""
    provider = provider_of(build, log.provider)
    if provider is not None and provider.envoy_file_access_log is not None:
        file = provider.envoy_file_access_log
        text, document = _format(file.log_format, *mesh_format(build.context.mesh))
        return FileLog(
            file.path, text, document, only, log.expression, omit_empty=file.omit_empty_values
        )
    problem = "there is no extension provider of this name"
    if provider is not None:
        made = _sent(build, provider, log, http=http)
        if made is None or isinstance(made, GrpcLog):
            return None if only else made
        problem = made
    build.report(
        "MLT0205",
        f"access log provider {log.provider}: {problem}",
        log.config.origin("spec.accessLogging")
        if log.config is not None
        else Origin("MeshConfig", path="defaultProviders.accessLogging"),
        "name an access log provider of the mesh configuration's extensionProviders",
    )
    return None


def _sent(
    build: Build, provider: MeshExtensionProvider, log: Logging, *, http: bool
) -> GrpcLog | str | None:
    """A log that goes to a service, None for the other kind of traffic, or what is wrong."""
    otel, https, tcp = provider.envoy_otel_als, provider.envoy_http_als, provider.envoy_tcp_als
    spec = otel or https or tcp
    if spec is None:
        return "the extension provider is no access log of a kind that Envoy has"
    if (https is not None and not http) or (tcp is not None and http):
        return None
    target = service_cluster(build, spec.service, spec.port)
    if isinstance(target, str):
        return target
    name = spec.log_name or log.provider
    if otel is not None:
        text, document = DEFAULT_TEXT, ""
        if otel.log_format is not None and otel.log_format.text:
            text = otel.log_format.text
        if otel.log_format is not None and otel.log_format.labels is not None:
            document = json.dumps(thaw(otel.log_format.labels), sort_keys=True)
        return GrpcLog("otel", target[0], name, text, document, expression=log.expression)
    if https is not None:
        return GrpcLog(
            "http",
            target[0],
            name,
            request_headers=https.additional_request_headers_to_log,
            response_headers=https.additional_response_headers_to_log,
            response_trailers=https.additional_response_trailers_to_log,
            state_objects=https.filter_state_objects_to_log,
            expression=log.expression,
        )
    return GrpcLog(
        "tcp",
        target[0],
        name,
        state_objects=tcp.filter_state_objects_to_log if tcp is not None else (),
        expression=log.expression,
    )
