"""Rules of the catalogue over more than one row, and the one way to change a price.

Bad input raises Django's ValidationError, so that forms and `apply` can say which field it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q

from gateway.catalogue.fields import EncryptedTextField
from gateway.catalogue.models import CatalogueVersion, Model, Price, Provider

AMOUNTS = ("input", "cached_input", "cache_write", "output", "reasoning", "request")


def fits_header(credential: str) -> bool:
    """Whether HTTP can send it: printable ASCII alone."""
    return credential.isascii() and credential.isprintable()


def check_provider(provider: Provider) -> None:
    """A provider that is called over HTTP needs to know where."""
    if provider.protocol != Provider.Protocol.ECHO and not provider.base_url:
        raise ValidationError({"base_url": f"The protocol {provider.protocol} needs a base URL."})


def check_names(*, pk: int | None, public_id: str, aliases: list[str]) -> None:
    """No name may lead to two models: neither id nor alias is another's id or alias."""
    if public_id in aliases:
        raise ValidationError({"aliases": f"{public_id} is the model's id already."})
    names = [public_id, *aliases]
    others = Model.objects.exclude(pk=pk or 0).filter(Q(public_id__in=names) | Q(aliases__overlap=names))
    for other in others[:1]:
        taken = sorted({other.public_id, *other.aliases} & set(names))
        field = "public_id" if public_id in taken else "aliases"
        raise ValidationError({field: f"{', '.join(taken)} already leads to the model {other.public_id}."})


def check_fallbacks(*, public_id: str, fallbacks: list[str]) -> None:
    """Each is another model of ours, by its id."""
    if public_id in fallbacks:
        raise ValidationError({"fallbacks": f"{public_id} cannot stand in for itself."})
    known = set(Model.objects.filter(public_id__in=fallbacks).values_list("public_id", flat=True))
    for name in fallbacks:
        if name not in known:
            raise ValidationError({"fallbacks": f"There is no model {name!r}. Name models by their ids."})


def lock_unused(price_id: int) -> Price:
    """The price, locked until the transaction ends; the desk marks prices as used under the same lock.

    Raises ValidationError if a record was rated with it.
    """
    list(CatalogueVersion.objects.select_for_update())  # before the price, as `apply` does: no deadlocks
    locked = Price.objects.select_for_update().get(pk=price_id)
    if locked.first_used_at is not None:
        raise ValidationError(
            f"This price has been used since {locked.first_used_at:%Y-%m-%d %H:%M} UTC and cannot change. "
            "Add one with a later effective_from."
        )
    return locked


def set_amounts(*, price: Price, amounts: Mapping[str, int | None]) -> Price:
    """Correct a price that no record was rated with yet. `amounts` are nano-units per million, by class."""
    with transaction.atomic():
        locked = lock_unused(price.pk)
        for name in AMOUNTS:
            if name in amounts:
                setattr(locked, name, amounts[name])
        locked.full_clean()
        locked.save(update_fields=list(AMOUNTS))
        return locked


def reencrypt_credentials() -> int:
    """Encrypt every stored secret of any model with the first of ENCRYPTION_KEYS; returns how many there are."""
    total = 0
    with transaction.atomic():
        for model in apps.get_models():
            for field in model._meta.concrete_fields:
                if isinstance(field, EncryptedTextField):
                    rows = list(model._default_manager.select_for_update().order_by("pk").exclude(**{field.name: ""}))
                    model._default_manager.bulk_update(rows, [field.name])
                    total += len(rows)
    return total


def reencrypt_contents() -> int:
    """The same for models that have more of it than fits into memory, and do it themselves; returns how many rows."""
    return sum(model.reencrypt() for model in apps.get_models() if hasattr(model, "reencrypt"))
