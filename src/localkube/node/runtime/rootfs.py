"""Assemble and enter the file system of one container. Runs in a forked child, before exec.

In: a mount plan (see ``Plan``: plain JSON values made by the agent). Out: the calling process has
``plan["root"]``'s content as its root directory and the old one is gone.
Promises: nothing of the host is writable unless the plan says so; a mount point that the host does
not have is made in a "shadow" (a tmpfs in which the host directory's entries are bound again).
Standard library only.
"""

# Plain os calls instead of pathlib: every one is a single system call whose errno matters here,
# and hundreds of them are between a pod and its start.
# ruff: noqa: PTH101, PTH102, PTH103, PTH110, PTH112, PTH114, PTH115, PTH120, PTH208, PTH211

from __future__ import annotations

import errno
import os
import stat
from typing import TypedDict

from localkube.kit import namespaces as ns
from localkube.node.runtime import syscalls as sc

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_EXTRA_DEVICES = ("net/tun", "fuse", "kvm")
_SYMLINK_LIMIT = 40  # the kernel's own limit


class VolumeMount(TypedDict):
    """One bind mount: a host path shown at ``target``."""

    source: str
    target: str
    read_only: bool


class Plan(TypedDict):
    """All that is needed to assemble a container's root."""

    staging: str  # an empty directory of the host: the new root is mounted there
    host_dirs: list[str]  # absolute directories shown read-only at the same path
    homes: list[str]  # home directories: shown without their dot entries; new entries can be made
    hide: list[str]  # directories covered by an empty one
    files: dict[str, str]  # absolute path -> host file bound over it (writable by the container)
    volumes: list[VolumeMount]
    working_dir: str
    read_only: bool  # readOnlyRootFilesystem
    privileged: bool


