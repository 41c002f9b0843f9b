"""Linux system calls that Python 3.11 does not offer, through ctypes.

In: plain numbers, paths and file descriptors. Out: nothing, or OSError with the kernel's errno.
Promises to import the standard library only, so that the fork server stays small and quick to start.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1
# These two numbers are the same on every architecture of Linux >= 5.12 but alpha.
_SYS_MOUNT_SETATTR = 442
_SYS_PIDFD_OPEN = 434
_SYS_PIVOT_ROOT = {"x86_64": 155}.get(platform.machine(), 41)

CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""Capability names without CAP_; the index is the kernel's number (linux/capability.h)."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _path(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces (CLONE_NEW*)."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces of ``fd``: a namespace file, or a pidfd with several CLONE_NEW* bits."""
    _check(_libc.setns(fd, flags), f"setns({flags:#x})")


def pidfd_open(pid: int) -> int:
    """Return a file descriptor that stands for process ``pid``."""
    return _check(_libc.syscall(_SYS_PIDFD_OPEN, pid, 0), f"pidfd_open({pid})")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        _path(source),
        _path(target),
        _path(kind),
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, f"mount {kind or 'bind'} {source} on {target}")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2), lazily unless told otherwise."""
    _check(_libc.umount2(_path(target), flags), f"umount {target}")


def set_read_only(target: str, recursive: bool = True) -> None:
    """Make the mount at ``target`` (and those below it) read-only."""
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR,
        _AT_FDCWD,
        _path(target),
        _AT_RECURSIVE if recursive else 0,
        attributes,
        len(attributes),
    )
    _check(result, f"mount_setattr read-only {target}")


def pivot_root_here() -> None:
    """Make the current directory, which must be a mount point, the root; drop the old root."""
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    umount(".")
    os.chdir("/")


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one argument."""
    zero = ctypes.c_ulong(0)
    result = _libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero)
    _check(result, f"prctl({option}, {argument})")


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
            prctl(PR_CAPBSET_DROP, number)
        except OSError:
            # EINVAL: a capability this kernel does not know, so nothing can hold it.
            continue
