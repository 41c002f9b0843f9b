"""Traffic capture as rules: which of a pod's connections go through Envoy.

In: a ``CaptureConfig`` (the flags of ``istio-iptables``). Out: an ordered tuple of ``Rule``, and the same
rules as nft text for ``--dry-run`` and for people. The rules keep Istio's order of precedence. Both ways to
know Envoy's own traffic are always present: its user (uid and gid 1337, the way of Kubernetes) and its
socket mark (1337, for nodes where a pod has only one uid). Talking to the kernel is left to
``adapters.capture_nft``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TABLE = "mesh"
PROXY_ID = 1337  # uid, gid and socket mark of the proxy
AGENT_PORTS = (15008, 15020, 15021, 15090)  # HBONE, agent, health, Prometheus: never captured
LOCAL_V4, LOCAL_V6 = (
    "127.0.0.6",
    "::6",
)  # the address that Envoy binds when it calls its own application

DNS_PORT, DNS_CAPTURE_PORT = 53, 15053

Field = Literal[
    "l4proto",
    "nfproto",
    "oif",
    "skuid",
    "skgid",
    "mark",
    "saddr",
    "daddr",
    "saddr6",
    "daddr6",
    "dport",
    "udp_dport",
    "udp_sport",
]
PORT_FIELDS = ("dport", "udp_dport", "udp_sport")  # which also say the protocol
Chain = Literal["out", "in", "raw_out", "raw_in"]
RAW = ("raw_out", "raw_in")
IPPROTO_TCP, IPPROTO_UDP = 6, 17
NFPROTO_IPV4, NFPROTO_IPV6 = 2, 10
LOOPBACK_INDEX = 1  # the loopback device is the first one of every network namespace


@dataclass(frozen=True, slots=True)
class Match:
    """One comparison. ``value`` is a number, or a network in CIDR form for the address fields."""

    field: Field
    value: int | str
    equal: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """All matches must hold; then the connection goes to ``redirect``, or is left alone when that is 0.

    In the chains ``RAW`` a rule leaves packets out of connection tracking, and so out of the other chains.
    """

    chain: Chain
    matches: tuple[Match, ...]
    redirect: int = 0


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """What to capture; the defaults are Istio's. ``("*",)`` means all, ``()`` none.

    CIDR lists may hold IPv4 and IPv6; IPv6 is captured only with ``ipv6`` (the pod has such an address).
    ``dns_servers`` are the resolvers whose questions go to ``dns_port``; None captures no DNS.
    """

    outbound_port: int = 15001
    inbound_port: int = 15006
    proxy_uids: tuple[int, ...] = (PROXY_ID,)
    proxy_gids: tuple[int, ...] = (PROXY_ID,)
    marks: tuple[int, ...] = (PROXY_ID,)
    include_cidrs: tuple[str, ...] = ("*",)
    exclude_cidrs: tuple[str, ...] = ()
    include_outbound_ports: tuple[int, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    include_inbound_ports: tuple[str, ...] = ("*",)
    exclude_inbound_ports: tuple[int, ...] = ()
    ipv6: bool = False
    dns_servers: tuple[str, ...] | None = None
    dns_port: int = DNS_CAPTURE_PORT


def build_rules(config: CaptureConfig) -> tuple[Rule, ...]:
    """The rules of all chains, in the order in which the kernel tries them."""
    return (*_dns(config), *_outbound(config), *_inbound(config))


def _dns(config: CaptureConfig) -> list[Rule]:
    """Questions to the pod's resolvers go to the agent; the agent's own questions, and Envoy's, do not.

    The agent's datagrams and their answers stay out of connection tracking: one from a port that an application
    has used before would meet that conversation's entry, and come back to the agent. (Applications never hear
    from a resolver directly.)
    """
    if config.dns_servers is None:
        return []
    rules: list[Rule] = []
    ports = (Match("udp_dport", DNS_PORT), Match("dport", DNS_PORT))
    servers = _family(config.dns_servers, config.ipv6)
    for address in servers or [""]:
        server = (_address("daddr", address),) if address else ()
        source = (_address("saddr", address),) if address else ()
        rules.extend(Rule("raw_out", (exempt, *server, ports[0])) for exempt in _own(config))
        rules.append(Rule("raw_in", (*source, Match("udp_sport", DNS_PORT))))
        for port in ports:
            rules.extend(Rule("out", (exempt, *server, port)) for exempt in _own(config))
            rules.append(Rule("out", (*server, port), config.dns_port))
    return rules


def _outbound(config: CaptureConfig) -> list[Rule]:
    rules = [Rule("out", (Match("l4proto", IPPROTO_TCP, equal=False),))]
    if not config.ipv6:
        rules.append(Rule("out", (Match("nfproto", NFPROTO_IPV4, equal=False),)))
    rules.append(Rule("out", (Match("oif", LOOPBACK_INDEX), Match("saddr", LOCAL_V4))))
    if config.ipv6:
        rules.append(Rule("out", (Match("oif", LOOPBACK_INDEX), Match("saddr6", LOCAL_V6))))
    for port in config.exclude_outbound_ports:
        rules.append(Rule("out", (Match("dport", port),)))
    own = [*_own(config)]
    # Envoy that calls the pod's own address is a client of the pod: such a call meets the inbound policies.
    for exempt in own:
        not_local = [Match("daddr", "127.0.0.1/32", equal=False)]
        if config.ipv6:
            not_local.append(Match("daddr6", "::1/128", equal=False))
        for match in not_local:
            rules.append(
                Rule("out", (Match("oif", LOOPBACK_INDEX), match, exempt), config.inbound_port)
            )
    # The application that calls itself does not leave the pod and is left alone. What is still here and is
    # Envoy's goes to 127.0.0.1, which the next rules exempt anyway, so no test of the user is needed.
    rules.append(Rule("out", (Match("oif", LOOPBACK_INDEX),)))
    rules.extend(Rule("out", (exempt,)) for exempt in own)
    rules.append(Rule("out", (Match("daddr", "127.0.0.0/8"),)))
    if config.ipv6:
        rules.append(Rule("out", (Match("daddr6", "::1/128"),)))
    rules.extend(Rule("out", (_to(cidr),)) for cidr in _family(config.exclude_cidrs, config.ipv6))
    for port in config.include_outbound_ports:
        rules.append(Rule("out", (Match("dport", port),), config.outbound_port))
    if "*" in config.include_cidrs:
        rules.append(Rule("out", (), config.outbound_port))
    else:
        for cidr in _family(config.include_cidrs, config.ipv6):
            rules.append(Rule("out", (_to(cidr),), config.outbound_port))
    return rules


def _own(config: CaptureConfig) -> Iterable[Match]:
    yield from (Match("mark", mark) for mark in config.marks)
    yield from (Match("skuid", uid) for uid in config.proxy_uids)
    yield from (Match("skgid", gid) for gid in config.proxy_gids)


def _inbound(config: CaptureConfig) -> list[Rule]:
    rules = [Rule("in", (Match("l4proto", IPPROTO_TCP, equal=False),))]
    if not config.ipv6:
        rules.append(Rule("in", (Match("nfproto", NFPROTO_IPV4, equal=False),)))
    for port in sorted({*AGENT_PORTS, *config.exclude_inbound_ports}):
        rules.append(Rule("in", (Match("dport", port),)))
    if "*" in config.include_inbound_ports:
        rules.append(Rule("in", (), config.inbound_port))
    else:
        for text in config.include_inbound_ports:
            rules.append(Rule("in", (Match("dport", int(text)),), config.inbound_port))
    return rules


def _to(cidr: str) -> Match:
    return _address("daddr", cidr)


def _address(side: Literal["saddr", "daddr"], cidr: str) -> Match:
    network = ipaddress.ip_network(cidr, strict=False)
    if network.version == 4:
        return Match(side, str(network))
    return Match("saddr6" if side == "saddr" else "daddr6", str(network))


def _family(cidrs: Iterable[str], ipv6: bool) -> list[str]:
    return [c for c in cidrs if ipv6 or ipaddress.ip_network(c, strict=False).version == 4]


def parse_cidrs(text: str) -> tuple[tuple[str, ...], list[str]]:
    """Networks of a comma-separated list (``*`` alone means all) and messages about the wrong ones."""
    items = tuple(part.strip() for part in text.split(",") if part.strip())
    problems = []
    for item in items:
        if item == "*":
            if len(items) > 1:
                problems.append("'*' stands alone: it means all addresses")
            continue
        try:
            ipaddress.ip_network(item, strict=False)
        except ValueError:
            problems.append(f"'{item}' is not an IP network; write it as 10.0.0.0/8 or 10.1.2.3")
    return items, problems


def parse_ports(text: str, wildcard: bool = False) -> tuple[tuple[str, ...], list[str]]:
    """Ports of a comma-separated list and messages about the wrong ones."""
    items = tuple(part.strip() for part in text.split(",") if part.strip())
    if wildcard and items == ("*",):
        return items, []
    problems = [
        f"'{item}' is not a port; write a number from 1 to 65535"
        for item in items
        if not (item.isascii() and item.isdecimal() and 0 < int(item) < 65536)
    ]
    return items, problems


_NFT_NAMES: dict[str, str] = {
    "skuid": "meta skuid",
    "skgid": "meta skgid",
    "mark": "meta mark",
    "saddr": "ip saddr",
    "daddr": "ip daddr",
    "saddr6": "ip6 saddr",
    "daddr6": "ip6 daddr",
    "dport": "tcp dport",
    "udp_dport": "udp dport",
    "udp_sport": "udp sport",
}


def _render_match(match: Match) -> str:
    sign = "" if match.equal else "!= "
    if match.field == "l4proto":
        return f"meta l4proto {sign}tcp"
    if match.field == "nfproto":
        return f"meta nfproto {sign}{'ipv4' if match.value == NFPROTO_IPV4 else 'ipv6'}"
    if match.field == "oif":
        return f'oif {sign}"lo"'
    return f"{_NFT_NAMES[match.field]} {sign}{match.value}"


def render_nft(rules: Iterable[Rule]) -> str:
    """The rules in nft's language, for people and for ``--dry-run``."""
    chains = {
        "raw_out": "filter hook output priority -300",
        "raw_in": "filter hook prerouting priority -300",
        "out": "nat hook output priority -100",
        "in": "nat hook prerouting priority -100",
    }
    lines = [f"table inet {TABLE} {{"]
    rules = tuple(rules)
    for chain, hook in chains.items():
        if chain in RAW and not any(rule.chain == chain for rule in rules):
            continue
        lines.append(f"  chain {chain} {{")
        lines.append(f"    type {hook}; policy accept;")
        for rule in rules:
            if rule.chain != chain:
                continue
            parts = [_render_match(match) for match in rule.matches]
            if rule.redirect:
                if not any(m.field in PORT_FIELDS for m in rule.matches):
                    parts.append("meta l4proto tcp")
                parts.append(f"redirect to :{rule.redirect}")
            elif chain in RAW:
                parts.append("notrack")
            else:
                parts.append("return")
            lines.append("    " + " ".join(parts))
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"
