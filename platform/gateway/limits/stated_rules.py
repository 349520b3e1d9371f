"""The limits that a list of an `apply` file states, against those that its subject has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import ProtectedError
from django.utils import timezone

from gateway.catalogue.apply.document import Problem
from gateway.catalogue.apply.statements import Entry
from gateway.catalogue.apply.writer import Writer
from gateway.catalogue.models import Model
from gateway.limits import sense
from gateway.limits.models import LimitRule, default_thresholds
from gateway.limits.wording import kind_of, quantity

USUAL: dict[str, Any] = {"mode": "enforce", "hold": "expected", "on_shortage": "refuse", "floor": 16}
USUAL |= {"fiscal_day": 1, "enabled": True}
IDENTITY = ("model_id", "metric", "per", "tokens", "currency")


def write_limits(writer: Writer, entry: Entry, whose: str, **subject: Any) -> None:
    if "limits" not in entry.lists:
        return
    whole = {"plan": None, "tenant": None, "key": None, **subject}
    rules = LimitRule.objects.select_related("plan", "tenant", "key__tenant", "model")
    stored = {_identity(rule): rule for rule in rules.filter(**whole)}
    seen: dict[tuple[Any, ...], int] = {}
    unread = False
    for item in entry.lists["limits"]:
        wanted = _wanted(writer, item, subject)
        if wanted is None:
            unread = True
            continue
        identity = _identity(wanted)
        if identity in seen:
            text = f"This limit is stated already, on line {seen[identity]}."
            writer.problems.append(Problem(item.line, text))
            continue
        seen[identity] = item.line
        _write(writer, item, whose, stored.pop(identity, None), wanted)
    if unread:
        return  # which limit was meant is not known, so neither is what the list leaves out
    for rule in stored.values():
        _remove(writer, entry, whose, rule)


def retire(writer: Writer, entry: Entry, whose: str, currency: str, **subject: Any) -> None:
    """Remove what counts money in a currency that the subject is about to leave, if the file states its limits.

    The list states those that come instead; an enabled limit in the old currency would refuse the move.
    """
    if "limits" not in entry.lists:
        return
    rules = LimitRule.objects.select_related("plan", "tenant", "key__tenant", "model")
    for rule in rules.filter(metric="spend", currency=currency, enabled=True, credits=None, **subject):
        _remove(writer, entry, whose, rule)


def _wanted(writer: Writer, item: Entry, subject: Mapping[str, Any]) -> LimitRule | None:
    """The limit as it is stated, tidied, not yet checked; None: it names a model that is not there."""
    values = {**USUAL, "thresholds": default_thresholds(), **item.values}
    values.pop("raise", None)
    if "model" in values:
        model = Model.objects.filter(public_id=values["model"]).first()
        if model is None:
            text = f"model: There is no model {values['model']!r}, neither here nor stored."
            writer.problems.append(Problem(item.lines["model"], text))
            return None
        values["model"] = model
    spend = values["metric"] == LimitRule.Metric.SPEND
    money = [("amount", values["amount"])]
    if item.values.get("raise"):
        money.append(("raise", item.values["raise"][0]))
    for name, value in money:
        if value.fraction and spend:
            text = f'{name}: Amounts are quoted, since YAML would make a rounded float of them: "{value.fraction}".'
        elif value.fraction:
            text = f"{name}: A limit of {values['metric']} is a whole number, which {value.fraction} is not."
        elif spend and not value.quoted:
            text = f'{name}: Amounts of spend are quoted, such as "{int(value)}.00".'
        elif not spend and value.quoted:
            text = f"{name}: A limit of {values['metric']} is a whole number, without quotes."
        else:
            continue
        writer.problems.append(Problem(item.lines[name], text))
        return None
    values["amount"] = int(values["amount"])
    rule = LimitRule(**subject, **values)
    if rule.metric == "in_flight" and "per" in item.values:
        writer.problems.append(Problem(item.lines["per"], "per: Requests in flight have no window: leave it out."))
        return None
    rule.tidy()
    return rule


def _identity(rule: LimitRule) -> tuple[Any, ...]:
    return tuple(getattr(rule, name) for name in IDENTITY)


def _write(writer: Writer, item: Entry, whose: str, stored: LimitRule | None, wanted: LimitRule) -> None:
    if _refused(writer, item, stored, wanted):
        return
    thing = _thing(whose, wanted)
    fields = ["amount", *USUAL, "thresholds"]
    if "raise" in item.values:
        raised = item.values["raise"]
        wanted.raised_amount, wanted.raised_until = (int(raised[0]), raised[1]) if raised else (None, None)
        fields += ["raised_amount", "raised_until"]
    rule = stored or wanted
    changed = {
        name: (_shown(rule, name), _shown(wanted, name))
        for name in fields
        if stored is not None and getattr(stored, name) != getattr(wanted, name)
    }
    for name in fields:
        setattr(rule, name, getattr(wanted, name))
    if (stored is None or changed) and not writer.save(rule, item):
        return
    if stored is None:
        told = ["amount", *(name for name in item.values if name in fields and name != "amount"), *fields[8:]]
        writer.report.created(thing, {name: _shown(rule, name) for name in told})
    else:
        writer.report.compared(thing, changed)


def _refused(writer: Writer, item: Entry, stored: LimitRule | None, wanted: LimitRule) -> bool:
    """What the model would take and drop, or never use."""
    found = sense.misplaced(item.values, wanted)
    if item.values.get("raise"):
        amount, until = int(item.values["raise"][0]), item.values["raise"][1]
        # A file that is run again still states a raise that has run out, which changes nothing.
        same = (stored.raised_amount, stored.raised_until) == (amount, until) if stored else False
        over = until <= timezone.now()
        if over and not same:
            found["raise"] = "This is over already: give an end in the future, or leave the raise out."
        elif amount <= wanted.amount and not (same and (over or (stored and stored.amount == wanted.amount))):
            found["raise"] = f"The limit allows {quantity(wanted, wanted.amount)} already: give more."
    for name, text in found.items():
        writer.problems.append(Problem(item.lines[name], f"{name}: {text}"))
    return bool(found)


def _remove(writer: Writer, entry: Entry, whose: str, rule: LimitRule) -> None:
    thing = _thing(whose, rule)
    rule._change_reason = writer.reason  # type: ignore[attr-defined]
    try:
        rule.delete()
    except ProtectedError:
        keep = f"currency: {rule.currency}, enabled: false"
        text = f"limits: The {thing} has credit, so it cannot be removed. Keep it in the list with {keep}."
        writer.problems.append(Problem(entry.lines["limits"], text))
        return
    writer.report.removed(thing)


def _thing(whose: str, rule: LimitRule) -> str:
    model = f", model {rule.model.public_id}" if rule.model and not whose.startswith("model ") else ""
    return f"limit of {whose}{model}: {kind_of(rule)}" + (f" in {rule.currency}" if rule.currency else "")


def _shown(rule: LimitRule, name: str) -> Any:
    value = getattr(rule, name)
    return quantity(rule, value) if name in ("amount", "raised_amount") and value is not None else value
