from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
import pytest

from hil.deadline import Deadline
from hil.transport.base import Transport
from hil.transport.local import LocalTransport
from hil.transport.ssh import SshTransport
from tests.transport.server import SshServer


def soon(seconds: float = 20.0, what: str = "a test's step") -> Deadline:
    return Deadline(seconds, what)


def client_key(server: SshServer) -> paramiko.PKey:
    text = server.client_key.export_private_key().decode()
    return paramiko.Ed25519Key.from_private_key(io.StringIO(text))


def host_key_line(server: SshServer) -> str:
    return " ".join(server.host_key.export_public_key().decode().split()[:2])


Connect = Callable[..., SshTransport]


@pytest.fixture
def server() -> Iterator[SshServer]:
    server = SshServer().start()
    yield server
    server.close()


@pytest.fixture
def connect(server: SshServer) -> Iterator[Connect]:
    opened: list[SshTransport] = []

    def make(**changes: Any) -> SshTransport:
        options: dict[str, Any] = {
            "port": server.port,
            "key": client_key(server),
            "host_key": host_key_line(server),
            "deadline": soon(),
        }
        transport = SshTransport.connect("lab1", "127.0.0.1", **(options | changes))
        opened.append(transport)
        return transport

    yield make
    for transport in opened:
        transport.close()


@pytest.fixture(params=["local", "ssh"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    if request.param == "local":
        yield LocalTransport("lab1")
        return
    make: Connect = request.getfixturevalue("connect")
    yield make()
