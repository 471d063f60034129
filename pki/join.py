"""The join protocol, without sockets: frames and whose turn it is (port 2377, ALPN ``swarm-join/1``).

A frame is a 4-byte big-endian length and a protobuf message, ``JoinRequest`` from the node, ``JoinResponse`` from the
manager. A connection carries at most one question for the root and one for a certificate, in this order, each
answered before the next. The rest is a breach of protocol, and the end of the connection.

Between the two the node makes sure that the connection is with a manager by that root (``pki.join_client``).
"""

from __future__ import annotations

import enum

from google.protobuf.message import DecodeError, Message

from pki.errors import FrameError
from proto.ca_pb2 import JoinRequest, JoinResponse

REQUEST_SIZE_BYTES_MAX = 16 * 1024
"""A request holds a CSR and a token: under 1 KiB."""

RESPONSE_SIZE_BYTES_MAX = 256 * 1024
"""A response holds certificates and the managers' addresses."""

_LENGTH_SIZE_BYTES = 4


def encode_frame(message: Message) -> bytes:
    """``message`` as it goes over the wire."""
    body = message.SerializeToString()
    return len(body).to_bytes(_LENGTH_SIZE_BYTES, "big") + body


class FrameDecoder:
    """Cuts a byte stream into frames; holds at most one incomplete frame and what was fed beyond it."""

    def __init__(self, size_bytes_max: int) -> None:
        self._size_bytes_max = size_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream, however they were cut.

        Returns:
            The bodies of the frames that are now complete.

        Raises:
            FrameError: a frame says that it is longer than allowed; known from its first four bytes.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= _LENGTH_SIZE_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_SIZE_BYTES], "big")
            if length > self._size_bytes_max:
                raise FrameError(f"join protocol: frame of {length} bytes, at most {self._size_bytes_max}")
            end = _LENGTH_SIZE_BYTES + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[_LENGTH_SIZE_BYTES:end]))
            del self._buffer[:end]
        return frames

    def feed_eof(self) -> None:
        """Raises:
        FrameError: the stream ended inside a frame.
        """
        if self._buffer:
            raise FrameError("join protocol: connection closed inside a message")


class _Turn(enum.Enum):
    """What a server connection may still be asked."""

    ROOT_OR_CERTIFICATE = enum.auto()
    CERTIFICATE = enum.auto()
    NOTHING = enum.auto()


_NEXT_TURN: dict[tuple[_Turn, str], _Turn] = {
    (_Turn.ROOT_OR_CERTIFICATE, "get_root_ca_certificate"): _Turn.CERTIFICATE,
    (_Turn.ROOT_OR_CERTIFICATE, "issue_node_certificate"): _Turn.NOTHING,
    (_Turn.CERTIFICATE, "issue_node_certificate"): _Turn.NOTHING,
}


class JoinServerProtocol:
    """A manager's side of one connection."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder(REQUEST_SIZE_BYTES_MAX)
        self._turn = _Turn.ROOT_OR_CERTIFICATE

    @property
    def done(self) -> bool:
        """Nothing more can be asked: answer and close."""
        return self._turn is _Turn.NOTHING

    def receive(self, data: bytes) -> list[JoinRequest]:
        """Take bytes from the node.

        Returns:
            Requests to be answered, in order.

        Raises:
            FrameError: too long, not a request, or out of turn.
        """
        return [self._request(frame) for frame in self._decoder.feed(data)]

    def receive_eof(self) -> None:
        """Raises:
        FrameError: the node hung up inside a request.
        """
        self._decoder.feed_eof()

    def _request(self, frame: bytes) -> JoinRequest:
        try:
            request = JoinRequest.FromString(frame)
        except DecodeError as error:
            raise FrameError("join protocol: not a request") from error
        kind = request.WhichOneof("request")
        turn = _NEXT_TURN.get((self._turn, kind or ""))
        if turn is None:
            raise FrameError(f"join protocol: request {kind or 'unknown'} out of turn")
        self._turn = turn
        return request


class JoinClientProtocol:
    """The node's side of one question."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder(RESPONSE_SIZE_BYTES_MAX)

    def receive(self, data: bytes) -> JoinResponse | None:
        """Take bytes from the manager.

        Returns:
            The answer once it is complete.

        Raises:
            FrameError: too long, not a response, or more than one.
        """
        frames = self._decoder.feed(data)
        if not frames:
            return None
        if len(frames) > 1:
            raise FrameError("join protocol: more answers than questions")
        try:
            response = JoinResponse.FromString(frames[0])
        except DecodeError as error:
            raise FrameError("join protocol: not a response") from error
        if response.WhichOneof("response") is None:
            raise FrameError("join protocol: empty response")
        return response
