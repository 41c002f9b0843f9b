"""The pytest plugin (entry point ``meltemi``): fixture ``mesh``, and explanations under failing tests.

Imports nothing of the mesh until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from meltemi.testing.mesh import Mesh, Session

_EXPLAINED = 3


@pytest.fixture(scope="session")
def meltemi_session() -> Iterator[Session]:
    """What all tests of this process share: the proxies. Ends with the session."""
    from meltemi.testing.mesh import Session

    session = Session()
    try:
        yield session
    finally:
        session.close()


@pytest.fixture
def mesh(meltemi_session: Session, request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """An empty mesh: ``mesh.apply("k8s/")``, ``mesh.client("productpage-v1").get("http://reviews:9080/reviews/0")``."""
    from meltemi.testing.mesh import Mesh

    made = Mesh(meltemi_session, request.path.parent)
    try:
        yield made
    finally:
        made.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say under a failing test which way its last requests took, and which lines of YAML decided it."""
    report = yield
    made = getattr(item, "funcargs", {}).get("mesh")
    if call.when != "call" or not report.failed or made is None:
        return report
    history = getattr(made, "history", None)
    if history:
        report.sections.append(("meltemi: the way of the last requests", made.explain(_EXPLAINED)))
    return report
