"""What is printed when all of it answers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from gateway.embedded import steps
from gateway.embedded.seed import ADMIN, DEMO, Seeded

KEY_VARIABLE = "$COUNTERFOIL_KEY"


@dataclass(frozen=True)
class Greeting:
    """`prefix` is what commands need in front, to use this home."""

    url: str
    api_prefix: str
    model: str | None
    seeded: Seeded | None
    logs: Path
    prefix: str

    def text(self) -> str:
        api = f"{self.url}{self.api_prefix}"
        lines = [
            "",
            "Counterfoil is ready.",
            "",
            f"  API     {api}",
            f"  Admin   {self.url}/admin/",
            f"  Docs    {api}/docs",
            f"  Logs    {self.logs}",
            "",
            *(self._shown_once(self.seeded) if self.seeded else self._how_to_get_new()),
            "",
            *self._calls(api),
            "Ctrl-C stops everything.",
        ]
        return "\n".join(lines)

    def _shown_once(self, seeded: Seeded) -> list[str]:
        return [str(seeded), "", "Key and password are shown this once. Get new ones with:", *self._commands()]

    def _how_to_get_new(self) -> list[str]:
        return ["Key and password were shown at the first start. Get new ones with:", *self._commands()]

    def _commands(self) -> list[str]:
        manage = f"{self.prefix}{python()} manage.py"
        return [
            f"  {manage} issue_key --tenant {DEMO} --name NAME",
            f"  {manage} changepassword {ADMIN}",
        ]

    def _calls(self, api: str) -> list[str]:
        if self.model is None:
            return ["There is no model in the catalogue yet: add one in the admin, or with manage.py apply.", ""]
        key = self.seeded.key if self.seeded else KEY_VARIABLE
        lines = [] if self.seeded else ["With such a key in COUNTERFOIL_KEY (export it):", ""]
        return [
            *lines,
            "Try it with curl:",
            "",
            curl(api, key, self.model),
            "",
            "or Python:",
            "",
            python_call(api, key, self.model),
            "",
        ]


def curl(api: str, key: str, model: str) -> str:
    body = json.dumps(steps.first_request(model))
    return (
        f'curl {api}/chat/completions -H "Authorization: Bearer {key}"'
        f" -H \"Content-Type: application/json\" -d '{body}'"
    )


def python_call(api: str, key: str, model: str) -> str:
    """One line for the shell, with OpenAI's own client out of .venv."""
    secret = 'os.environ["COUNTERFOIL_KEY"]' if key == KEY_VARIABLE else json.dumps(key)
    message = json.dumps([{"role": "user", "content": "Say hello."}])
    return (
        f"{python()} -c 'import os; from openai import OpenAI; "
        f'print(OpenAI(base_url="{api}", api_key={secret}).chat.completions.create('
        f'model="{model}", messages={message}, max_tokens=32).choices[0].message.content)\''
    )


def python() -> str:
    """This interpreter, as it is typed in the current folder."""
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith("..") else path
