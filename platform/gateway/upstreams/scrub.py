"""Takes out of a provider's error text what is nobody's business but ours: hosts, keys, ids, its model names."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from gateway.upstreams.base import Target

LONGEST_TEXT = 2_000
PROVIDER = "the provider"
TOP_LEVEL = {
    *("ai", "cloud", "cn", "co", "com", "de", "dev", "eu", "example", "internal"),
    *("io", "localhost", "net", "org", "uk", "us", "xyz"),
}

# What the text of a protocol's one provider calls itself, wherever it is reached.
BRANDS = {
    "azure": ("Azure OpenAI", "Azure", "Microsoft"),
    "anthropic": ("Anthropic", "Claude"),
    "gemini": ("Gemini", "Google"),
}
# Its other names for a model: an alias is not what an error calls it.
MODELS = {
    "anthropic": re.compile(r"(?<![\w.-])claude-[\w.-]*\w", re.IGNORECASE),
    "gemini": re.compile(r"(?<![\w./-])(?:models/)?gemini-[\w.-]*\w", re.IGNORECASE),
}

# Every pattern begins where a word begins, so that a hostile text costs linear time.
URL = re.compile(r"(?<![\w+.-])[a-z][a-z0-9+.-]{0,20}://[^\s\"'<>)\]]+", re.IGNORECASE)
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
HOST = re.compile(r"(?<![\w.-])((?:[\w-]+\.)+[\w-]+)(?::\d+)?(?:/[^\s\"'<>)\]]*)?")
IPV6 = re.compile(r"\[?(?<![\w:.])([0-9a-f:.]{3,45})(?![\w:])\]?(?::\d+)?", re.IGNORECASE)
SECRET = re.compile(
    r"\b(?:bearer\s+\S+|(?:sk|pk|rk|gsk|key|xai|fw|r8|nvapi|api)[-_][\w*.-]{6,}|AIza[\w-]{20,})", re.IGNORECASE
)
# org-…, proj_…, req_…, and UUIDs
IDENTIFIER = re.compile(
    r"\b(?:org|organization|proj|project|req|request|acct|account|user|team|chatcmpl|resp|trace)[-_:][A-Za-z0-9*]{6,}\b"
    r"|\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b",
)


def scrub(text: str, target: Target, public_model: str) -> str:
    """The text for a client. Sentences stay as they are, so that limits and numbers in them survive."""
    text = text[:LONGEST_TEXT]
    if target.credential:
        text = text.replace(target.credential, "***")
    # The model's name first, and out of reach of the patterns: public ids may look like hosts.
    if target.upstream_model:
        text = re.sub(rf"(?<![\w.-]){re.escape(target.upstream_model)}(?![\w-])", "\0", text)
    if names := MODELS.get(target.protocol):
        text = names.sub("\0", text)
    text = URL.sub(PROVIDER, text)
    for name in _names(target.base_url):
        text = re.sub(rf"\b{re.escape(name)}\b(?::\d+)?", PROVIDER, text, flags=re.IGNORECASE)
    text = EMAIL.sub(PROVIDER, text)
    text = HOST.sub(lambda found: PROVIDER if _is_host(found[1]) else found[0], text)
    text = IPV6.sub(lambda found: PROVIDER if _is_address(found[1]) else found[0], text)
    for pattern in (SECRET, IDENTIFIER):
        text = pattern.sub("***", text)
    for brand in filter(None, (*BRANDS.get(target.protocol, ()), _brand(target.base_url), target.provider)):
        text = re.sub(
            rf"(?<!\w){re.escape(brand)}(?!\w)",
            lambda found: PROVIDER if _is_name(found[0]) else found[0],
            text,
            flags=re.IGNORECASE,
        )
    return text.replace("\0", public_model)


def _names(base_url: str) -> list[str]:
    parts = urlsplit(base_url)
    return [name for name in (parts.netloc, parts.hostname) if name]


def _is_host(text: str) -> bool:
    """Paths like messages.content have dots too."""
    return text.rpartition(".")[2].lower() in TOP_LEVEL or _is_address(text)


def _is_address(text: str) -> bool:
    """Times of day and ratios have colons too."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_name(text: str) -> bool:
    """`together` and `local` are also English; with a capital, or as acme-llm, they are names."""
    return text[0].isupper() or not text.isalpha()


def _brand(base_url: str) -> str:
    """`openai` of api.openai.com. Only words with a capital are taken for it: `together` is also English."""
    labels = (urlsplit(base_url).hostname or "").split(".")
    brand = labels[-2] if len(labels) > 1 and not labels[-1].isdigit() else ""
    return brand if len(brand) > 3 else ""
