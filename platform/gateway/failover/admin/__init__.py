"""The admin's pages of health: who is in rotation and why not, its history, and the switches."""

from gateway.failover.admin.deployments import DeploymentWithHealthAdmin
from gateway.failover.admin.health import DeploymentHealthAdmin, HealthEventAdmin

__all__ = ["DeploymentHealthAdmin", "DeploymentWithHealthAdmin", "HealthEventAdmin"]
