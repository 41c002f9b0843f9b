"""The state directory of a cluster: where it is, who owns it now, and what it remembers.

In: a cluster name and the environment. Out: paths, the lock, `ClusterSettings`. Promises: one
owner at a time (a lock that the kernel drops with its holders, so there are no stale locks);
the settings file is replaced atomically; every failure is a UserError that says what to do.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from localkube.kit.program import PROGRAM

DEFAULT_NAME: Final = "default"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?")
_LOCK_POLL: Final = 0.02  # seconds


class UserError(Exception):
    """Something the user can mend; the text is shown as it is, without a traceback."""


@dataclass(frozen=True)
class StateDirectory:
    """The paths of one cluster."""

    root: Path
    name: str

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.root / "kubeconfig"

    @property
    def node_kubeconfig(self) -> Path:
        """The node agent's kubeconfig."""
        return self.root / "node.kubeconfig"

    @property
    def controller_kubeconfig(self) -> Path:
        """The controllers' kubeconfig."""
        return self.root / "controller-manager.kubeconfig"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def database(self) -> Path:
        """The API server's store."""
        return self.root / "state.db"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.root / "log"

    @property
    def pid_file(self) -> Path:
        """The lock; holds the supervisor's process id."""
        return self.root / "localkube.pid"

    @property
    def settings_file(self) -> Path:
        """What a cluster keeps from one start to the next."""
        return self.root / "cluster.json"

    def prepare(self) -> None:
        """Create the directory (0700). Raises UserError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o700)
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise storage_error(error, self.root) from error


def storage_error(error: OSError, place: Path) -> UserError:
    """An error of the file system, in words that help."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left in {place}: free some, or choose another place with "
            "LOCALKUBE_HOME=/some/folder"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(
            f"cannot write to {place} ({error.strerror}): make it writable for you, or choose "
            "another place with LOCALKUBE_HOME=/some/folder"
        )
    return UserError(f"cannot use {place}: {error.strerror or error}")


def clusters_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder with one state directory for each cluster of this user."""
    home = environ.get("LOCALKUBE_HOME")
    if home:
        return Path(home).absolute()
    state_home = environ.get("XDG_STATE_HOME") or ""
    # The XDG specification: relative paths in these variables are to be ignored.
    base = Path(state_home) if state_home.startswith("/") else Path.home() / ".local" / "state"
    return base / "localkube"


def state_directory(name: str, environ: Mapping[str, str] = os.environ) -> StateDirectory:
    """The state directory of the cluster `name`. Raises UserError for an impossible name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be a cluster's name: use up to 42 lower-case letters, digits and "
            "hyphens, beginning and ending with a letter or digit"
        )
    return StateDirectory(clusters_root(environ) / name, name)


@dataclass(frozen=True)
class ClusterSettings:
    """api_port: the API's port on 127.0.0.1; load_balancer_network: "127.x.y", the first three
    numbers of the addresses that LoadBalancer Services get."""

    api_port: int
    load_balancer_network: str


def load_settings(state: StateDirectory) -> ClusterSettings | None:
    """The settings of an earlier start, or None. Raises UserError if they cannot be read."""
    try:
        document = json.loads(state.settings_file.read_text())
        return ClusterSettings(int(document["api_port"]), str(document["load_balancer_network"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, state.settings_file) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{state.settings_file} is damaged ({error!r}): delete it (ports and LoadBalancer "
            f"addresses are then chosen anew), or start over with `{PROGRAM} reset`"
        ) from error


def save_settings(state: StateDirectory, settings: ClusterSettings) -> None:
    """Remember the settings. Raises UserError."""
    temporary = state.settings_file.with_suffix(".new")
    try:
        temporary.write_text(json.dumps(asdict(settings)) + "\n")
        temporary.replace(state.settings_file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(error, state.root) from error


def choose_network(state: StateDirectory) -> str:
    """A "127.x.y" that no other cluster of this user has, the same for the same user, folder and name.

    x is 16 to 239, so that nothing else that likes to use 127.0.0.x or 127.1.x.x is met.
    """
    taken = set()
    for other in state.root.parent.glob("*/cluster.json"):
        if other != state.settings_file:
            try:
                taken.add(json.loads(other.read_text())["load_balancer_network"])
            except (OSError, ValueError, KeyError):
                continue
    for attempt in range(1000):
        seed = f"{os.getuid()}/{state.root}/{attempt}".encode()
        digest = hashlib.sha256(seed).digest()
        network = f"127.{16 + digest[0] % 224}.{digest[1]}"
        if network not in taken:
            return network
    raise UserError("no free network for LoadBalancer addresses: delete a cluster")


class ClusterLock:
    """Ownership of a state directory: a flock on the pid file, which also tells who holds it.

    The descriptor is passed on to the cluster's init process, so that the lock is free only when
    both are gone: a new start cannot meet the last processes of a killed one.
    """

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self.descriptor = -1

    def acquire(self) -> bool:
        """Take the lock and write our pid -> whether we got it. Raises UserError."""
        path = self._state.pid_file
        try:
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    return False
                if _same_file(descriptor, path):
                    break
                os.close(descriptor)  # its last owner removed the file meanwhile
            self.descriptor = descriptor
            self.write(str(os.getpid()))
            return True
        except OSError as error:
            raise storage_error(error, path) from error

    def write(self, text: str) -> None:
        """Replace the lock file's content; the caller holds the lock."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{text}\n".encode(), 0)

    def release(self) -> None:
        """Remove the pid file and let go."""
        if self.descriptor >= 0:
            self._state.pid_file.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(frozen=True)
class Owner:
    """Who holds the lock: the supervisor's pid (0: not known), and whether it is stopping."""

    pid: int
    stopping: bool


def current_owner(state: StateDirectory) -> Owner | None:
    """Who runs this cluster now, or None. A pid file without a lock means: nobody."""
    try:
        descriptor = os.open(state.pid_file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, state.pid_file) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = os.pread(descriptor, 100, 0).decode(errors="replace").split()
            pid = int(words[0]) if words and words[0].isdigit() else 0
            return Owner(pid, "stopping" in words or not _alive(pid))
        return None
    finally:
        os.close(descriptor)


def wait_until_free(state: StateDirectory, timeout: float) -> bool:
    """Wait until nobody runs this cluster -> whether that happened in time."""
    deadline = time.monotonic() + timeout
    while current_owner(state) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOCK_POLL)
    return True


def delete_state(state: StateDirectory) -> None:
    """Remove the state directory; pods' files may be read-only to us. Raises UserError."""

    def make_writable(function: object, path: str, info: object) -> None:
        try:
            Path(path).parent.chmod(0o700)
            Path(path).chmod(0o700)
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                Path(path).unlink(missing_ok=True)
        except OSError:
            pass

    if state.root.exists():
        shutil.rmtree(state.root, onerror=make_writable)
    if state.root.exists():
        shutil.rmtree(state.root, ignore_errors=True)
    if state.root.exists():
        raise UserError(f"could not remove all of {state.root}: remove it by hand")


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
