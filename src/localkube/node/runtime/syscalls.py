"""System calls that the fork server needs beyond `localkube.kit.namespaces`.

In: plain numbers and names. Out: nothing, or OSError with the kernel's errno. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from localkube.kit import namespaces as ns

CAPABILITIES: Final = (  # noqa: SIM905 - forty quoted names would not read better
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
    "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
    "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
    "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
    "CHECKPOINT_RESTORE"
).split()
"""Capability names without CAP_; the index is the kernel's number (linux/capability.h)."""

_SYS_PIDFD_OPEN: Final = 434  # the same on every architecture but alpha

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def pidfd_open(pid: int) -> int:
    """Return a file descriptor that stands for process ``pid``."""
    return _check(_libc.syscall(_SYS_PIDFD_OPEN, pid, 0), f"pidfd_open({pid})")


def pivot_root_here() -> None:
    """Make the current directory, which must be a mount point, the root; drop the old root."""
    ns.pivot_root(".", ".")
    ns.umount(".")
    os.chdir("/")


def sethostname(name: str) -> None:
    """Set the host name of the UTS namespace; it is cut at the kernel's limit of 64 bytes."""
    raw = name.encode()[:64]
    _check(_libc.sethostname(raw, len(raw)), "sethostname")


def keep_capabilities(names: frozenset[str]) -> None:
    """Remove every capability that is not in ``names`` from the bounding set.

    Root's exec turns the bounding set into the permitted set, so this is what the program gets.
    """
    for number, name in enumerate(CAPABILITIES):
        if name in names:
            continue
        try:
            ns.drop_from_bounding_set(number)
        except OSError:
            # EINVAL: a capability this kernel does not know, so nothing can hold it.
            continue
