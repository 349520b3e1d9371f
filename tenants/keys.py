"""API key secrets, pure: generate, check the shape, digest. No database, no Django.

A key reads `sk-cf-<public id>-<secret><checksum>`: 12 + 32 + 6 characters of base 62. The checksum
(CRC-32 of what stands before it) lets a typo be refused without a query, as GitHub's tokens do.
Stored is HMAC-SHA256 under the server's pepper: the secret has 190 random bits, so a slow hash would
only slow the path down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib

PREFIX = "sk-cf-"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
PUBLIC_ID_LENGTH = 12
SECRET_LENGTH = 32
CHECKSUM_LENGTH = 6
_SHAPE = re.compile(r"sk-cf-([0-9A-Za-z]{12})-([0-9A-Za-z]{32})([0-9A-Za-z]{6})", re.ASCII)


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(text: str) -> str:
    """CHECKSUM_LENGTH characters. Two at a time, since every request pays for this."""
    rest, last = divmod(zlib.crc32(text.encode()), len(PAIRS))
    first, middle = divmod(rest, len(PAIRS))
    return PAIRS[first] + PAIRS[middle] + PAIRS[last]


def generate_public_id() -> str:
    return _random(PUBLIC_ID_LENGTH)


def generate_secret(public_id: str) -> str:
    """The whole text that a client sends as its key, for the key with this public id."""
    body = f"{PREFIX}{public_id}-{_random(SECRET_LENGTH)}"
    return body + _checksum(body)


def public_id_of(text: str) -> str | None:
    """The public id in a well-formed key; None for any other text, a typo included."""
    match = _SHAPE.fullmatch(text)
    if match is None or not hmac.compare_digest(_checksum(text[:-CHECKSUM_LENGTH]), match[3]):
        return None
    return match[1]


def digest(text: str, pepper: bytes) -> bytes:
    """What is stored of a secret: 32 bytes."""
    return hmac.digest(pepper, text.encode("utf-8", "surrogateescape"), hashlib.sha256)


def masked(text: str) -> str:
    """For error messages: enough to recognise the key by, never the key."""
    return f"{text[:6]}***{text[-4:]}" if len(text) >= 16 else "***"
