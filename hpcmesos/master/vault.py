"""Users' secrets at rest: sealed by a key that lies with the cluster's authority, never in the database.

AES-256-GCM; owner and name are authenticated with the value, so that no row can be passed off as another.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hpcmesos.errors import StateError

_NONCE = 12  # bytes (NIST SP 800-38D)


def ensure_key(state: Path) -> None:
    """Makes the key in ``state/ca`` with the authority; masters that are added get a copy of that directory."""
    path = _path(state)
    if path.exists():
        return
    made = path.with_suffix(".new")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(AESGCM.generate_key(256))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(made, path)  # never over another's
    except FileExistsError:
        pass
    finally:
        made.unlink()


def seal(state: Path, owner: str, name: str, value: bytes) -> bytes:
    """Raises StateError: this master has no key."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(_key(state)).encrypt(nonce, value, _context(owner, name))


def unseal(state: Path, owner: str, name: str, sealed: bytes) -> bytes:
    """Raises StateError: this master has no key, or another one than the master that sealed it."""
    try:
        return AESGCM(_key(state)).decrypt(sealed[:_NONCE], sealed[_NONCE:], _context(owner, name))
    except InvalidTag:
        raise StateError(
            f"secret {name} of {owner} was sealed with another key: all masters need the same {_path(state)}"
        ) from None


def _path(state: Path) -> Path:
    return state / "ca" / "secrets.key"


def _key(state: Path) -> bytes:
    try:
        return _path(state).read_bytes()
    except OSError as error:
        raise StateError(f"cannot read {_path(state)}: {error.strerror}") from error


def _context(owner: str, name: str) -> bytes:
    return f"{owner}\0{name}".encode()
