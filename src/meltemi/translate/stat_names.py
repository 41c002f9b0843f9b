"""Names of clusters in statistics: MeshConfig's ``outboundClusterStatName`` and ``inboundClusterStatName``."""

from __future__ import annotations


def stat_name(
    pattern: str, service: tuple[str, str, str], port: int, port_name: str, target: int, subset: str
) -> str:
    """A pattern with its variables filled in; "" without a pattern.

    ``service`` is (host, name, namespace), the name being the host where no Kubernetes Service gives it.
    """
    host, name, namespace = service
    short = host if name == host else f"{name}.{namespace}"
    for variable, text in (
        ("SERVICE", short),
        ("SERVICE_FQDN", host),
        ("SERVICE_NAME", name),
        ("SERVICE_PORT", str(port)),
        ("SERVICE_PORT_NAME", port_name),
        ("TARGET_PORT", str(target)),
        ("SUBSET_NAME", subset),
    ):
        pattern = pattern.replace(f"%{variable}%", text)
    return pattern
