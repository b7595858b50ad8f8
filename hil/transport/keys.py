"""SSH keys for machines that are made and gone within one run.

ECDSA on P-256, which OpenSSH leaves to libcrypto's assembler; Ed25519 and X25519 it computes in
portable C (ed25519.c, smult_curve25519_ref.c), which an emulated processor is slow at.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import paramiko

#: The key exchange of that kind (RFC 5656), for :meth:`hil.transport.ssh.SshTransport.connect`.
KEY_EXCHANGE = "ecdh-sha2-nistp256"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ECDSA key pair.  ``private`` is in OpenSSH's format, without passphrase."""

    private: str
    public: str
    """One line, ``ecdsa-sha2-nistp256 AAAA…``."""

    def load(self) -> paramiko.PKey:
        """The private key as paramiko takes it."""
        import paramiko

        return paramiko.ECDSAKey.from_private_key(io.StringIO(self.private))


def generate() -> KeyPair:
    """A new key pair."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
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
