"""The join protocol without sockets: cut anywhere, too long, out of turn."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.errors import FrameError, InvalidTokenError
from pki.join import REQUEST_SIZE_BYTES_MAX, FrameDecoder, JoinClientProtocol, JoinServerProtocol, encode_frame
from pki.join_client import join_cluster
from proto.ca_pb2 import (
    GetRootCACertificateRequest,
    GetRootCACertificateResponse,
    IssueNodeCertificateRequest,
    JoinRequest,
    JoinResponse,
)

GET_ROOT = JoinRequest(get_root_ca_certificate=GetRootCACertificateRequest())
ISSUE = JoinRequest(issue_node_certificate=IssueNodeCertificateRequest(csr_pem=b"csr", token="token"))


@given(bodies=st.lists(st.binary(max_size=300), max_size=5), cuts=st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_whole_however_the_stream_is_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    decoder, out, position, turn = FrameDecoder(300), [], 0, 0
    while position < len(stream):
        step = cuts[turn % len(cuts)]
        out += decoder.feed(stream[position : position + step])
        position, turn = position + step, turn + 1
    decoder.feed_eof()
    assert out == bodies


def test_a_huge_frame_is_refused_by_its_length_alone() -> None:
    with pytest.raises(FrameError, match="frame of 4294967295 bytes"):
        FrameDecoder(REQUEST_SIZE_BYTES_MAX).feed(b"\xff\xff\xff\xff")


def test_a_stream_that_ends_inside_a_frame_is_an_error() -> None:
    server = JoinServerProtocol()
    assert server.receive(encode_frame(ISSUE)[:-1]) == []
    with pytest.raises(FrameError, match="closed inside a message"):
        server.receive_eof()


def test_root_then_certificate_is_the_longest_conversation() -> None:
    server = JoinServerProtocol()
    assert server.receive(encode_frame(GET_ROOT)) == [GET_ROOT]
    assert not server.done
    assert server.receive(encode_frame(ISSUE)) == [ISSUE]
    assert server.done


@pytest.mark.parametrize("requests", [[GET_ROOT, GET_ROOT], [ISSUE, ISSUE], [ISSUE, GET_ROOT], [JoinRequest()]])
def test_whoever_speaks_out_of_turn_is_cut_off(requests: list[JoinRequest]) -> None:
    with pytest.raises(FrameError, match="out of turn"):
        JoinServerProtocol().receive(b"".join(encode_frame(request) for request in requests))


@given(st.binary(max_size=400))
def test_a_server_fed_garbage_answers_by_type(data: bytes) -> None:
    server = JoinServerProtocol()
    with contextlib.suppress(FrameError):
        server.receive(data)
        server.receive_eof()


@given(st.binary(max_size=400))
def test_a_client_fed_garbage_answers_by_type(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        JoinClientProtocol().receive(data)


def test_a_client_takes_one_answer() -> None:
    answer = encode_frame(JoinResponse(get_root_ca_certificate=GetRootCACertificateResponse(root_ca_pem=b"pem")))
    client = JoinClientProtocol()
    assert client.receive(answer[:5]) is None
    response = client.receive(answer[5:])
    assert response is not None
    assert response.get_root_ca_certificate.root_ca_pem == b"pem"
    with pytest.raises(FrameError, match="more answers than questions"):
        JoinClientProtocol().receive(answer + answer)


async def test_a_token_that_is_none_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidTokenError):
        await join_cluster(["192.0.2.1"], "SWMTKN-1-x-y")
