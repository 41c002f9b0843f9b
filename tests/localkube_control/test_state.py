"""The state directory: names, settings, ports and the lock."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from localkube.supervisor.outer import bind_api_socket, namespaces_message
from localkube.supervisor.state import (
    ClusterLock,
    ClusterSettings,
    StateDirectory,
    UserError,
    choose_network,
    clusters_root,
    current_owner,
    delete_state,
    load_settings,
    save_settings,
    state_directory,
    storage_error,
)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    directory = StateDirectory(tmp_path / "clusters" / "one", "one")
    directory.prepare()
    return directory


def test_where_state_lives() -> None:
    home = str(Path.home())
    assert clusters_root({"LOCALKUBE_HOME": "/a"}) == Path("/a")
    assert clusters_root({"XDG_STATE_HOME": "/b"}) == Path("/b/localkube")
    assert clusters_root({"XDG_STATE_HOME": "b"}) == Path(home, ".local/state/localkube")


@pytest.mark.parametrize("name", ["", "Upper", "../up", "a b", "-a", "x" * 50])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        state_directory(name)


def test_state_is_private(state: StateDirectory) -> None:
    assert state.root.stat().st_mode & 0o777 == 0o700


def test_settings_are_kept_and_damage_is_explained(state: StateDirectory) -> None:
    assert load_settings(state) is None
    settings = ClusterSettings(6443, "127.20.30")
    save_settings(state, settings)
    assert load_settings(state) == settings
    state.settings_file.write_text("{")
    with pytest.raises(UserError, match="reset"):
        load_settings(state)


def test_clusters_have_different_networks_that_stay(state: StateDirectory) -> None:
    network = choose_network(state)
    assert network == choose_network(state)
    # A cluster of the same name in another folder is another one.
    twin = StateDirectory(state.root.parent / "two", "one")
    twin.prepare()
    wanted = choose_network(twin)
    assert wanted != network
    # And when a neighbour has what a cluster would get, it has to take another.
    save_settings(state, ClusterSettings(6443, wanted))
    assert choose_network(twin) != wanted


def test_only_one_owner_and_no_stale_locks(state: StateDirectory) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from localkube.supervisor.state import ClusterLock, StateDirectory\n"
        "lock = ClusterLock(StateDirectory(Path(sys.argv[1]), 'one'))\n"
        "print(lock.acquire(), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(state.root)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "True"
    lock = ClusterLock(state)
    assert not lock.acquire()
    owner = current_owner(state)
    assert owner is not None
    assert (owner.pid, owner.stopping) == (holder.pid, False)
    holder.kill()
    holder.wait()
    assert state.pid_file.exists()
    assert current_owner(state) is None
    assert lock.acquire()
    lock.write(f"{os.getpid()} stopping")
    owner = current_owner(state)
    assert owner is not None
    assert owner.stopping
    lock.release()
    assert not state.pid_file.exists()


def test_reset_removes_read_only_files(state: StateDirectory) -> None:
    folder = state.root / "pods" / "x"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    folder.chmod(0o500)
    delete_state(state)
    assert not state.root.exists()


def test_a_full_disk_and_a_forbidden_place_say_what_to_do() -> None:
    for number, words in ((errno.ENOSPC, "no space left"), (errno.EACCES, "writable")):
        message = str(storage_error(OSError(number, os.strerror(number)), Path("/state")))
        assert words in message
        assert "/state" in message
        assert "LOCALKUBE_HOME" in message


def test_the_port_that_kubeconfigs_name_is_not_silently_changed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"{port}.*--api-port"):
            bind_api_socket(None, port)
        with pytest.raises(UserError, match=f"{port}.*another --api-port"):
            bind_api_socket(port, None)
    sock, found = bind_api_socket(port, 1)
    assert found == port
    sock.close()


def test_missing_namespaces_are_explained() -> None:
    message = namespaces_message(errno.ENOSYS, "unshare")
    assert "kernel was built without" in message
    assert "--no-node" in message
