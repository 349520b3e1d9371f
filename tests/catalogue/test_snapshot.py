"""Whose time-outs hold: the model's where it has one, else its provider's."""

from __future__ import annotations

import pytest

from gateway.catalogue.apply import Refused, apply
from gateway.catalogue.snapshot import load_catalogue

pytestmark = pytest.mark.django_db

FIELDS = ("connect_timeout_s", "first_byte_timeout_s", "read_timeout_s", "total_timeout_s")
CATALOGUE = """
providers:
  - {name: e, protocol: echo, connect_timeout_s: 2, first_byte_timeout_s: 3, read_timeout_s: 4, total_timeout_s: 5}
models:
  - {id: as-its-provider, deployments: [{provider: e, upstream_model: m}]}
  - {id: of-its-own, FIELD: VALUE, deployments: [{provider: e, upstream_model: m}]}
"""


def in_force(name: str) -> dict[str, float | None]:
    (placement,) = load_catalogue().by_name[name].deployments
    return {field: getattr(placement.target, field) for field in FIELDS}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("seconds", [1, 900])
def test_each_is_the_models_if_it_has_one(field: str, seconds: int) -> None:
    """Shorter or longer than its provider's, and the other three stay."""
    apply(CATALOGUE.replace("FIELD", field).replace("VALUE", str(seconds)))
    providers = dict(zip(FIELDS, (2, 3, 4, 5), strict=True))
    assert in_force("as-its-provider") == providers
    assert in_force("of-its-own") == {**providers, field: seconds}
    apply(CATALOGUE.replace("FIELD", field).replace("VALUE", "null"))
    assert in_force("of-its-own") == providers


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_none_is_less_than_a_second(field: str, value: str) -> None:
    with pytest.raises(Refused):
        apply(CATALOGUE.replace("FIELD", field).replace("VALUE", value))
