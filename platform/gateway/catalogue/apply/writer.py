"""Compare what a file states with what is there, and write the difference in one transaction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import transaction

from gateway.catalogue.apply.document import Problem, Refused, read
from gateway.catalogue.apply.extensions import extensions
from gateway.catalogue.apply.report import Report
from gateway.catalogue.apply.statements import AMOUNTS, Entry, statements
from gateway.catalogue.models import CatalogueVersion, Deployment, Model, Price, Provider
from gateway.catalogue.pricing import format_amount
from gateway.catalogue.services import check_fallbacks, check_names, check_provider, set_amounts
from tenants.models import Tenant

# What a deployment is when its entry does not say; a list is the whole truth.
DEPLOYMENT: dict[str, Any] = {"priority": 0, "weight": 1, "enabled": True} | dict.fromkeys(
    ("rpm", "tpm", "max_in_flight", "probe_every_s")
)
ATTRIBUTES = {"id": "public_id", "models": "allowed_models"}  # where a field of the file is named otherwise


def apply(text: str, *, dry_run: bool = False, environ: Mapping[str, str] | None = None, source: str = "") -> Report:
    """Make it so. Raises Refused with every problem found; then, and on a dry run, nothing is changed."""
    stated = statements(read(text), os.environ if environ is None else environ)
    with transaction.atomic():
        # One at a time; whoever edits the catalogue elsewhere waits for this row, too.
        list(CatalogueVersion.objects.select_for_update())
        writer = Writer(source)
        writer.write(stated)
        if writer.problems:
            raise Refused(writer.problems)
        transaction.set_rollback(dry_run)
    return writer.report


class Writer:
    def __init__(self, source: str) -> None:
        self.report = Report()
        self.problems: list[Problem] = []
        self.reason = f"apply {source}".strip()[:100]
        self.priced: set[int] = set()

    def write(self, stated: Mapping[str, list[Entry]]) -> None:
        for entry in stated.get("providers", ()):
            self.thing(Provider, entry, "name", "provider")
        models = [(self.thing(Model, entry, "id", "model"), entry) for entry in stated.get("models", ())]
        for model, entry in models:
            if model is not None:
                self._deployments(model, entry)
                self._prices(model, entry)
        self._names(models)
        for extension in extensions:
            extension.prepare(self, stated)
        for entry in stated.get("tenants", ()):
            tenant = self.thing(Tenant, entry, "slug", "tenant", {"name": entry.values["slug"]})
            if tenant is not None:
                self._own_prices(tenant, entry)
        for extension in extensions:
            extension.write(self, stated)

    # ---- providers, models, tenants ----

    def thing(
        self, kind: type[Any], entry: Entry, identity: str, label: str, defaults: Mapping[str, Any] | None = None
    ) -> Any:
        """Create or change one row; None if it was refused."""
        key = ATTRIBUTES.get(identity, identity)
        row = kind.objects.filter(**{key: entry.values[identity]}).first()
        created = row is None
        row = kind(**(defaults or {})) if row is None else row
        thing = f"{label} {entry.values[identity]}"
        changed: dict[str, tuple[Any, Any]] = {}
        for name, value in entry.values.items():
            attribute = ATTRIBUTES.get(name, name)
            if getattr(row, attribute) != value:
                changed[name] = (getattr(row, attribute), value)
                setattr(row, attribute, value)
        if (created or changed) and not self.save(row, entry):
            return None
        if created:
            self.report.created(thing, {name: v for name, v in entry.values.items() if name != identity})
        else:
            self.report.compared(thing, changed)
        return row

    def save(self, row: Any, entry: Entry) -> bool:
        try:
            row.full_clean()
            if isinstance(row, Provider):
                check_provider(row)
        except ValidationError as exc:
            self.refuse(exc, entry)
            return False
        row._change_reason = self.reason
        row.save()
        return True

    def refuse(self, error: ValidationError, entry: Entry) -> None:
        by_field = error.message_dict if hasattr(error, "error_dict") else {NON_FIELD_ERRORS: error.messages}
        names = {attribute: name for name, attribute in ATTRIBUTES.items() if name in entry.values}
        for attribute, messages in by_field.items():
            name = names.get(attribute, attribute)
            prefix = "" if attribute == NON_FIELD_ERRORS else f"{name}: "
            for message in messages:
                self.problems.append(Problem(entry.lines.get(name, entry.line), prefix + message))

    def _names(self, models: Iterable[tuple[Model | None, Entry]]) -> None:
        """After all of them are written: a file may move an alias from one model to another."""
        for model, entry in models:
            if model is not None:
                try:
                    check_names(pk=model.pk, public_id=model.public_id, aliases=model.aliases)
                    check_fallbacks(public_id=model.public_id, fallbacks=model.fallbacks)
                except ValidationError as exc:
                    self.refuse(exc, entry)

    # ---- the lists within ----

    def _deployments(self, model: Model, entry: Entry) -> None:
        """The list is the whole list: those that it does not name are disabled."""
        if "deployments" not in entry.lists:
            return
        there = {(d.provider.name, d.upstream_model): d for d in model.deployments.select_related("provider")}
        for item in entry.lists["deployments"]:
            provider = self._provider(item)
            if provider is None:
                continue
            upstream = item.values.get("upstream_model", model.public_id)
            stated = DEPLOYMENT | {name: item.values[name] for name in DEPLOYMENT if name in item.values}
            row = there.pop((provider.name, upstream), None)
            row = row or Deployment(model=model, provider=provider, upstream_model=upstream)
            self._deployment(row, stated, f"deployment of {model.public_id} at {provider.name} as {upstream}", item)
        for (name, upstream), row in there.items():
            label = f"deployment of {model.public_id} at {name} as {upstream}"
            self._deployment(row, {"enabled": False}, label, entry)

    def _deployment(self, row: Deployment, stated: Mapping[str, Any], label: str, entry: Entry) -> None:
        created = row.pk is None
        changed = {name: (getattr(row, name), v) for name, v in stated.items() if getattr(row, name) != v}
        for name, value in stated.items():
            setattr(row, name, value)
        if (created or changed) and not self.save(row, entry):
            return
        if created:
            self.report.created(label, stated)
        else:
            self.report.compared(label, changed)

    def _provider(self, entry: Entry) -> Provider | None:
        name = entry.values["provider"]
        provider = Provider.objects.filter(name=name).first()
        if provider is None:
            line = entry.lines["provider"]
            self.problems.append(Problem(line, f"provider: There is no provider {name!r}, neither here nor stored."))
        return provider

    def _prices(self, model: Model, entry: Entry) -> None:
        for item in entry.lists.get("prices", ()):
            side = item.values.get("side", Price.Side.CHARGE)
            provider = None
            if "provider" in item.values:
                if side == Price.Side.CHARGE:
                    text = "provider: Only a price with side: cost belongs to a provider."
                    self.problems.append(Problem(item.lines["provider"], text))
                    continue
                provider = self._provider(item)
                if provider is None:
                    continue
            self._price(item, model=model, side=side, provider=provider, currency=item.values["currency"])

    def _own_prices(self, tenant: Tenant, entry: Entry) -> None:
        for item in entry.lists.get("prices", ()):
            model = Model.objects.filter(public_id=item.values["model"]).first()
            if model is None:
                text = f"model: There is no model {item.values['model']!r}, neither here nor stored."
                self.problems.append(Problem(item.lines["model"], text))
                continue
            currency = item.values.get("currency", tenant.currency)
            self._price(item, model=model, side=Price.Side.CHARGE, tenant=tenant, currency=currency)

    def _price(self, entry: Entry, **owner: Any) -> None:
        """Add a price, or correct one that was not used yet. Classes left out mean "as input", "as output"."""
        owner = {"tenant": None, "provider": None, **owner, "effective_from": entry.values["effective_from"]}
        amounts = {name: entry.values.get(name, 0 if name == "request" else None) for name in AMOUNTS}
        row = Price.objects.filter(**owner).first()
        whose = owner["tenant"] or owner["provider"] or "list"
        label = f"price of {owner['model']} ({owner['side']}, {whose}, {owner['currency']})"
        label += f" from {owner['effective_from']:%Y-%m-%dT%H:%MZ}"
        if row is not None and row.pk in self.priced:
            self.problems.append(Problem(entry.line, "This price is stated twice."))
            return
        if row is None:
            row = Price(**owner, **amounts)
            if self.save(row, entry):
                self.priced.add(row.pk)
                self.report.created(label, {name: format_amount(value) for name, value in amounts.items() if value})
            return
        self.priced.add(row.pk)
        changed = {name: (getattr(row, name), v) for name, v in amounts.items() if getattr(row, name) != v}
        if changed:
            try:
                set_amounts(price=row, amounts=amounts)
            except ValidationError as exc:
                self.refuse(exc, entry)
                return
        shown = {n: tuple(None if v is None else format_amount(v) for v in pair) for n, pair in changed.items()}
        self.report.compared(label, shown)  # type: ignore[arg-type]
