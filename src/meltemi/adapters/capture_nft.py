"""Put capture rules into the kernel of this network namespace, without any nft or iptables binary.

In: rules of ``agent.capture``. Out: nftables table ``inet mesh``. Promises: one transaction, so either all
rules are there or none; setting up twice gives the same result; removal of nothing is not an error. Needs
CAP_NET_ADMIN over the network namespace (a user namespace that owns it suffices).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import Any

from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    Cmp,
    Meta,
    Regs,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)
from pyroute2.nftables.expressions import genex, verdict

from meltemi.agent.capture import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    PORT_FIELDS,
    RAW,
    TABLE,
    Match,
    Rule,
)

_NETLINK_NETFILTER = 12
_NLMSG_ERROR = 2
_ANSWER_S_MAX = 10.0
_NFPROTO_INET = 1
_NFT_RETURN = -5
_NF_ACCEPT = 1
# Hook (NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT), priority (NF_IP_PRI_NAT_DST, NF_IP_PRI_RAW) and type.
_CHAINS = {
    "in": (0, -100, "nat"),
    "out": (3, -100, "nat"),
    "raw_in": (0, -300, "filter"),
    "raw_out": (3, -300, "filter"),
}
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NETWORK, _TRANSPORT = 1, 2  # payload bases
_OFFSETS = {"saddr": 12, "daddr": 16, "saddr6": 8, "daddr6": 24}
_META = {
    "l4proto": (Meta.NFT_META_L4PROTO, "B"),
    "nfproto": (Meta.NFT_META_NFPROTO, "B"),
    "oif": (Meta.NFT_META_OIF, "=I"),
    "skuid": (Meta.NFT_META_SKUID, "=I"),
    "skgid": (Meta.NFT_META_SKGID, "=I"),
    "mark": (Meta.NFT_META_MARK, "=I"),
}


class CaptureError(Exception):
    """The kernel refused the rules; the text says what to do about it."""


def apply_rules(rules: Iterable[Rule]) -> None:
    """Replace table ``inet mesh`` by these rules in one transaction.

    :raises CaptureError: without permission, or without nf_tables in this kernel.
    """
    messages = [_table(NFT_MSG_NEWTABLE), _table(NFT_MSG_DELTABLE), _table(NFT_MSG_NEWTABLE)]
    rules = tuple(rules)
    # A chain that no rule needs is left out: not every kernel has what it takes.
    messages += [_chain(name) for name in _CHAINS if name not in RAW or _uses(rules, name)]
    messages += [_rule(rule) for rule in rules]
    _commit(messages)


def remove_rules() -> None:
    """Remove table ``inet mesh`` with all that is in it.

    :raises CaptureError: as ``apply_rules``.
    """
    # Adding first makes the removal succeed when there was nothing to remove.
    _commit([_table(NFT_MSG_NEWTABLE), _table(NFT_MSG_DELTABLE)])


def _commit(messages: list[Any]) -> None:
    # The kernel reports every error on its own accord, also one about the whole batch (no permission), so
    # one acknowledgement, of the last message, is enough to know that all is in place.
    messages[-1]["header"]["flags"] |= NLM_F_ACK
    data = b""
    for number, message in enumerate((_batch(_BATCH_BEGIN), *messages, _batch(_BATCH_END)), 1):
        message["header"]["sequence_number"] = number
        message.encode()
        data += bytes(message.data)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(_ANSWER_S_MAX)
            netlink.bind((0, 0))
            netlink.send(data)
            code = _first_answer(netlink.recv(65536))
    except TimeoutError as error:
        raise CaptureError("the kernel did not answer to the capture rules") from error
    except OSError as error:
        raise CaptureError(_explain(error.errno or 0)) from error
    if code:
        raise CaptureError(_explain(-code))


def _first_answer(data: bytes) -> int:
    """The error code of the first answer: 0, or a negative errno."""
    _length, kind, _flags, _number, _pid, code = struct.unpack_from("=IHHIIi", data)
    if kind != _NLMSG_ERROR:
        raise OSError(errno.EPROTO, "unexpected netlink message")
    return int(code)


def _explain(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return (
            "setting up traffic capture is not permitted: the container needs the capability NET_ADMIN "
            "(container istio-init has it in its securityContext; a pod security policy may take it away)"
        )
    if code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOENT, errno.ENOPROTOOPT):
        return (
            "this kernel lacks nf_tables or its NAT redirect (CONFIG_NF_TABLES, CONFIG_NFT_REDIR): load them "
            f"with 'modprobe nft_redir' on the node [{errno.errorcode.get(code, code)}]"
        )
    return f"the kernel refused the capture rules: {errno.errorcode.get(code, code)}"


def _batch(kind: int) -> Any:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    return message


def _message(message: Any, kind: int, attributes: list[Any], flags: int = 0) -> Any:
    message["attrs"] = attributes
    message["header"]["type"] = (NFNL_SUBSYS_NFTABLES << 8) | kind
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message["nfgen_family"] = _NFPROTO_INET
    return message


def _table(kind: int) -> Any:
    flags = NLM_F_CREATE if kind == NFT_MSG_NEWTABLE else 0
    return _message(nft_table_msg(), kind, [["NFTA_TABLE_NAME", TABLE]], flags)


def _uses(rules: Iterable[Rule], chain: str) -> bool:
    return any(rule.chain == chain for rule in rules)


def _chain(name: str) -> Any:
    number, priority, kind = _CHAINS[name]
    hook = {"attrs": [["NFTA_HOOK_HOOKNUM", number], ["NFTA_HOOK_PRIORITY", priority]]}
    attributes = [
        ["NFTA_CHAIN_TABLE", TABLE],
        ["NFTA_CHAIN_NAME", name],
        ["NFTA_CHAIN_HOOK", hook],
        ["NFTA_CHAIN_POLICY", _NF_ACCEPT],
        ["NFTA_CHAIN_TYPE", kind],
    ]
    return _message(nft_chain_msg(), NFT_MSG_NEWCHAIN, attributes, NLM_F_CREATE)


def _rule(rule: Rule) -> Any:
    expressions: list[Any] = []
    if rule.redirect and not any(match.field in PORT_FIELDS for match in rule.matches):
        expressions += _compare(Match("l4proto", IPPROTO_TCP))
    for match in rule.matches:
        expressions += _compare(match)
    if rule.redirect:
        port = {"attrs": [("NFTA_DATA_VALUE", struct.pack("!H", rule.redirect))]}
        expressions.append(genex("immediate", {"dreg": Regs.NFT_REG_1, "data": port}))
        expressions.append(genex("redir", {"reg_proto_min": Regs.NFT_REG_1}))
    elif rule.chain in RAW:
        expressions.append({"attrs": [("NFTA_EXPR_NAME", "notrack")]})
    else:
        expressions += verdict(_NFT_RETURN)
    attributes = [
        ["NFTA_RULE_TABLE", TABLE],
        ["NFTA_RULE_CHAIN", rule.chain],
        ["NFTA_RULE_EXPRESSIONS", expressions],
    ]
    return _message(nft_rule_msg(), NFT_MSG_NEWRULE, attributes, NLM_F_CREATE | NLM_F_APPEND)


def _compare(match: Match) -> list[Any]:
    if match.field in _META:
        key, layout = _META[match.field]
        return [
            genex("meta", {"key": key, "dreg": Regs.NFT_REG_1}),
            _cmp(struct.pack(layout, int(match.value)), match.equal),
        ]
    if match.field in PORT_FIELDS:
        protocol = IPPROTO_TCP if match.field == "dport" else IPPROTO_UDP
        return [
            *_compare(Match("l4proto", protocol)),
            _payload(_TRANSPORT, 0 if match.field == "udp_sport" else 2, 2),
            _cmp(struct.pack("!H", int(match.value)), match.equal),
        ]
    network = ipaddress.ip_network(str(match.value), strict=False)
    family = NFPROTO_IPV4 if network.version == 4 else NFPROTO_IPV6
    size = network.max_prefixlen // 8
    steps = [*_compare(Match("nfproto", family)), _payload(_NETWORK, _OFFSETS[match.field], size)]
    if network.prefixlen < network.max_prefixlen:
        mask = {"attrs": [("NFTA_DATA_VALUE", network.netmask.packed)]}
        zero = {"attrs": [("NFTA_DATA_VALUE", bytes(size))]}
        arguments = {"sreg": Regs.NFT_REG_1, "dreg": Regs.NFT_REG_1, "len": size}
        steps.append(genex("bitwise", {**arguments, "mask": mask, "xor": zero}))
    return [*steps, _cmp(network.network_address.packed, match.equal)]


def _payload(base: int, offset: int, size: int) -> Any:
    return genex("payload", {"dreg": Regs.NFT_REG_1, "base": base, "offset": offset, "len": size})


def _cmp(value: bytes, equal: bool) -> Any:
    operator = Cmp.NFT_CMP_EQ if equal else Cmp.NFT_CMP_NEQ
    data = {"attrs": [("NFTA_DATA_VALUE", value)]}
    return genex("cmp", {"sreg": Regs.NFT_REG_1, "op": operator, "data": data})
