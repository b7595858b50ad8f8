"""SSH keys for machines that are made and gone within one run."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paramiko


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair.  ``private`` is in OpenSSH's format, without passphrase."""

    private: str
    public: str
    """One line, ``ssh-ed25519 AAAA…``."""

    def load(self) -> paramiko.PKey:
        """The private key as paramiko takes it."""
        import paramiko

        return paramiko.Ed25519Key.from_private_key(io.StringIO(self.private))


def generate() -> KeyPair:
    """A new key pair."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return KeyPair(private.decode("ascii"), public.decode("ascii"))


@functools.cache
def of_this_run() -> KeyPair:
    """The pair by which this process logs in to the guests it makes."""
    return generate()
