"""The admin's pages of the books. Records of fact are read; what people decide becomes an adjustment."""

from gateway.ledger.admin.adjustments import AdjustmentAdmin
from gateway.ledger.admin.attempts import AttemptAdmin
from gateway.ledger.admin.gates import GateAdmin
from gateway.ledger.admin.limits import LimitCounterAdmin, RefusalAdmin
from gateway.ledger.admin.notices import (
    DeliveryAdmin,
    DriftFindingAdmin,
    LimitWarningAdmin,
    WebhookEndpointAdmin,
)
from gateway.ledger.admin.operations import CounterAdmin, DeadLetterAdmin, HoldAdmin, ProcessAdmin
from gateway.ledger.admin.records import UsageRecordAdmin
from gateway.ledger.admin.work import WorkItemAdmin

__all__ = [
    "AdjustmentAdmin",
    "AttemptAdmin",
    "CounterAdmin",
    "DeadLetterAdmin",
    "DeliveryAdmin",
    "DriftFindingAdmin",
    "GateAdmin",
    "HoldAdmin",
    "LimitCounterAdmin",
    "LimitWarningAdmin",
    "ProcessAdmin",
    "RefusalAdmin",
    "UsageRecordAdmin",
    "WebhookEndpointAdmin",
    "WorkItemAdmin",
]
