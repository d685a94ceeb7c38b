"""The listener: taken, wrong or left over, before any model is loaded."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from embedding_service import server
from embedding_service.errors import BadConfiguration, PortInUse
from embedding_service.settings.gateway import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def refusal(**settings: Any) -> str:
    """Return the line with which listening is refused."""
    with pytest.raises(PortInUse) as caught:
        server.listen(Settings(**settings))
    message = str(caught.value)
    assert "\n" not in message
    assert "None" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a Unix socket may lie."""
    return tmp_path / "socket"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_free_port_is_taken(host: str) -> None:
    """Port 0 listens on any free port of the address, which connects."""
    (listener,) = server.listen(Settings(host=host, port=0))
    with listener, socket.create_connection(listener.getsockname()[:2]):
        assert listener.getsockname()[1] > 0


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_taken_port_is_told(taken: int) -> None:
    """A port in use is refused with address and port."""
    assert f"127.0.0.1 port {taken}" in refusal(port=taken)


def test_an_unknown_host_is_a_wrong_setting() -> None:
    """A host that is no address of this machine is told under the setting's name."""
    with pytest.raises(BadConfiguration, match=r"^host: 'no\.such\.host\.invalid'"):
        server.listen(Settings(host="no.such.host.invalid", allow_anonymous=True))


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    """A file or folder where the socket should be is refused and kept."""
    path.write_text("keep me", encoding="utf-8")
    assert str(path) in refusal(uds=path)
    assert path.read_text(encoding="utf-8") == "keep me"
    assert str(path.parent) in refusal(uds=path.parent)


def test_a_living_socket_is_left_alone(path: Path) -> None:
    """A socket on which another process listens is refused and goes on working."""
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as peer:
        other.bind(str(path))
        other.listen()
        assert str(path) in refusal(uds=path)
        peer.connect(str(path))


def test_a_dead_socket_is_replaced(path: Path) -> None:
    """Files of a killed gateway do not keep the next one from starting."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (listener,) = server.listen(Settings(uds=path))
    with listener, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))


@pytest.mark.parametrize("name", ["x" * 200, "x" * 300, "missing/folder"])
def test_a_path_that_cannot_be_made_is_told(tmp_path: Path, name: str) -> None:
    """A path that is too long, or in no folder, is refused with the reason."""
    assert name in refusal(uds=tmp_path / name)


def test_a_successors_socket_is_left_alone(path: Path) -> None:
    """An instance that ends removes its own socket's file, and never the one of its successor."""
    (old,) = server.listen(Settings(uds=path))
    path.unlink()  # as a successor does that finds it stale
    (new,) = server.listen(Settings(uds=path))
    server._remove_paths([old])
    old.close()
    assert path.is_socket()
    server._remove_paths([old])  # once it is closed, it has no path any more
    assert path.is_socket()
    server._remove_paths([new])
    assert not path.exists()
    new.close()
