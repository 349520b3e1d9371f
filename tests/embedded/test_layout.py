"""Where the embedded default keeps things, and its secrets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from gateway.embedded import layout
from gateway.embedded.trouble import Trouble


def test_secrets_are_made_once_and_are_the_owner_s_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = layout.secrets(home)
    assert layout.secrets(home) == made
    assert (home / "secrets.env").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    assert min(len(made["SECRET_KEY"]), len(made["KEY_PEPPER"])) >= 50
    Fernet(made["ENCRYPTION_KEYS"])
    assert [path.name for path in home.iterdir()] == ["secrets.env"]


def test_starters_at_the_same_time_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: layout.secrets(tmp_path / "home" / str(number % 2)), range(16)))
    assert len({tuple(secrets.items()) for secrets in made}) == 2


def test_a_home_that_cannot_be_used_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Trouble, match="COUNTERFOIL_HOME"):
        layout.secrets(tmp_path / "file" / "home")


def test_the_application_s_role_is_not_the_owner_s(tmp_path: Path) -> None:
    application, owner = layout.databases(tmp_path)["default"], layout.migration_database(tmp_path)
    assert application["USER"] != owner["USER"]
    assert {name: application[name] for name in ("NAME", "HOST")} == {name: owner[name] for name in ("NAME", "HOST")}


@pytest.mark.parametrize("length", [10, 200])
def test_socket_paths_fit_the_kernel_s_limit(length: int) -> None:
    home = Path("/srv") / ("x" * length)
    assert len(str(layout.sockets(home) / ".s.PGSQL.5432")) <= 107
    assert layout.sockets(home) != layout.sockets(home.with_name("y" * length))
