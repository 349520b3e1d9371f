"""The admin's pages of this app. Counters and refusals are read, as the books are: ledger.admin has them."""

from gateway.limits.admin.credits import CreditAdmin
from gateway.limits.admin.plans import PlanAdmin
from gateway.limits.admin.rules import LimitRuleAdmin

__all__ = ["CreditAdmin", "LimitRuleAdmin", "PlanAdmin"]