class RootBuilder:
    """Builds one root below ``root``; every path argument is absolute inside the new root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def inside(self, path: str) -> str:
        """Return the host path of ``path``, following symbolic links as the container would see them."""
        pending = [part for part in path.split("/") if part]
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop(0)
            if part == ".":
                continue
            if part == "..":
                if done:
                    done.pop()
                continue
            here = "/".join([self.root, *done, part])
            try:
                target = os.readlink(here)
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > _SYMLINK_LIMIT:
                raise OSError(errno.ELOOP, f"too many symbolic links in {path}")
            if target.startswith("/"):
                done = []
            pending = [p for p in target.split("/") if p] + pending
        return "/".join([self.root, *done]) if done else self.root

    def make_mount_point(self, path: str, directory: bool) -> str:
        """Return the host path of a mount point at ``path``; make it, if need be in a shadow."""
        target = self.inside(path)
        parts = target[len(self.root) :].strip("/").split("/")
        here = self.root
        for index, part in enumerate(parts):
            parent, here = here, f"{here}/{part}"
            last = index == len(parts) - 1
            if os.path.lexists(here):
                continue
            try:
                self._create(here, directory or not last)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                self.shadow(parent)
                self._create(here, directory or not last)
        return target

    @staticmethod
    def _create(path: str, directory: bool) -> None:
        if directory:
            os.mkdir(path, 0o755)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))

    def shadow(self, directory: str, without_dot_entries: bool = False) -> None:
        """Cover host path ``directory`` by a writable tmpfs that shows the same entries."""
        try:
            names = os.listdir(directory)
        except PermissionError:
            names = []
        old = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mode = stat.S_IMODE(os.fstat(old).st_mode) | 0o700
            ns.mount("tmpfs", directory, "tmpfs", ns.MS_NOSUID, f"mode={mode:o}")
            for name in names:
                if not (without_dot_entries and name.startswith(".")):
                    self._reproduce(f"/proc/self/fd/{old}/{name}", f"{directory}/{name}")
            # All entries at once, then the tmpfs itself back: one system call each.
            ns.set_read_only(directory)
            ns.mount("tmpfs", directory, flags=ns.MS_REMOUNT | ns.MS_BIND | ns.MS_NOSUID)
        finally:
            os.close(old)

    def _reproduce(self, source: str, target: str) -> None:
        try:
            mode = os.lstat(source).st_mode
            if stat.S_ISLNK(mode):
                os.symlink(os.readlink(source), target)
                return
            self._create(target, stat.S_ISDIR(mode))
            ns.bind(source, target)
        except OSError:
            # An entry of the host that cannot be shown (a stale mount, no permission) is left out.
            return

    def bind(self, source: str, path: str, read_only: bool) -> None:
        """Show host ``source`` (directory or file) at ``path``."""
        target = self.make_mount_point(path, os.path.isdir(source))
        ns.bind(source, target, read_only=read_only)


def enter_root(plan: Plan) -> None:
    """Assemble the root of ``plan`` in a new mount namespace and move into it.

    The caller is already in the pod's PID namespace (its /proc is mounted here). Raises OSError
    whose text names the step that failed.
    """
    ns.unshare(ns.CLONE_NEWNS)
    ns.make_mounts_private()
    root = plan["staging"]
    ns.mount("tmpfs", root, "tmpfs", ns.MS_NOSUID, "mode=755")
    builder = RootBuilder(root)
    _show_host(builder, plan)
    _make_own_places(builder, plan)
    for volume in plan["volumes"]:
        builder.bind(volume["source"], volume["target"], volume["read_only"])
    os.makedirs(builder.make_mount_point(plan["working_dir"], True), exist_ok=True)
    if plan["read_only"]:
        flags = ns.MS_REMOUNT | ns.MS_BIND | ns.MS_NOSUID | ns.MS_RDONLY
        ns.mount("tmpfs", root, flags=flags)
    os.chdir(root)
    sc.pivot_root_here()
    os.chdir(plan["working_dir"])


def _show_host(builder: RootBuilder, plan: Plan) -> None:
    for name in os.listdir("/"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{builder.root}/{name}")
    for path in plan["homes"]:
        builder.bind(path, path, read_only=True)
        builder.shadow(builder.inside(path), without_dot_entries=True)
    for path in plan["host_dirs"]:
        builder.bind(path, path, read_only=True)
    for path in plan["hide"]:
        target = builder.inside(path)
        if os.path.isdir(target):
            ns.mount("tmpfs", target, "tmpfs", ns.MS_NOSUID | ns.MS_RDONLY, "mode=755,size=4k")


def _make_own_places(builder: RootBuilder, plan: Plan) -> None:
    root = builder.root
    for path, mode in (
        ("/tmp", 0o1777),  # noqa: S108 - the container's own
        ("/run", 0o755),
        ("/var", 0o755),
        ("/var/tmp", 0o1777),  # noqa: S108
        ("/var/log", 0o755),
        ("/var/lib", 0o755),
        ("/var/cache", 0o755),
        ("/root", 0o700),
        ("/dev", 0o755),
        ("/proc", 0o555),
        ("/sys", 0o555),
    ):
        if not os.path.lexists(root + path):
            os.mkdir(root + path)
        elif path == "/root":
            continue
        os.chmod(root + path, mode)  # mkdir's mode is cut by the umask
    if not os.path.lexists(f"{root}/var/run"):
        os.symlink("/run", f"{root}/var/run")
    _make_devices(root, plan["privileged"])
    ns.mount("proc", f"{root}/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    try:
        flags = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC | ns.MS_RDONLY
        ns.mount("sysfs", f"{root}/sys", "sysfs", flags)
    except OSError:
        # Some hosts hide parts of their sysfs, then no user namespace may mount a fresh one;
        # programs treat a missing /sys as "unknown hardware".
        pass
    for path, source in plan["files"].items():
        builder.bind(source, path, read_only=False)


def _make_devices(root: str, privileged: bool) -> None:
    dev = f"{root}/dev"
    for name in _DEVICES + (_EXTRA_DEVICES if privileged else ()):
        if not os.path.exists(f"/dev/{name}"):
            continue
        os.makedirs(os.path.dirname(f"{dev}/{name}"), exist_ok=True)
        os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        ns.mount(f"/dev/{name}", f"{dev}/{name}", flags=ns.MS_BIND)
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        os.symlink(target, f"{dev}/{name}")
    os.mkdir(f"{dev}/pts")
    options = "newinstance,ptmxmode=0666,mode=0620"
    ns.mount("devpts", f"{dev}/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, options)
    os.mkdir(f"{dev}/shm")
    os.chmod(f"{dev}/shm", 0o1777)  # noqa: S103 - what /dev/shm is on every host
