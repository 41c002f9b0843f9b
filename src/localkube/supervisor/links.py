"""The first network set-up inside the node's network namespace: `lo` up, and the node's address.

Speaks rtnetlink directly, because this runs before anything else does and importing a netlink
library would cost more than all of it. Source: rtnetlink(7), linux/if_link.h, linux/if_addr.h.
"""

import errno
import os
import socket
import struct
from typing import Final

_NLMSG_ERROR: Final = 2
_RTM_NEWLINK: Final = 16
_RTM_NEWADDR: Final = 20
_REQUEST_ACK: Final = 0x1 | 0x4
_CREATE_EXCLUSIVE: Final = 0x400 | 0x200
_IFF_UP: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2


def set_up_node_links(address: str, name: str = "node0") -> str:
    """Bring `lo` up and give the namespace `address`/32 -> the link that has it.

    The link is a dummy, or a bridge without ports where the kernel has no dummy links; `lo`
    serves where it has neither. Raises OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        _set_up(netlink, socket.if_nametoindex("lo"))
        for kind in ("dummy", "bridge"):
            try:
                _create(netlink, name, kind)
                break
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM):
                    raise
        else:
            name = "lo"
        index = socket.if_nametoindex(name)
        _set_up(netlink, index)
        _add_address(netlink, index, address)
        return name


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def _create(netlink: socket.socket, name: str, kind: str) -> None:
    info = _attribute(_IFLA_INFO_KIND, kind.encode() + b"\0")
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
    body += _attribute(_IFLA_IFNAME, name.encode() + b"\0") + _attribute(_IFLA_LINKINFO, info)
    _request(netlink, _RTM_NEWLINK, _CREATE_EXCLUSIVE, body)


def _set_up(netlink: socket.socket, index: int) -> None:
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
    _request(netlink, _RTM_NEWLINK, 0, body)


def _add_address(netlink: socket.socket, index: int, address: str) -> None:
    packed = socket.inet_aton(address)
    body = struct.pack("=BBBBi", socket.AF_INET, 32, 0, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    _request(netlink, _RTM_NEWADDR, _CREATE_EXCLUSIVE, body)


def _request(netlink: socket.socket, kind: int, flags: int, body: bytes) -> None:
    netlink.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_ACK | flags, 1, 0) + body)
    answer = netlink.recv(65536)
    _, answer_kind, _, _, _ = struct.unpack_from("=IHHII", answer)
    if answer_kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, 16)
        if code:
            raise OSError(-code, f"rtnetlink: {os.strerror(-code)}")
