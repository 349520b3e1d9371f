"""Active probes: who is asked when, and what the answer does to the breaker. Providers answer over HTTP."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from gateway.catalogue.models import Deployment, Model, Provider
from gateway.failover import circuits, housekeeping
from gateway.failover.circuits import Author, uuid4
from gateway.failover.models import Circuit, HealthEvent, RecentResults
from gateway.failover.probing import probe_due
from gateway.ledger.models import UsageRecord
from tests.upstream import Upstream
