"""Swarm IDs (W07) and join tokens (A1.16, A1.17)."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.certificates import Role
from pki.errors import InvalidTokenError
from pki.identifiers import is_id, new_id, to_base36
from pki.tokens import JoinTokens, new_token, parse_token, replace_secret

DIGEST = hashlib.sha256(b"a root").hexdigest()


@given(st.binary(min_size=17, max_size=17))
def test_an_id_has_25_characters_of_base_36_whatever_the_randomness(raw: bytes) -> None:
    assert is_id(new_id(lambda _: raw))


def test_ids_differ() -> None:
    assert len({new_id() for _ in range(100)}) == 100


@given(st.integers(min_value=0, max_value=2**256))
def test_base36_is_what_int_reads(number: int) -> None:
    text = to_base36(number)
    assert int(text, 36) == number
    assert text == "0" or not text.startswith("0")


@given(digest=st.binary(min_size=32, max_size=32), secret=st.binary(min_size=16, max_size=16))
def test_a_token_has_swarms_form_and_names_its_root(digest: bytes, secret: bytes) -> None:
    token = new_token(digest.hex(), lambda _: secret)
    assert re.fullmatch(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}", token)
    assert parse_token(token).root_digest == digest.hex()


def test_tokens_of_the_real_thing_are_understood() -> None:
    """From Docker's documentation and swarmkit's tests."""
    token = "SWMTKN-1-49nj1cmql0jkz5s954yi3oex3nedyz0fb0xx14ie39trti4wxv-8vxv8rssmk743ojnwacrr2e7c"
    assert parse_token(token).root_digest == f"{int('49nj1cmql0jkz5s954yi3oex3nedyz0fb0xx14ie39trti4wxv', 36):064x}"
    assert parse_token(token.replace("SWMTKN-1-", "SWMTKN-2-0-")).root_digest == parse_token(token).root_digest


def test_a_token_of_a_fips_cluster_is_refused_by_name() -> None:
    token = new_token(DIGEST).replace("SWMTKN-1-", "SWMTKN-2-1-")
    with pytest.raises(InvalidTokenError, match="node is not FIPS-enabled but cluster requires FIPS"):
        parse_token(token)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "invalidtoken",
        "SWMTKN-0-" + "0" * 50 + "-" + "0" * 25,
        "SWMTKN-2-" + "0" * 50 + "-" + "0" * 25,
        "SWMTKN-1-" + "0" * 50 + "-" + "0" * 24,
        "SWMTKN-1-" + "0" * 49 + "-" + "0" * 25,
        "SWMTKN-1-" + "Z" * 50 + "-" + "0" * 25,
        "SWMTKN-1-" + "z" * 50 + "-" + "0" * 25,  # more than 256 bits
        "SWMTKN-1-" + "0" * 50 + "-" + "z" * 25,  # more than 128 bits
        "SWMTKN-1-" + "\N{ARABIC-INDIC DIGIT ONE}" * 50 + "-" + "0" * 25,
        "SWMTKN-1-" + "0" * 50 + "-" + "0" * 25 + "\n",
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidTokenError, match="invalid join token"):
        parse_token(text)


@given(st.text(max_size=200))
def test_any_text_is_a_token_or_refused_by_type(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        parse_token(text)


def test_the_token_decides_the_role() -> None:
    tokens = JoinTokens.new(DIGEST)
    assert tokens.role_of(tokens.manager) is Role.MANAGER
    assert tokens.role_of(tokens.worker) is Role.WORKER
    assert tokens.role_of("") is None
    assert tokens.role_of("\udc80\N{SNOWMAN}") is None


def test_a_rotated_token_is_void_and_the_other_one_stays() -> None:
    tokens = JoinTokens.new(DIGEST)
    rotated = JoinTokens(worker=replace_secret(tokens.worker), manager=tokens.manager)
    assert rotated.role_of(tokens.worker) is None
    assert rotated.role_of(rotated.worker) is Role.WORKER
    assert rotated.role_of(tokens.manager) is Role.MANAGER
    assert parse_token(rotated.worker).root_digest == DIGEST


def test_tokens_do_not_show_in_text() -> None:
    tokens = JoinTokens.new(DIGEST)
    assert tokens.worker not in repr(tokens)
    assert tokens.worker not in repr(parse_token(tokens.worker))
