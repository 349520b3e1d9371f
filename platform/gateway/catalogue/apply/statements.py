"""What a file may state, as one table per kind of thing, and the entries that are read by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from gateway.catalogue.apply import scalars
from gateway.catalogue.apply.document import Problem, Refused, fields, items, line_of
from gateway.catalogue.apply.extensions import extensions
from gateway.catalogue.apply.scalars import BadValue, Read
from gateway.catalogue.models import Model, Price, Provider
from tenants.models import Tenant

AMOUNTS: Mapping[str, Read] = dict.fromkeys(
    ("input", "cached_input", "cache_write", "output", "reasoning", "request"), scalars.money
)


@dataclass(slots=True)
class Entry:
    """One thing: its values and lines by field name, what extensions read of it, and the lists within it."""

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    lists: dict[str, list[Entry]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kind:
    """`identity` are the fields that say which one it is: two entries of one list may not agree in them.
    Without any, it is decided where they are written."""

    name: str
    reads: Mapping[str, Read]
    required: Collection[str]
    identity: Collection[str]
    lists: Mapping[str, Kind] = field(default_factory=dict)
    extras: Mapping[str, Read] = field(default_factory=dict)  # fields that are not the row's own


def kinds(environ: Mapping[str, str]) -> dict[str, Kind]:
    """The sections of a file, in the order in which they are written."""
    deployment = Kind(
        "a deployment",
        {
            "provider": scalars.text,
            "upstream_model": scalars.text,
            "priority": scalars.whole,
            "weight": scalars.whole,
            "rpm": scalars.whole_or_none,
            "tpm": scalars.whole_or_none,
            "max_in_flight": scalars.whole_or_none,
            "probe_every_s": scalars.whole_or_none,
            "enabled": scalars.truth,
        },
        required=["provider"],
        identity=["provider", "upstream_model"],
    )
    when = {"effective_from": scalars.moment, "currency": scalars.currency}
    price = Kind(
        "a price",
        {"side": scalars.choice(Price.Side.values), "provider": scalars.text, **when, **AMOUNTS},
        required=["effective_from", "currency", "input", "output"],
        identity=["side", "provider", "effective_from", "currency"],
    )
    own_price = Kind(
        "a tenant's price",
        {"model": scalars.text, **when, **AMOUNTS},
        required=["model", "effective_from", "input", "output"],
        identity=["model", "effective_from", "currency"],
    )
    sections = {
        "providers": Kind("a provider", _provider(environ), ["name"], ["name"]),
        "models": Kind("a model", _MODEL, ["id"], ["id"], {"deployments": deployment, "prices": price}),
        "tenants": Kind("a tenant", _TENANT, ["slug"], ["slug"], {"prices": own_price}),
    }
    for extension in extensions:
        sections = extension.kinds(sections)
    return sections


def _provider(environ: Mapping[str, str]) -> dict[str, Read]:
    return {
        "name": scalars.text,
        "protocol": scalars.choice(Provider.Protocol.values),
        "base_url": scalars.text,
        "credential": scalars.credential(environ),
        "connect_timeout_s": scalars.whole,
        "first_byte_timeout_s": scalars.whole_or_none,
        "read_timeout_s": scalars.whole,
        "total_timeout_s": scalars.whole_or_none,
        "api_version": scalars.text,
        "enabled": scalars.truth,
    }


_MODEL: dict[str, Read] = {
    "id": scalars.text,
    "aliases": scalars.texts,
    "owned_by": scalars.text,
    "context_window": scalars.whole_or_none,
    "max_output_tokens": scalars.whole_or_none,
    "capabilities": scalars.texts,
    "reasoning_field": scalars.choice(Model.ReasoningField.values),
    "refuse_unpriced": scalars.truth,
    "strategy": scalars.choice(Model.Strategy.values),
    "sticky": scalars.truth,
    "fallbacks": scalars.texts,
    "max_attempts": scalars.whole,
    "retry_within_s": scalars.whole,
    "connect_timeout_s": scalars.whole_or_none,
    "first_byte_timeout_s": scalars.whole_or_none,
    "read_timeout_s": scalars.whole_or_none,
    "total_timeout_s": scalars.whole_or_none,
    "enabled": scalars.truth,
}
_TENANT: dict[str, Read] = {
    "slug": scalars.text,
    "name": scalars.text,
    "status": scalars.choice(Tenant.Status.values),
    "timezone": scalars.text,
    "currency": scalars.currency,
    "billing_contact": scalars.text,
    "models": scalars.texts,
}


def statements(root: yaml.Node, environ: Mapping[str, str]) -> dict[str, list[Entry]]:
    """The entries of each section. Raises Refused with every problem of the file's form."""
    problems: list[Problem] = []
    sections = kinds(environ)
    found = fields(root, "The file", sections, problems)
    result = {name: _entries(found[name], sections[name], problems) for name in sections if name in found}
    if problems:
        raise Refused(problems)
    return result


def _entries(node: yaml.Node, kind: Kind, problems: list[Problem]) -> list[Entry]:
    entries: list[Entry] = []
    seen: dict[tuple[Any, ...], int] = {}
    for item in items(node, f"{kind.name.split()[-1]}s", problems):
        entry = _entry(item, kind, problems)
        identity = tuple(entry.values.get(name) for name in kind.identity)
        if identity in seen and any(name in entry.values for name in kind.required):
            text = f"This is {kind.name} that is stated already, on line {seen[identity]}."
            problems.append(Problem(entry.line, text))
        if identity:
            seen.setdefault(identity, entry.line)
        entries.append(entry)
    return entries


def _entry(node: yaml.Node, kind: Kind, problems: list[Problem]) -> Entry:
    entry = Entry(line_of(node))
    name = kind.name[:1].upper() + kind.name[1:]
    known = [*kind.reads, *kind.extras, *kind.lists]
    for field_name, value in fields(node, name, known, problems, kind.required).items():
        entry.lines[field_name] = line_of(value)
        if field_name in kind.lists:
            entry.lists[field_name] = _entries(value, kind.lists[field_name], problems)
            continue
        try:
            if field_name in kind.extras:
                entry.extras[field_name] = kind.extras[field_name](value)
            else:
                entry.values[field_name] = kind.reads[field_name](value)
        except BadValue as exc:
            problems.append(Problem(exc.line, f"{field_name}: {exc}"))
    return entry
