"""The plugin as somebody new meets it: a wheel, ``pip install`` into an empty environment, the sample, ``pytest``.

Slow: it builds the wheel and downloads every dependency.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.envoy, pytest.mark.timeout(580)]
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def interpreter_for_everybody() -> str:
    """A Python of 3.11 or newer that an ordinary user may run; ours, unless it is in a private folder."""
    check = [
        "-c",
        "import sys, venv; sys.exit(sys.version_info < (3, 11))",
    ]
    for candidate in (sys._base_executable, "/usr/bin/python3", "/usr/local/bin/python3"):  # type: ignore[attr-defined]
        try:
            who = NOBODY if os.geteuid() == 0 else None
            if not subprocess.run([candidate, *check], user=who, capture_output=True).returncode:
                return str(candidate)
        except OSError:
            continue
    return str(sys._base_executable)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Installed:
    """A folder with an environment that has the wheel and pytest in it, and nothing of the repository."""

    folder: Path

    @property
    def sample(self) -> Path:
        """The sample as the wheel brings it."""
        (found,) = self.folder.glob("env/lib/python*/site-packages/meltemi_samples/testing")
        return found


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    folder = Path(tempfile.mkdtemp(prefix="new-user-"))
    folder.chmod(0o755)
    try:
        # From a copy: building leaves things beside the sources.
        source = folder / "source"
        shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
        subprocess.run([*pip, *build], check=True)
        shutil.rmtree(source)
        (wheel,) = folder.glob("meltemi-*.whl")
        env = folder / "env"
        python = interpreter_for_everybody()
        subprocess.run([python, "-m", "venv", "--without-pip", str(env)], check=True)
        into = ["--python", str(env / "bin" / "python"), "install", "--no-warn-script-location"]
        subprocess.run([*pip, *into, str(wheel), "pytest", "pytest-xdist"], check=True, timeout=540)
        yield Installed(folder)
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class User:
    """Who runs pytest, in a home with a copy of the sample."""

    installed: Installed
    home: Path
    uid: int

    @property
    def project(self) -> Path:
        return self.home / "shop"

    def pytest(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What ``pytest`` says."""
        environment = {
            "PATH": f"{self.installed.folder}/env/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "LANG": "C.UTF-8",
        }
        root = os.geteuid() == 0
        return subprocess.run(
            ["pytest", "-p", "no:cacheprovider", *words],
            executable=f"{self.installed.folder}/env/bin/pytest",
            cwd=self.project,
            env=environment,
            user=self.uid if root else None,
            group=self.uid if root else None,
            extra_groups=[] if root else None,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def left(self) -> list[str]:
        """Processes and files that are still there."""
        found = [
            str(path) for path in (self.home / "tmp").iterdir() if "pytest-of" not in path.name
        ]
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.installed.folder) in line:
                found.append(line)
        return found


@pytest.fixture(params=["whoever runs this", "an ordinary user"])
def user(request: pytest.FixtureRequest, installed: Installed) -> Iterator[User]:
    uid = os.geteuid()
    if request.param == "an ordinary user":
        if uid != 0:
            pytest.skip("who runs this is an ordinary user")
        uid = NOBODY
    home = Path(tempfile.mkdtemp(prefix="home-"))
    try:
        (home / "tmp").mkdir()
        shutil.copytree(installed.sample, home / "shop")
        if os.geteuid() == 0:
            for path in (home, *home.rglob("*")):
                os.chown(path, uid, uid)
        yield User(installed, home, uid)
    finally:
        shutil.rmtree(home)


def test_the_sample_passes_alone_and_in_parallel(user: User) -> None:
    for words in (["-q"], ["-q", "-n", "2"]):
        done = user.pytest(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "6 passed" in done.stdout
    assert user.left() == []


def test_a_wrong_expectation_is_explained(user: User) -> None:
    test = user.project / "test_routes.py"
    right = 'answer.workload == "reviews-v2"'
    assert right in test.read_text()
    test.write_text(test.read_text().replace(right, 'answer.workload == "reviews-v1"'))
    done = user.pytest("-q", "-k", "testers")
    assert done.returncode == 1
    lines = (user.project / "k8s" / "routes.yaml").read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if text.strip() == "- name: testers")
    for part in (
        "GET http://reviews:9080/reviews/0 from productpage-v1",
        "=> 200 from reviews-v2",
        "route testers: header end-user exact jason",
        f"k8s/routes.yaml:{line} (VirtualService/reviews.default spec.http[0])",
        "cluster outbound|9080|v2|reviews.default.svc.cluster.local",
    ):
        assert part in done.stdout
    assert user.left() == []


def test_all_samples_come_with_the_wheel(installed: Installed) -> None:
    samples = installed.sample.parent
    here = ROOT / "src" / "meltemi_samples"
    wanted = {
        str(path.relative_to(here))
        for path in here.rglob("*")
        if path.suffix
        in (".yaml", ".py", ".sh", ".html", ".css", ".svg", ".sql", ".js", ".json", ".jwt", ".pem")
    }
    found = {str(path.relative_to(samples)) for path in samples.rglob("*")}
    assert wanted - found == set()
