"""gRPC's status codes by number and by the name Go gives them, which scripts of Docker's users match on."""

from __future__ import annotations

import grpc

CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
"""For answers that travel without gRPC."""

_GO_NAMES: dict[grpc.StatusCode, str] = {
    code: "".join(part.capitalize() for part in code.name.split("_")) for code in grpc.StatusCode
} | {grpc.StatusCode.CANCELLED: "Canceled", grpc.StatusCode.OK: "OK"}


def go_text(code: grpc.StatusCode, description: str) -> str:
    """``rpc error: code = FailedPrecondition desc = ...`` (grpc-go ``internal/status``)."""
    return f"rpc error: code = {_GO_NAMES[code]} desc = {description}"
