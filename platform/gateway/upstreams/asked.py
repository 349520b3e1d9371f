"""What a client asked for in OpenAI's form, read for protocols that are not OpenAI's.

Whatever the other protocol has no words for is refused here, with the name of the parameter and before anything
is sent: an answer that silently leaves something out is worse than none. A few parameters only ask for effort,
bookkeeping or caching at OpenAI and change nothing that a client could miss; those are left out.
"""

from __future__ import annotations

import re
from binascii import Error as NotBase64
from binascii import a2b_base64
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from gateway.errors import InvalidRequest
from gateway.upstreams.fields import text_of
from gateway.upstreams.jsontext import loads

Json = dict[str, Any]

LEFT_OUT = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "store", "metadata", "user", "safety_identifier"),
        *("service_tier", "seed", "prediction", "verbosity"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    }
)
# Values that ask for nothing beyond what every protocol does.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "function_call": ("none",),
}
MEDIA_TYPES = {"image/jpg": "image/jpeg"}  # written often, and refused by others than OpenAI
DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[^;,]*)*),(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls`, in one."""

    functions: tuple[Json, ...]  # name, description?, parameters?, strict?
    mode: str  # auto | none | required
    name: str = ""  # the one that must be called
    parallel: bool = True

    @property
    def forced(self) -> bool:
        return self.mode == "required"


def unsupported(param: str, why: str = "", *, value: bool = False) -> InvalidRequest:
    """The refusal of a parameter, or of this value of it."""
    kind = "value" if value else "parameter"
    text = f"Unsupported {kind}: '{param}' is not supported with this model."
    return InvalidRequest(f"{text} {why}".rstrip(), param=param, code=f"unsupported_{kind}")


def invalid(path: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{path}': {why}.", param=path, code="invalid_value")


def check_parameters(request: Json, translated: frozenset[str]) -> None:
    """Raises the refusal of the first parameter that would be lost."""
    for name, given in request.items():
        if given is None or name in translated or name in LEFT_OUT:
            continue
        if name not in HARMLESS:
            raise unsupported(name)
        if given not in HARMLESS[name]:
            default = HARMLESS[name][0]
            why = f"Only {default!r} is." if name == "n" else ""
            raise unsupported(name, why, value=name in ("n", "modalities"))


def read_tools(request: Json) -> Tools:
    """Raises the refusal of tools that are not functions."""
    tools, choice = request.get("tools") or [], request.get("tool_choice")
    for index, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise unsupported(f"tools[{index}].type", "Only 'function' is.", value=True)
    functions = tuple(tool["function"] for tool in tools)
    parallel = request.get("parallel_tool_calls") is not False
    if not isinstance(choice, dict):
        return Tools(functions, choice or "auto", parallel=parallel)
    if choice.get("type") == "allowed_tools":
        allowed = choice["allowed_tools"]
        names = {(tool.get("function") or tool).get("name") for tool in allowed["tools"]}
        functions = tuple(function for function in functions if function["name"] in names)
        return Tools(functions, allowed["mode"], parallel=parallel)
    if choice.get("type") != "function":
        raise unsupported("tool_choice", value=True)
    return Tools(functions, "required", choice["function"]["name"], parallel)


def read_format(request: Json) -> tuple[str, Json | None]:
    """(text | json_object | json_schema, its schema)."""
    wanted = request.get("response_format") or {"type": "text"}
    if wanted["type"] != "json_schema":
        return wanted["type"], None
    return "json_schema", wanted["json_schema"].get("schema")


def cap_of(request: Json) -> int | None:
    return request.get("max_completion_tokens") or request.get("max_tokens")


def stops_of(request: Json) -> list[str]:
    stop = request.get("stop")
    return [stop] if isinstance(stop, str) else list(stop or [])


def parts_of(message: Json, path: str) -> list[tuple[Json, str]]:
    """The parts of a message, each with its path; a plain string is one of type text. Empty texts are no parts."""
    content = message.get("content")
    if isinstance(content, str):
        return [({"type": "text", "text": content}, f"{path}.content")] if content else []
    parts = content if isinstance(content, list) else []
    found = [(part, f"{path}.content[{index}]") for index, part in enumerate(parts)]
    return [(part, where) for part, where in found if part.get("type") != "text" or part.get("text")]


def plain_text(message: Json, path: str) -> str:
    """The text of a message that can hold nothing else: a system message, the answer of a tool."""
    texts = []
    for part, where in parts_of(message, path):
        if part.get("type") != "text":
            raise unsupported(f"{where}.type", "Only 'text' is, in this role.", value=True)
        texts.append(text_of(part.get("text")))
    return "\n".join(texts)


def assistant_text(message: Json, path: str) -> str:
    """What an assistant said before. Its reasoning is left out: no provider takes another's back."""
    for name in ("function_call", "audio"):
        if message.get(name):
            raise unsupported(f"{path}.{name}")
    texts = []
    for part, where in parts_of(message, path):
        if part.get("type") not in ("text", "refusal"):
            raise unsupported(f"{where}.type", "Only 'text' and 'refusal' are, in this role.", value=True)
        texts.append(text_of(part.get("text") or part.get("refusal")))
    return "".join(texts) or text_of(message.get("refusal"))


def arguments_of(call: Json, path: str) -> Json:
    """The arguments of a function call as an object. `path` is the call's."""
    if call.get("type", "function") != "function":
        raise unsupported(f"{path}.type", "Only 'function' is.", value=True)
    text = call["function"].get("arguments") or "{}"
    try:
        arguments = loads(text.encode())
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(f"{path}.function.arguments", "expected a JSON object")
    return arguments


def data_url(url: str, path: str) -> tuple[str, str] | None:
    """(media type, base64) of a data: URL; None for another kind of URL."""
    if url[:5].lower() != "data:":
        return None
    found = DATA_URL.fullmatch(url)
    if found is None or ";base64" not in found[2].lower():
        raise _bad_data(path)
    data = "".join(unquote_to_bytes(found[3]).decode("ascii", "replace").split())
    try:
        if not a2b_base64(data):
            raise _bad_data(path)
    except (NotBase64, ValueError):
        raise _bad_data(path) from None
    media_type = (found[1] or "application/octet-stream").lower()
    return MEDIA_TYPES.get(media_type, media_type), data


def file_data(part: Json, path: str) -> tuple[str, str]:
    """(media type, base64) of a `file` part that carries its bytes."""
    text = text_of(part["file"].get("file_data"))
    if not text:
        raise unsupported(f"{path}.file.file_id", "Send the file's bytes as 'file_data'.")
    return data_url(text, f"{path}.file.file_data") or ("application/pdf", text)


def no_turns() -> InvalidRequest:
    return unsupported("messages", "There must be a message of the user with something in it.", value=True)


def _bad_data(path: str) -> InvalidRequest:
    return invalid(path, "expected a data: URL with base64 data")
