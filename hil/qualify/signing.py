"""Signatures by ``ssh-keygen -Y`` (OpenSSH 8.1 and later; ssh-keygen(1)).

A signature is made with a private key file, or through ssh-agent(1) with the ``.pub`` file of
a key that the agent holds.  Whose key it was is told by a file of *allowed signers*, a line
each: ``anna@example.org namespaces="hil-qualification" ssh-ed25519 AAAA…``.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hil.deadline import Deadline
from hil.errors import InventoryError, LabError
from hil.reporting.text import one_line

#: What a signature is for: one made for something else is not accepted.
NAMESPACE = "hil-qualification"

_INSTALL = "apt-get install openssh-client"


@dataclass(frozen=True, slots=True)
class Signature:
    """What became of the check of a signature."""

    good: bool
    """Whether it is a signature of this very file."""
    signer: str
    """Who signed, as the file of allowed signers calls them; empty: nobody says."""
    text: str


def sign(file: Path, key: Path) -> Path:
    """Sign ``file``; the signature lies beside it, with ``.sig`` at its end.

    Raises:
        InventoryError: the key is missing, no key, or locked by a passphrase.
        LabError: ssh-keygen is missing or failed.
    """
    if not key.is_file():
        raise InventoryError(
            f"the key {key} does not exist", hint="ssh-keygen -t ed25519 makes one"
        )
    done = _run(["sign", "-f", str(key), "-n", NAMESPACE, str(file)])
    if done.returncode == 0:
        return file.with_name(f"{file.name}.sig")
    seen, plain = _words(done), str(key).removesuffix(".pub")
    if "passphrase" in seen:
        raise InventoryError(
            f"the key {key} is locked by a passphrase, and nobody is asked for it here",
            seen=seen,
            hint=f"ssh-add {plain}, then sign with {plain}.pub",
        )
    raise InventoryError(
        f"nothing could be signed with {key}",
        seen=seen,
        hint="name a private key, or the .pub file of a key that ssh-agent holds",
    )


def check(file: Path, signature: Path, allowed_signers: Path | None) -> Signature:
    """Whether ``signature`` is one of ``file``, and by whom.

    Raises:
        InventoryError: the file of allowed signers is missing.
        LabError: ssh-keygen is missing or hangs.
    """
    data = file.read_bytes()
    common = ["-n", NAMESPACE, "-s", str(signature)]
    done = _run(["check-novalidate", *common], data)
    if done.returncode != 0:
        return Signature(False, "", f"the signature is not one of this verdict: {_words(done)}")
    found = re.search(r"with (\S+ key \S+)", done.stdout.decode("utf-8", "replace"))
    key = one_line(found[1]) if found else "an unknown key"
    if allowed_signers is None:
        return Signature(True, "", f"signed with {key}; whose it is, --allowed-signers tells")
    if not allowed_signers.is_file():
        raise InventoryError(f"the file of allowed signers {allowed_signers} does not exist")
    signers = str(allowed_signers)
    who = _run(["find-principals", "-s", str(signature), "-f", signers])
    for name in who.stdout.decode("utf-8", "replace").splitlines():
        if _run(["verify", "-f", signers, "-I", name, *common], data).returncode == 0:
            return Signature(True, one_line(name), f"signed by {one_line(name)} with {key}")
    return Signature(False, "", f"signed with {key}, which {signers} does not allow")


def _run(words: list[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    deadline = Deadline(60, "ssh-keygen")
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "SSH_ASKPASS")}
    environment["SSH_ASKPASS_REQUIRE"] = "never"
    try:
        return subprocess.run(
            ["ssh-keygen", "-Y", *words],
            input=data,
            capture_output=True,
            timeout=deadline.remaining,
            check=False,
            env=environment,
            # Away from the terminal, where it would ask for a passphrase.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise LabError("there is no ssh-keygen on PATH", hint=_INSTALL) from None
    except subprocess.TimeoutExpired:
        raise deadline.exceeded() from None


def _words(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stderr or done.stdout).decode("utf-8", "replace")
    # It asks, even where nobody can answer.
    text = re.sub(r"^Enter passphrase[^:]*: ", "", text)
    return one_line(text, 500) or f"status {done.returncode}"
