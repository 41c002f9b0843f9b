"""The sample as a user would run it: copied to a folder of their own, with nothing but pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import meltemi_samples.testing as sample

pytestmark = pytest.mark.envoy
SAMPLE = Path(next(iter(sample.__path__)))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sample's folder, copied."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "shop"))


def run_pytest(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """``pytest`` in a folder, as from a shell; only the plugin under test is loaded."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= more
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "meltemi.testing.plugin", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_the_sample_passes(copy: Path) -> None:
    done = run_pytest(copy, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
    assert done.stderr == ""


def test_a_wrong_expectation_shows_the_way_and_the_lines(copy: Path) -> None:
    test = copy / "test_routes.py"
    text = test.read_text().replace(
        'answer.workload == "reviews-v2"', 'answer.workload == "reviews-v1"'
    )
    test.write_text(text)
    done = run_pytest(copy, "-q", "-k", "testers")
    assert done.returncode == 1
    lines = (copy / "k8s" / "routes.yaml").read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line == "  - name: testers")
    assert "the way of the last requests" in done.stdout
    assert "GET http://reviews:9080/reviews/0 from productpage-v1-1.default" in done.stdout
    assert f"k8s/routes.yaml:{number} (VirtualService/reviews.default spec.http[0]" in done.stdout
    assert "| - name: testers" in done.stdout
    assert "mTLS from spiffe://cluster.local/ns/default/sa/productpage" in done.stdout


def test_wrong_yaml_is_told_with_its_line(copy: Path) -> None:
    routes = copy / "k8s" / "routes.yaml"
    routes.write_text(routes.read_text().replace("exact: jason", "exakt: jason"))
    line = next(n for n, t in enumerate(routes.read_text().splitlines(), 1) if "exakt" in t)
    done = run_pytest(copy, "-q", "-k", "testers")
    assert done.returncode == 1
    assert f"k8s/routes.yaml:{line}" in done.stdout
    assert 'did you mean "exact"' in done.stdout


def _children_with(text: str) -> list[str]:
    """Command lines of processes that name ``text``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words:
            found.append(words)
    return found


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files, with a short name: Unix sockets want that."""
    made = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_nothing_is_left_behind(copy: Path, temporary: Path) -> None:
    arguments = ("-q", "-k", "testers", "--basetemp", str(copy / "t"))
    done = run_pytest(copy, *arguments, TMPDIR=str(temporary))
    assert done.returncode == 0
    assert list(temporary.iterdir()) == []
    assert _children_with(str(temporary)) == []


def test_nothing_is_left_behind_after_a_kill(copy: Path, temporary: Path) -> None:
    (copy / "test_forever.py").write_text(
        "import os, signal\n"
        "def test_ends_hard(mesh):\n"
        "    mesh.apply('k8s/')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_pytest(copy, "-q", "test_forever.py", TMPDIR=str(temporary))
    assert done.returncode == -9
    end = time.monotonic() + 10
    while time.monotonic() < end and (_children_with(str(temporary)) or list(temporary.iterdir())):
        time.sleep(0.05)
    assert _children_with(str(temporary)) == []
    assert list(temporary.iterdir()) == []
