"""Syntax of names, labels, quantities, ports and addresses.

In: a value. Out: None when it is good, else the text that Kubernetes gives for it. Pure. The rules
are those of "Object Names and IDs", "Labels and Selectors" and "Resource Management" in the
Kubernetes documentation.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_DNS_1035 = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile("([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile("(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_PORT_NAME = re.compile("[-a-z0-9]+")
_ENVIRONMENT_NAME = re.compile(r"[ -<>-~]+")
_CONFIG_KEY = re.compile("[-._a-zA-Z0-9]+")
_QUANTITY = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(m|u|n|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d+)?"
)
_SUFFIXES: dict[str, Decimal] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{suffix: Decimal(10) ** (3 * (i + 1)) for i, suffix in enumerate("kMGTPE")},
    **{f"{suffix}i": Decimal(2) ** (10 * (i + 1)) for i, suffix in enumerate("KMGTPE")},
}

DNS_LABEL_CHARS_MAX = 63
DNS_SUBDOMAIN_CHARS_MAX = 253
LABEL_VALUE_CHARS_MAX = 63


@lru_cache(maxsize=4096)
def check_dns_label(value: str) -> str | None:
    """RFC 1123 label: names of Namespaces, containers, Services, volumes."""
    if len(value) > DNS_LABEL_CHARS_MAX:
        return f"must be no more than {DNS_LABEL_CHARS_MAX} bytes"
    if _DNS_LABEL.fullmatch(value):
        return None
    return (
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
        "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex "
        "used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
    )


@lru_cache(maxsize=4096)
def check_dns_subdomain(value: str) -> str | None:
    """RFC 1123 subdomain: names of most objects."""
    if len(value) > DNS_SUBDOMAIN_CHARS_MAX:
        return f"must be no more than {DNS_SUBDOMAIN_CHARS_MAX} bytes"
    if _DNS_SUBDOMAIN.fullmatch(value):
        return None
    return (
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
        "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
        r"for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    )


def check_dns_1035(value: str) -> str | None:
    """RFC 1035 label: starts with a letter."""
    if len(value) > DNS_LABEL_CHARS_MAX:
        return f"must be no more than {DNS_LABEL_CHARS_MAX} bytes"
    if _DNS_1035.fullmatch(value):
        return None
    return (
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
        "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or "
        "'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
    )


def check_path_segment(value: str) -> str | None:
    """Names that may hold almost anything, such as those of RBAC objects."""
    if value in (".", ".."):
        return f"may not be '{value}'"
    for character in "/%":
        if character in value:
            return f"may not contain '{character}'"
    return None


@lru_cache(maxsize=4096)
def check_qualified_name(value: str) -> str | None:
    """A label or annotation key: `[prefix/]name`."""
    prefix, slash, name = value.rpartition("/")
    if slash:
        if not prefix:
            return "prefix part must be non-empty"
        problem = check_dns_subdomain(prefix)
        if problem:
            return f"prefix part {problem}"
    if not name:
        return "name part must be non-empty"
    if len(name) > LABEL_VALUE_CHARS_MAX:
        return f"name part must be no more than {LABEL_VALUE_CHARS_MAX} bytes"
    if _QUALIFIED.fullmatch(name):
        return None
    return (
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
        "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used "
        "for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    )


@lru_cache(maxsize=4096)
def check_label_value(value: str) -> str | None:
    if len(value) > LABEL_VALUE_CHARS_MAX:
        return f"must be no more than {LABEL_VALUE_CHARS_MAX} bytes"
    if _LABEL_VALUE.fullmatch(value):
        return None
    return (
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
        "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or "
        "'my_value',  or '12345', regex used for validation is "
        "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
    )


def check_port(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return None
    return "must be between 1 and 65535, inclusive"


def check_port_name(value: str) -> str | None:
    """An IANA service name: container and target port names."""
    if len(value) > 15:
        return "must be no more than 15 characters"
    if not _PORT_NAME.fullmatch(value):
        return "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    if not any(character.isalpha() for character in value):
        return "must contain at least one letter (a-z)"
    if "--" in value:
        return "must not contain consecutive hyphens"
    if value.startswith("-") or value.endswith("-"):
        return "must not begin or end with a hyphen"
    return None


def check_environment_name(value: str) -> str | None:
    if _ENVIRONMENT_NAME.fullmatch(value):
        return None
    return (
        "a valid environment variable name must consist only of printable ASCII characters other "
        "than '='"
    )


def check_config_key(value: str) -> str | None:
    """A key of a ConfigMap or Secret."""
    if len(value) > DNS_SUBDOMAIN_CHARS_MAX:
        return f"must be no more than {DNS_SUBDOMAIN_CHARS_MAX} bytes"
    if value in (".", "..") or value.startswith(".."):
        return f"must not be or start with '..', and not be '.': {value}"
    if _CONFIG_KEY.fullmatch(value):
        return None
    return (
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. "
        "'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
        "'[-._a-zA-Z0-9]+')"
    )


def check_ip(value: str) -> str | None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    return None


def check_cidr(value: str) -> str | None:
    try:
        if "/" not in value:
            raise ValueError(value)
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
    return None


def parse_quantity(value: Any) -> Decimal | None:
    """The number a resource quantity ("100m", "1Gi", 2) stands for; None if it is not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return Decimal(str(value))
    if not isinstance(value, str):
        return None
    match = _QUANTITY.fullmatch(value)
    if match is None:
        return None
    number, suffix = match.group(1), match.group(2) or ""
    try:
        if suffix in _SUFFIXES:
            return Decimal(number) * _SUFFIXES[suffix]
        return Decimal(number + suffix)
    except InvalidOperation:
        return None


QUANTITY_PROBLEM = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)


def check_percent_or_int(value: Any) -> str | None:
    """maxUnavailable, maxSurge: a non-negative number or a percentage."""
    if isinstance(value, str):
        if re.fullmatch("[0-9]+%", value):
            return None
        return "a valid percent string must be a numeric string followed by an ending '%'"
    if isinstance(value, int) and value < 0:
        return "must be greater than or equal to 0"
    return None
