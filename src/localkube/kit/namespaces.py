"""Linux namespaces and mounts, which Python 3.11 does not offer: thin wrappers over libc.

In: plain values. Out: OSError with errno and a path when the kernel refuses. Safe to use between
fork and exec in a single-threaded process. Sources: unshare(2), setns(2), mount(2),
mount_setattr(2), pivot_root(2), prctl(2), user_namespaces(7).
"""

import ctypes
import os
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

MOUNT_ATTR_RDONLY: Final = 1
AT_FDCWD: Final = -100
AT_RECURSIVE: Final = 0x8000

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
# x86-64 and arm64 share these two numbers.
_SYS_MOUNT_SETATTR: Final = 442

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


def _check(result: int, what: str, path: str | None = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path)


def unshare(flags: int) -> None:
    """Move this process (for CLONE_NEWPID: its future children) into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, kind: int = 0) -> None:
    """Enter the namespace that `descriptor` (of /proc/PID/ns/KIND) refers to; 0 is any kind."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns")


def mount(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str = "",
    flags: int = 0,
    options: str = "",
) -> None:
    """mount(2)."""
    place = os.fspath(target)
    result = _libc.mount(
        os.fsencode(source), os.fsencode(place), kind.encode(), flags, options.encode()
    )
    _check(result, f"mount {kind or 'bind'} {os.fspath(source)}", place)


def bind(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, read_only: bool = False
) -> None:
    """Make `source` (and what is mounted below it) also appear at `target`."""
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        set_read_only(target)


def set_read_only(target: str | os.PathLike[str]) -> None:
    """Make the mount at `target` and all below it read-only, keeping its other (locked) flags."""

    class _MountAttributes(ctypes.Structure):
        _fields_ = (
            ("set", ctypes.c_uint64),
            ("clear", ctypes.c_uint64),
            ("propagation", ctypes.c_uint64),
            ("user_namespace", ctypes.c_uint64),
        )

    attributes = _MountAttributes(MOUNT_ATTR_RDONLY, 0, 0, 0)
    place = os.fspath(target)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(place)),
        ctypes.c_uint(AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, "mount_setattr", place)


def make_mounts_private() -> None:
    """From now on nothing that we mount is seen outside, and nothing mounted outside is seen here."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def umount(target: str | os.PathLike[str], *, lazy: bool = True) -> None:
    """Remove the mount at `target`; lazily, also if it is in use."""
    place = os.fspath(target)
    flags = MNT_DETACH if lazy else 0
    _check(_libc.umount2(os.fsencode(place), ctypes.c_int(flags)), "umount", place)


def pivot_root(new_root: str | os.PathLike[str], old_root: str | os.PathLike[str]) -> None:
    """Make `new_root` this mount namespace's `/`; the old one is found at `old_root`."""
    result = _libc.pivot_root(os.fsencode(new_root), os.fsencode(old_root))
    _check(result, "pivot_root", os.fspath(new_root))


def map_to_root(uid: int, gid: int) -> None:
    """In a new user namespace: the one host user and group that exist in it appear as 0.

    Call it right after unshare(CLONE_NEWUSER), with the ids from before.
    """
    # The kernel wants setgroups denied before an unprivileged gid_map (user_namespaces(7)).
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def die_with_parent(signal: int = 9) -> None:
    """Get `signal` when the thread that created us ends.

    Cleared by changes of user or capabilities, so call it after those; then check getppid, since
    the parent may have died just before.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


def become_subreaper() -> None:
    """Orphaned descendants become our children, so that we can reap them."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def set_process_name(name: str) -> None:
    """The name that `ps` and /proc/PID/comm show; at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    address = ctypes.cast(buffer, ctypes.c_void_p).value or 0
    _check(_libc.prctl(_PR_SET_NAME, address, 0, 0, 0), "prctl PR_SET_NAME")


def no_new_privileges() -> None:
    """Set-uid programs give this process and its children nothing from now on."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS")


def drop_from_bounding_set(capability: int) -> None:
    """No program that is executed from now on can have `capability` (a number of capability.h)."""
    _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl PR_CAPBSET_DROP")


def set_dumpable(dumpable: bool) -> None:
    """Whether others of the same user may look into /proc/PID of this process."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0), "prctl PR_SET_DUMPABLE")
