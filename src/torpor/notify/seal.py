"""Secrets at rest: AES-256-GCM under a key that lies in a file of the home, not in the database.

    v1.<base64url of nonce (12 bytes) and ciphertext>          associated data: what the text belongs to

Whoever has a copy of the records alone reads nothing; what is moved to another row does not open there. Several servers on one database share the file.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from torpor.durable import files
from torpor.model.errors import Corrupt, NoPermission

FILE = "seal.key"
_BYTES = 32
_NONCE = 12
_VERSION = "v1."


class KeySealer:
    """See ports.notify.Sealer."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)

    def seal(self, text: str, about: str) -> str:
        nonce = secrets.token_bytes(_NONCE)
        return _VERSION + base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, text.encode(), about.encode())).decode()

    def unseal(self, sealed: str, about: str) -> str:
        refused = Corrupt("A sealed value does not open: it was changed, or sealed with another key.", mend=f"Bring back the {FILE} it was sealed with.")
        if not sealed.startswith(_VERSION):
            raise refused
        try:
            held = base64.b64decode(sealed.removeprefix(_VERSION), altchars=b"-_", validate=True)
            return self._cipher.decrypt(held[:_NONCE], held[_NONCE:], about.encode()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise refused from None

    def derive(self, purpose: str) -> bytes:
        return HKDF(hashes.SHA256(), _BYTES, salt=None, info=b"torpor " + purpose.encode()).derive(self._key)


def random_sealer() -> KeySealer:
    """For records that do not outlive the process."""
    return KeySealer(secrets.token_bytes(_BYTES))


def sealer_of(home: Path) -> KeySealer:
    """The home's own, whose key is made when it is not there yet. Raises NoPermission (others may read the file), Corrupt (it holds no key), NoSpace."""
    path = home / FILE
    with files.disk_errors(f"reading {path}"):
        if not path.exists():
            _make(path)
        mode = path.stat().st_mode
        text = path.read_bytes()
    if mode & 0o077:
        raise NoPermission(f"{path} can be read by others.", mend=f"chmod 600 {path}")
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != _BYTES:
        raise Corrupt(f"{path} holds no key.", mend="Bring back the file from a copy; with a new one, channels must be set up again.")
    return KeySealer(key)


def _make(path: Path) -> None:
    """Whole or not at all, also when two processes make it at once: the first one's stays."""
    fresh = path.with_name(f"{FILE}.{secrets.token_hex(8)}.new")
    files.write_new(fresh, secrets.token_hex(_BYTES).encode() + b"\n", 0o600)
    try:
        files.sync(fresh)
        os.link(fresh, path)
    except FileExistsError:
        return
    finally:
        fresh.unlink()
    files.sync(path.parent)
