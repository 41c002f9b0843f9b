"""What a pod's own DNS answers, and what it leaves to the resolvers."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from meltemi.agent.name_table import NameInfo, NameTable, answer, build_name_table, refuse
from meltemi.agent.resolv_conf import parse_resolv_conf

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")


@pytest.fixture(scope="module")
def table() -> NameTable:
    return build_name_table(
        {
            "reviews.shop.svc.cluster.local": NameInfo(("10.1.0.1", "fd00::1"), "reviews", "shop"),
            "cart.other.svc.cluster.local": NameInfo(("10.1.0.2",), "cart", "other"),
            "db-0.db.shop.svc.cluster.local": NameInfo(("10.2.0.7",), "db-0.db", "shop"),
            "api.example.com": NameInfo(("240.240.0.1",)),
            "many.example.com": NameInfo(tuple(f"10.3.0.{n}" for n in range(1, 201))),
            "*.wild.example.com": NameInfo(("240.240.0.2",)),
            "six.example.com": NameInfo(("2001:2::1",)),
        },
        "shop",
        SEARCH,
    )


def ask(
    table: NameTable,
    name: str,
    kind: str = "A",
    *,
    stream: bool = False,
    **options: int,
) -> dns.message.Message | None:
    """The parsed answer, or None when the question is not for the table."""
    query = dns.message.make_query(name, kind, **options)
    found = answer(table, query.to_wire(), stream=stream)
    if found is None:
        return None
    message = dns.message.from_wire(found)
    assert message.id == query.id
    assert message.question == query.question
    return message


def addresses(message: dns.message.Message | None) -> list[str]:
    assert message is not None
    return [
        str(item)
        for rrset in message.answer
        for item in rrset
        if rrset.rdtype != dns.rdatatype.CNAME
    ]


@pytest.mark.parametrize(
    "name",
    [
        "reviews",
        "reviews.shop",
        "reviews.shop.svc",
        "reviews.shop.svc.cluster.local",
        "REVIEWS.Shop.svc.cluster.LOCAL",
    ],
)
def test_a_service_is_found_by_each_form_of_its_name(table: NameTable, name: str) -> None:
    assert addresses(ask(table, name)) == ["10.1.0.1"]
    assert addresses(ask(table, name, "AAAA")) == ["fd00::1"]


def test_the_bare_name_belongs_to_the_own_namespace(table: NameTable) -> None:
    assert ask(table, "cart") is None
    assert addresses(ask(table, "cart.other")) == ["10.1.0.2"]


def test_pods_of_a_headless_service_have_names(table: NameTable) -> None:
    assert addresses(ask(table, "db-0.db")) == ["10.2.0.7"]


def test_the_question_comes_back_as_it_was_written(table: NameTable) -> None:
    message = ask(table, "Api.EXAMPLE.com")
    assert message is not None
    assert message.question[0].name.to_text() == "Api.EXAMPLE.com."


@pytest.mark.parametrize(("name", "kind"), [("api.example.com", "AAAA"), ("six.example.com", "A")])
def test_the_missing_family_is_empty_and_no_error(table: NameTable, name: str, kind: str) -> None:
    message = ask(table, name, kind)
    assert message is not None
    assert (message.rcode(), message.answer) == (dns.rcode.NOERROR, [])


def test_a_wildcard_covers_every_name_below_it(table: NameTable) -> None:
    assert addresses(ask(table, "a.wild.example.com")) == ["240.240.0.2"]
    assert addresses(ask(table, "a.b.wild.example.com")) == ["240.240.0.2"]
    assert ask(table, "wild.example.com") is None


def test_a_name_that_the_search_list_made_longer_is_an_alias(table: NameTable) -> None:
    message = ask(table, "api.example.com.shop.svc.cluster.local")
    assert message is not None
    assert message.answer[0].to_text().endswith("IN CNAME api.example.com.")
    assert addresses(message) == ["240.240.0.1"]


@pytest.mark.parametrize("kind", ["MX", "TXT", "SRV", "HTTPS", "CNAME", "ANY"])
def test_other_types_are_for_the_resolvers(table: NameTable, kind: str) -> None:
    assert ask(table, "api.example.com", kind) is None


def test_unknown_names_are_for_the_resolvers(table: NameTable) -> None:
    assert ask(table, "unknown.example.com") is None


def test_addresses_take_turns(table: NameTable) -> None:
    """A client that takes the first of 200 gets another one, sooner or later (50 tries: 1 - 200**-49)."""
    first = {addresses(ask(table, "many.example.com", stream=True))[0] for _ in range(50)}
    assert len(first) > 1


def test_what_does_not_fit_a_datagram_is_truncated(table: NameTable) -> None:
    """200 addresses need 3,200 bytes: more than plain DNS takes, less than this client's EDNS does."""
    plain = ask(table, "many.example.com")
    assert plain is not None
    assert plain.flags & dns.flags.TC
    roomy = ask(table, "many.example.com", use_edns=0, payload=4096)
    assert len(addresses(roomy)) == 200
    assert len(addresses(ask(table, "many.example.com", stream=True))) == 200


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 5, b"\xff" * 40])
def test_garbage_is_not_answered_here(table: NameTable, garbage: bytes) -> None:
    assert answer(table, garbage) is None


def test_a_question_that_nobody_answers_is_refused() -> None:
    query = dns.message.make_query("x.example.com", "A")
    refused = refuse(query.to_wire())
    assert refused is not None
    assert dns.message.from_wire(refused).rcode() == dns.rcode.SERVFAIL
    assert refuse(b"\x00") is None


def test_resolv_conf() -> None:
    text = "# x\nnameserver 10.96.0.10\nsearch a.example b.example\nnameserver fd00::a\noptions ndots:5\n"
    assert parse_resolv_conf(text) == (("10.96.0.10", "fd00::a"), ("a.example", "b.example"))
    assert parse_resolv_conf("") == ((), ())
