"""``docs/compatibility.md`` is what the code and the tests say, and leaves nothing out."""

from __future__ import annotations

import pytest

from compatibility.document import document, rows_of
from compatibility.marks import TESTS, Mark, all_marks, marks_of
from conftest import Golden
from meltemi.config.api_fields import API, fields_of, names_field, names_part
from meltemi.config.limits import LIMITS

PAGE = TESTS.parent / "docs" / "compatibility.md"


def test_the_page_is_fresh(golden: Golden) -> None:
    """``make docs`` writes it."""
    text = document(all_marks())
    assert golden.update or PAGE.read_text() == text, (
        "run make docs, look at what changed, commit it"
    )
    golden.check(PAGE, text)


def test_every_mark_names_a_field() -> None:
    """A mark with a slip of the pen would leave its field without a test, silently."""
    wrong = [
        f"{mark.test}:{mark.line} {mark.field}"
        for mark in all_marks()
        if not names_field(mark.field)
    ]
    assert not wrong


def test_every_limit_names_a_field() -> None:
    """A limit of a field that is gone, or misspelt, would never be reported."""
    assert [path for path in LIMITS if not names_part(path)] == []


@pytest.mark.parametrize("kind", API)
def test_every_field_is_accounted_for(kind: str) -> None:
    """One row for each field of the schema, and no two rows for one."""
    paths = [row.field.path for row in rows_of(kind, [])]
    assert {field.path for field in fields_of(kind)} <= set(paths)
    assert len(paths) == len(set(paths))


def test_marks_are_found_wherever_pytest_takes_them() -> None:
    source = """
import pytest
pytestmark = [pytest.mark.envoy, pytest.mark.covers("Sidecar.egress.hosts")]

@pytest.mark.covers("Gateway.selector", "Gateway.servers.bind")
class TestOne:
    @pytest.mark.parametrize("mode", [pytest.param("a", marks=pytest.mark.covers("Sidecar.egress.bind"))])
    def test_two(self, mode): ...
"""
    assert {(mark.field, mark.test) for mark in marks_of(source, "x.py")} == {
        ("Sidecar.egress.hosts", "x.py"),
        ("Gateway.selector", "x.py::TestOne"),
        ("Gateway.servers.bind", "x.py::TestOne"),
        ("Sidecar.egress.bind", "x.py::TestOne::test_two"),
    }


def test_a_mark_must_be_readable_without_running() -> None:
    with pytest.raises(ValueError, match="as strings"):
        list(marks_of("import pytest\n@pytest.mark.covers(NAME)\ndef test_x(): ...\n", "x.py"))


def test_states() -> None:
    """What a mark does to the row of its field, of a value of it, and of the same struct elsewhere."""
    marks = [
        Mark("DestinationRule.subsets.trafficPolicy.connectionPool.tcp.maxConnections", "a.py", 1),
        Mark("DestinationRule.trafficPolicy.tls.mode=SIMPLE", "b.py", 1),
    ]
    rows = {row.field.path: row for row in rows_of("DestinationRule", marks)}
    limited = rows["DestinationRule.trafficPolicy.connectionPool.tcp.maxConnections"]
    assert (limited.state, limited.tests) == ("works", ["a.py"])
    assert rows["DestinationRule.subsets.trafficPolicy"].state == "works"
    assert rows["DestinationRule.trafficPolicy.tls.mode"].tests == ["b.py"]
    assert rows["DestinationRule.trafficPolicy.tls.sni"].state == "no test yet"
    faults = {row.field.path: row for row in rows_of("VirtualService", [])}
    assert faults["VirtualService.http.fault.abort.http2Error"].state == "refused"
