"""Where things live under COUNTERFOIL_HOME. Pure paths and settings: importing this starts nothing."""

from __future__ import annotations

import os
import secrets as random
from base64 import urlsafe_b64encode
from pathlib import Path


def secrets(home: Path) -> dict[str, str]:
    """The generated secrets, made on first use, readable by the owner only."""
    path = home / "secrets.env"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = [
            f"SECRET_KEY={random.token_urlsafe(48)}",
            f"KEY_PEPPER={random.token_urlsafe(48)}",
            f"ENCRYPTION_KEYS={urlsafe_b64encode(random.token_bytes(32)).decode()}",
        ]
        draft = path.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text("\n".join(lines) + "\n")
        try:
            os.link(draft, path)  # atomic, and the first of two starters wins
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
