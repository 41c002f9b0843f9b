"""Options and fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--update-golden`` rewrites the expected outputs instead of comparing."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/**/*.out.*")


class Golden:
    """Compares text with a file, or writes it."""

    def __init__(self, update: bool) -> None:
        self.update = update

    def check(self, path: Path, text: str) -> None:
        """Fail when ``text`` differs from the file's content."""
        if self.update:
            path.write_text(text)
            return
        assert path.exists(), f"{path} is missing: run pytest --update-golden and review it"
        assert path.read_text() == text


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden files."""
    return Golden(bool(request.config.getoption("--update-golden")))
