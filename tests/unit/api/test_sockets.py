"""Where the API listens, and what it refuses."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from api.sockets import ListenError, listen


def test_unix_socket_is_for_its_group_and_goes_with_its_listener(tmp_path: Path) -> None:
    path = tmp_path / "run" / "engine.sock"
    [listener] = listen(f"unix://{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755  # or the group would not reach it
    listener.close()
    assert not path.exists()
    listener.close()


def test_stale_socket_is_replaced_and_a_living_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    [listener] = listen(f"unix://{path}")
    with pytest.raises(ListenError, match=f"unix://{path}: another daemon answers on this socket"):
        listen(f"unix://{path}")
    assert path.exists()
    listener.close()


def test_closing_leaves_a_socket_that_another_daemon_put_there(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    [first] = listen(f"unix://{path}")
    path.rename(tmp_path / "moved")
    [second] = listen(f"unix://{path}")
    first.close()
    assert path.exists()
    second.close()


def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    path.write_text("mine")
    with pytest.raises(ListenError, match="is no socket"):
        listen(f"unix://{path}")
    assert path.read_text() == "mine"


def test_tcp_is_served_on_loopback_only() -> None:
    listeners = listen("tcp://127.0.0.1:0")
    assert [one.sock.getsockname()[0] for one in listeners] == ["127.0.0.1"]
    for one in listeners:
        one.close()
    for host in ("tcp://0.0.0.0:2375", "tcp://192.0.2.1:2375", "tcp://[::]:2375"):
        with pytest.raises(ListenError, match="is no loopback address"):
            listen(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "/run/x.sock",
        "unix://relative",
        "tcp://127.0.0.1",
        "tcp://:1",
        "fd://",
        "tcp://127.0.0.1:70000",
        "unix:///" + "x" * 120,
    ],
)
def test_urls_that_make_no_sense_are_refused(host: str) -> None:
    with pytest.raises(ListenError):
        listen(host)
