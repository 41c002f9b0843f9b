"""One real API server for the tests of a module; each test uses names of its own."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localkube_apiserver.api_process import ApiProcess


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    server = ApiProcess(tmp_path_factory.mktemp("api"))
    server.start()
    yield server
    server.close()


_numbers = itertools.count()


@pytest.fixture
def namespace(api: ApiProcess) -> str:
    """A fresh namespace with its default service account, as a controller would make it."""
    name = f"ns-{next(_numbers)}"
    metadata = {"name": name}
    assert api.post("/api/v1/namespaces", {"metadata": metadata}).status == 201
    path = f"/api/v1/namespaces/{name}/serviceaccounts"
    assert api.post(path, {"metadata": {"name": "default"}}).status == 201
    return name


def _binaries() -> list[str]:
    beside = Path(sys.executable).parent / "kubectl"
    found = [str(beside)] if beside.exists() else []
    other = shutil.which("kubectl", path="/usr/local/bin:/usr/bin:/bin")
    return [*found, *([other] if other else [])]


@pytest.fixture(params=_binaries() or [None], ids=lambda path: str(path).replace("/", "-"))
def kubectl(request: pytest.FixtureRequest, api: ApiProcess) -> Callable[..., str]:
    """Run a real kubectl against the server; each one that this machine has."""
    binary = request.param
    if binary is None:
        pytest.skip("no kubectl on this machine")

    def run(*arguments: str, stdin: str = "", code: int = 0) -> str:
        done = api.kubectl(binary, *arguments, stdin=stdin)
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run
