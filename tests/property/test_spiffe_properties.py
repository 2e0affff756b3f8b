"""SPIFFE names over arbitrary text: one canonical form or a refusal, whatever facts a template is filled with."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.errors import FormatRefused, Refused
from cloister.protocol.spiffe import parse_spiffe_id, parse_trust_domain, spiffe_id
from cloister.protocol.svidextension import AttestationStatement, encode_statement, parse_statement
from cloister.trust.identity.csr import certified_key, parse_csr
from cloister.trust.identity.template import FACTS, AttestedFacts, check_template, fill_template
from identity_world import request, uris

DOMAINS = st.from_regex(r"[a-z0-9._-]{1,60}", fullmatch=True)
SEGMENTS = st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True).filter(lambda text: text not in (".", ".."))
NEAR_MISSES = st.text(alphabet="spiffe:/.-_%2eA@#?\x00é", max_size=60).map(lambda text: "spiffe://" + text)
# Written anew from SPIFFE-ID sections 2.1 to 2.3, not taken from the parser.
GRAMMAR = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|\Z))[a-zA-Z0-9._-]+)*")


@given(DOMAINS, st.lists(SEGMENTS, max_size=6))
def test_names_round_trip_and_are_uris(domain: str, segments: list[str]) -> None:
    name = spiffe_id(domain, *segments)
    assert parse_spiffe_id(str(name)) == name
    parts = urlsplit(str(name))
    assert (parts.scheme, parts.netloc, parts.path, parts.query, parts.fragment) == (
        "spiffe",
        domain,
        name.path,
        "",
        "",
    )


@given(st.text(max_size=80) | NEAR_MISSES)
@example("spiffe://example.org/a/../b")
@example("spiffe://example.org/a/")
@example("spiffe://example.org//a")
@example("spiffe://example.org/%2e%2e")
@example("spiffe://EXAMPLE.org/a")
@example("SPIFFE://example.org/a")
@example("spiffe://user@example.org/a")
@example("spiffe://example.org:443/a")
@example("spiffe://example.org/a?b")
@example("spiffe://example.org/a#b")
@example("spiffe:///a")
@example("spiffe://example.org/a\n")
@example("spiffe://example.org/" + "a" * 2028)
def test_exactly_the_grammar_is_accepted(text: str) -> None:
    if GRAMMAR.fullmatch(text) and len(text) <= 2048:
        assert str(parse_spiffe_id(text)) == text
    else:
        with pytest.raises(FormatRefused):
            parse_spiffe_id(text)


@pytest.mark.parametrize("text", ["", "a" * 256, "Example.org", "a/b", "a b", "exämple.org", "example.org\n"])
def test_trust_domains_that_are_none(text: str) -> None:
    with pytest.raises(FormatRefused):
        parse_trust_domain(text)


@given(
    st.lists(st.sampled_from([f"{{{fact}}}" for fact in FACTS]) | SEGMENTS, min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(FACTS), st.text(alphabet="a./%\x00-Z9", max_size=8)),
)
def test_a_filled_template_has_the_segments_it_was_written_with(parts: list[str], values: dict[str, str]) -> None:
    template = "/".join(parts)
    check_template(template, path="t")
    try:
        name = fill_template(template, AttestedFacts(values=values), trust_domain="example.org", tenant="t1")
    except FormatRefused:
        return
    assert len(name.segments) == 1 + len(parts) and name.segments[0] == "t1"
    assert parse_spiffe_id(str(name)) == name
    expected = [values[part[1:-1]] if part.startswith("{") else part for part in parts]
    assert list(name.segments[1:]) == expected


@given(st.text(max_size=40))
def test_templates_never_crash(template: str) -> None:
    try:
        check_template(template, path="t")
    except FormatRefused:
        return
    full = AttestedFacts(values=dict.fromkeys(FACTS, "x"))
    assert fill_template(template, full, trust_domain="example.org", tenant="default").path.startswith("/default/")


@given(st.binary(max_size=200))
def test_statements_never_crash_and_have_one_encoding(data: bytes) -> None:
    try:
        statement = parse_statement(data)
    except FormatRefused:
        return
    assert encode_statement(statement) == data


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), min_size=5, max_size=5))
def test_statements_round_trip(texts: list[str]) -> None:
    statement = AttestationStatement(
        level=texts[0], policy_digest=texts[1], contract_id=texts[2], init_data=texts[3], attestation=texts[4]
    )
    encoded = encode_statement(statement)
    assert parse_statement(encoded) == statement
    for cut in range(len(encoded)):
        with pytest.raises(FormatRefused):
            parse_statement(encoded[:cut])


def seed() -> bytes:
    """A request whose signature ends in a zero bit, so that it could declare one unused bit and still hold."""
    key = ec.generate_private_key(ec.SECP256R1())
    while (made := request(key, uris("spiffe://example.org/default/a")))[-1] & 1:
        pass
    return made


SEED = seed()
NAME = parse_spiffe_id("spiffe://example.org/default/a")


def read_csr(data: bytes) -> None:
    try:
        certified_key(parse_csr(data), NAME)
    except Refused:
        return
    assert data == SEED  # nobody else can sign with that key


@given(st.binary(max_size=300))
def test_certificate_requests_never_crash(data: bytes) -> None:
    read_csr(data)


def test_every_changed_byte_of_a_request_is_refused() -> None:
    read_csr(SEED)
    for place in range(len(SEED)):
        for change in (1, 2, 0x80, 0xFF):
            read_csr(SEED[:place] + bytes([SEED[place] ^ change]) + SEED[place + 1 :])
        read_csr(SEED[:place])
