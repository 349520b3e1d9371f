"""Billing's work for Celery. **kwargs everywhere, so that old and new workers understand each other."""

from __future__ import annotations

from celery import shared_task

from gateway.billing import last_used, rollups


@shared_task(name="billing.roll_up")
def roll_up(**kwargs: object) -> None:
    """Add what the ledger has new to the hourly sums; another run at the same time leaves it to this one."""
    rollups.roll_up()


@shared_task(name="billing.update_last_used")
def update_last_used(**kwargs: object) -> None:
    last_used.update_last_used()
