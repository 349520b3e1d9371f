"""Sends the notices that are due. What is to be sent stands in the database, so that nothing is lost with a worker.

A try is claimed in one short transaction, made without any, and noted in another; a worker that dies in between
leaves a notice that is due again after `CLAIM`. So a receiver may get one twice: `webhook-id` stays the same.
"""

from __future__ import annotations

import json
import logging
import smtplib
import time
from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils import timezone

from gateway.limits import webhooks
from gateway.limits.notices import Delivery, LimitWarning, event, shown
from gateway.limits.webhooks import NotTaken
from gateway.limits.wording import kind_of_facts

log = logging.getLogger(__name__)

ATTEMPTS = 10
FIRST_WAIT = timedelta(seconds=30)
LONGEST_WAIT = timedelta(hours=6)
CLAIM = timedelta(minutes=2)
AT_ONCE = 50  # notices in one run


def send_due(*, now: datetime | None = None) -> int:
    """Try each notice that is due once; returns how many were taken."""
    taken = 0
    for _ in range(AT_ONCE):
        delivery = _claim(now or timezone.now())
        if delivery is None:
            break
        taken += _try(delivery, now or timezone.now())
    return taken


def _claim(now: datetime) -> Delivery | None:
    with transaction.atomic():
        delivery = (
            Delivery.objects.select_for_update(skip_locked=True)
            .filter(status=Delivery.Status.PENDING, next_at__lte=now)
            .order_by("next_at", "pk")
            .first()
        )
        if delivery is None:
            return None
        delivery.attempts += 1
        delivery.next_at = now + CLAIM
        delivery.save(update_fields=["attempts", "next_at"])
    return Delivery.objects.select_related("warning__tenant", "endpoint").get(pk=delivery.pk)


def _try(delivery: Delivery, now: datetime) -> bool:
    try:
        answer = _send_mail(delivery) if delivery.channel == Delivery.Channel.EMAIL else _post(delivery)
    except NotTaken as exc:
        delivery.answer = str(exc)[:300]
        delivery.next_at = now + min(FIRST_WAIT * 2 ** (delivery.attempts - 1), LONGEST_WAIT)
        if delivery.attempts >= ATTEMPTS:
            delivery.status, delivery.next_at = Delivery.Status.FAILED, None
            log.error("Gave up: %s (%s)", delivery, exc)
        delivery.save(update_fields=["answer", "next_at", "status"])
        return False
    delivery.answer, delivery.status = answer[:300], Delivery.Status.SENT
    delivery.sent_at, delivery.next_at = now, None
    delivery.save(update_fields=["answer", "status", "sent_at", "next_at"])
    return True


def _post(delivery: Delivery) -> str:
    if delivery.endpoint is None or not delivery.endpoint.enabled:
        raise NotTaken("The webhook was removed or switched off.")
    facts = event(delivery.warning)
    body = json.dumps(facts, separators=(",", ":")).encode()
    return webhooks.post(
        delivery.endpoint.url, delivery.endpoint.secret, event_id=facts["id"], timestamp=int(time.time()), body=body
    )


def _send_mail(delivery: Delivery) -> str:
    subject, text = _letter(delivery.warning)
    try:
        EmailMessage(subject, text, settings.DEFAULT_FROM_EMAIL, [delivery.address]).send()
    except (OSError, smtplib.SMTPException, ValueError) as exc:
        raise NotTaken(f"{type(exc).__name__}: {exc}") from exc
    return "sent"


def _letter(warning: LimitWarning) -> tuple[str, str]:
    limit = warning.limit
    what = kind_of_facts(limit)
    unit = f" {limit['currency']}" if limit.get("currency") else ""
    whose = limit.get("subject", "")
    head, subject = f"{warning.threshold} % of a limit is used", f"{warning.threshold} % of {what} used: {whose}"
    if warning.refusing:
        head = "A limit refuses requests, since what is left is too little for them"
        subject = f"{what} refuses requests: {whose}".capitalize()
    lines = [
        f"{head}: {what} of {whose}.",
        "",
        f"Limit: {shown(warning, warning.amount)}{unit}",
        f"Used: {shown(warning, warning.used)}{unit}",
        f"Held by running requests: {shown(warning, warning.held)}{unit}",
        f"Since: {warning.window_start:%Y-%m-%d %H:%M} UTC",
        f"Until: {warning.window_end:%Y-%m-%d %H:%M} UTC" if warning.window_end else "It does not reset.",
        "",
        "This limit only observes: nothing is refused."
        if limit.get("mode") == "observe"
        else "Requests that do not fit into what is left are refused.",
    ]
    return subject, "\n".join(lines)
