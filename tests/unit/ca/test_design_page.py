"""docs/design/pki.md says what the code does: figures and names are looked up in both."""

from __future__ import annotations

from pathlib import Path

import pytest

from manager.authorization import REFUSAL_DELAY_S, REFUSALS_BURST, REFUSALS_RATE_S, ROLES_BY_METHOD
from manager.ca import service
from manager.control.rpc import ANSWER_SIZE_BYTES_MAX
from manager.listener import HANDSHAKE_TIMEOUT_S, Limits
from pki import certificates, encryption, join, node_certificate, renewal
from pki.certificates import Role
from pki.grpc_credentials import CONNECTIONS_MAX, REQUEST_SIZE_BYTES_MAX, STREAMS_MAX

PAGE = (Path(__file__).parents[3] / "docs/design/pki.md").read_text()
LIMITS = Limits()


@pytest.mark.parametrize(
    "claim",
    [
        f"| time of a handshake | {HANDSHAKE_TIMEOUT_S:.0f} s |",
        f"| {service.REQUEST_TIMEOUT_S:.0f} s / {service.JOIN_CONNECTION_TIMEOUT_S:.0f} s |",
        f"| decisions under way | {service.JOINS_MAX} |",
        f"| {LIMITS.strangers_max} / {LIMITS.strangers_per_address_max} |",
        f"| {LIMITS.burst_per_address} at once, then {LIMITS.rate_per_address_s:.0f} a second |",
        f"| {LIMITS.burst} at once, then {LIMITS.rate_s:.0f} a second |",
        f"at most {CONNECTIONS_MAX} connections, each with {STREAMS_MAX} calls at once",
        f"messages up to {REQUEST_SIZE_BYTES_MAX // 2**20} MiB",
        f"(answers between managers may have {ANSWER_SIZE_BYTES_MAX // 2**20} MiB)",
        f"{REFUSALS_BURST} at once and {REFUSALS_RATE_S:.0f} a second, each one more waits {REFUSAL_DELAY_S:.0f} s",
        f"UNAVAILABLE after {service.DECISION_TIMEOUT_S:.0f} s",
        f"requests up to {join.REQUEST_SIZE_BYTES_MAX} bytes, answers up to {join.RESPONSE_SIZE_BYTES_MAX}",
        f"more than {certificates.CSR_SIZE_BYTES_MAX} bytes is refused",
        f"random {renewal.EARLIEST_FRACTION * 100:.0f} to {renewal.LATEST_FRACTION * 100:.0f} %",
        f"| `{node_certificate.KEY_FILE}` | 0600 |",
        f"| `{node_certificate.ROOT_FILE}` | 0644 |",
        f"| `{node_certificate.CERTIFICATE_FILE}` | 0644 |",
        f"| `{encryption.DATA_KEY_FILE}` | 0600 |",
    ],
)
def test_the_page_gives_the_figure_that_is_in_force(claim: str) -> None:
    assert claim in PAGE


def test_the_page_names_what_workers_may_call() -> None:
    open_to_workers = {method for method, roles in ROLES_BY_METHOD.items() if Role.WORKER in roles}
    dispatcher = {method for method in ROLES_BY_METHOD if method.startswith("/swarm.v1.Dispatcher/")}
    assert open_to_workers == dispatcher | {"/swarm.v1.NodeCA/RenewCertificate"}
    assert "Workers may call `Dispatcher` and `NodeCA.RenewCertificate`." in PAGE
