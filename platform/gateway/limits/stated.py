"""`limits:`, `plans:`, `plan:` and `keys:` of an `apply` file.

A list of limits that is given states all limits of its subject: those that it leaves out are removed, and a field
that a limit leaves out has its usual value. A temporary raise stays unless it is stated; `raise: null` ends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from gateway.catalogue.apply import scalars
from gateway.catalogue.apply.document import Problem
from gateway.catalogue.apply.scalars import BadValue, Read
from gateway.catalogue.apply.statements import Entry, Kind
from gateway.catalogue.apply.writer import Writer
from gateway.catalogue.models import Model
from gateway.catalogue.pricing import parse_amount
from gateway.limits.models import LimitRule, Plan, PlanMembership
from gateway.limits.stated_rules import retire, write_limits
from tenants.models import APIKey, Tenant

TAG = "tag:yaml.org,2002:"


class Amount(int):
    """A number of the file and how it was written: quoted (money) or plain (a count)."""

    quoted: bool
    fraction: str  # as it was written, if it was plain and no whole number: the metric says what is wrong with it

    def __new__(cls, value: int, quoted: bool, fraction: str = "") -> Amount:
        made = super().__new__(cls, value)
        made.quoted, made.fraction = quoted, fraction
        return made


def amount(node: yaml.Node) -> Amount:
    if not isinstance(node, yaml.ScalarNode):
        raise BadValue(node, 'Expected a whole number, or for spend an amount such as "50.00".')
    kind, value = node.tag.removeprefix(TAG), str(node.value)
    if kind == "str" and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        try:
            return Amount(parse_amount(value), True)
        except ValueError as exc:
            raise BadValue(node, f"{exc}.") from exc
    if kind == "float":
        return Amount(0, False, value)
    if kind == "str" and not re.fullmatch(r"-[0-9]+(\.[0-9]+)?", value):
        raise BadValue(node, f'{value!r} is neither a whole number nor, for spend, an amount such as "50.00".')
    if kind == "str":
        raise BadValue(node, "A limit cannot be negative.")
    number = scalars.whole(node)
    if not 0 <= number < 2**63:
        raise BadValue(node, "A limit cannot be negative." if number < 0 else f"{value} is too large.")
    return Amount(number, False)


def numbers(node: yaml.Node) -> list[int]:
    if not isinstance(node, yaml.SequenceNode):
        raise BadValue(node, "Expected a list of per cent, such as [50, 80, 100].")
    return sorted({scalars.whole(item) for item in node.value})


def temporary(node: yaml.Node) -> tuple[Amount, Any] | None:
    """{amount, until}; null ends a raise."""
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG}null":
        return None
    if not isinstance(node, yaml.MappingNode):
        raise BadValue(node, "Expected {amount: …, until: …}, or null to end a raise.")
    found = {str(name.value): value for name, value in node.value}
    if set(found) != {"amount", "until"} or len(node.value) != 2:
        raise BadValue(node, "A raise is {amount: …, until: …}, and nothing else.")
    return amount(found["amount"]), scalars.moment(found["until"])


def name_or_none(node: yaml.Node) -> str | None:
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{TAG}null":
        return None
    return scalars.text(node)


READS: dict[str, Read] = {
    "metric": scalars.choice(LimitRule.Metric.values),
    "per": scalars.choice(LimitRule.Per.values),
    "amount": amount,
    "tokens": scalars.choice(LimitRule.Tokens.values),
    "currency": scalars.currency,
    "model": scalars.text,
    "mode": scalars.choice(LimitRule.Mode.values),
    "hold": scalars.choice(LimitRule.Hold.values),
    "on_shortage": scalars.choice(LimitRule.Shortage.values),
    "floor": scalars.whole,
    "fiscal_day": scalars.whole,
    "thresholds": numbers,
    "enabled": scalars.truth,
    "raise": temporary,
}


class LimitStatements:
    """What limits add to a file (catalogue.apply.extensions)."""

    def kinds(self, sections: Mapping[str, Kind]) -> dict[str, Kind]:
        limits = {"limits": Kind("a limit", READS, ["metric", "amount"], [])}
        of_a_key, of_a_model = dict(limits), dict(limits)
        # The model's own limits name no model, the others may.
        of_a_model["limits"] = replace(limits["limits"], reads={k: v for k, v in READS.items() if k != "model"})
        key = Kind("a key", {"name": scalars.text, "id": scalars.text}, ["name"], ["name", "id"], of_a_key)
        tenants, models = sections["tenants"], sections["models"]
        return {
            **sections,
            "models": replace(models, lists={**models.lists, **of_a_model}),
            "plans": Kind("a plan", {"slug": scalars.text, "name": scalars.text}, ["slug"], ["slug"], limits),
            "tenants": replace(
                tenants,
                lists={**tenants.lists, **limits, "keys": key},
                extras={**tenants.extras, "plan": name_or_none},
            ),
        }

    def prepare(self, writer: Writer, stated: Mapping[str, list[Entry]]) -> None:
        """A tenant whose currency changes takes its limits of spend along, if the file states them."""
        for entry in stated.get("tenants", ()):
            tenant = Tenant.objects.filter(slug=entry.values["slug"]).first()
            if tenant is None or entry.values.get("currency", tenant.currency) == tenant.currency:
                continue
            retire(writer, entry, f"tenant {tenant.slug}", tenant.currency, tenant=tenant)
            for item in entry.lists.get("keys", ()):
                for key in _keys(item, tenant):
                    retire(writer, item, f"key {key.name} of {tenant.slug}", tenant.currency, key=key)

    def write(self, writer: Writer, stated: Mapping[str, list[Entry]]) -> None:
        for entry in stated.get("plans", ()):
            plan = writer.thing(Plan, entry, "slug", "plan", {"name": entry.values["slug"]})
            if plan is not None:
                write_limits(writer, entry, f"plan {plan.slug}", plan=plan)
        for entry in stated.get("models", ()):
            model = Model.objects.filter(public_id=entry.values["id"]).first()
            if model is not None:
                write_limits(writer, entry, f"model {model.public_id}", model=model)
        for entry in stated.get("tenants", ()):
            tenant = Tenant.objects.filter(slug=entry.values["slug"]).first()
            if tenant is None:
                continue  # it was refused, for which there is a problem already
            if "plan" in entry.extras:
                _plan(writer, entry, tenant)
            write_limits(writer, entry, f"tenant {tenant.slug}", tenant=tenant)
            for item in entry.lists.get("keys", ()):
                key = _key(writer, item, tenant)
                if key is not None:
                    write_limits(writer, item, f"key {key.name} of {tenant.slug}", key=key)


def _plan(writer: Writer, entry: Entry, tenant: Tenant) -> None:
    slug = entry.extras["plan"]
    plan = Plan.objects.filter(slug=slug).first() if slug is not None else None
    if slug is not None and plan is None:
        text = f"plan: There is no plan {slug!r}, neither here nor stored."
        writer.problems.append(Problem(entry.lines["plan"], text))
        return
    membership = PlanMembership.objects.select_related("plan").filter(tenant=tenant).first()
    former = membership.plan if membership is not None else None
    thing = f"plan of tenant {tenant.slug}"
    if former == plan:
        if plan is not None:
            writer.report.compared(thing, {})
        return
    if plan is None:
        PlanMembership.objects.filter(tenant=tenant).delete()
    else:
        PlanMembership.objects.update_or_create(tenant=tenant, defaults={"plan": plan})
    writer.report.compared(thing, {"plan": (former and former.slug, plan and plan.slug)})


def _key(writer: Writer, entry: Entry, tenant: Tenant) -> APIKey | None:
    name, found = entry.values["name"], _keys(entry, tenant)
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(sorted(key.public_id for key in found))
        text = f"{tenant.slug} has {len(found)} active keys named {name!r}: say which by id, one of {ids}."
    else:
        text = f"{tenant.slug} has no active key named {name!r}. Issue it first: manage.py issue_key."
    writer.problems.append(Problem(entry.lines["name"], text))
    return None


def _keys(entry: Entry, tenant: Tenant) -> list[APIKey]:
    """By name within its tenant; where several live keys have that name, by public id too."""
    public_id = entry.values.get("id")
    keys = APIKey.objects.for_tenant(tenant).filter(name=entry.values["name"])
    return list(keys.filter(public_id=public_id) if public_id else keys.filter(status=APIKey.Status.ACTIVE))
