"""The admin's pages of this app: tenants, and the keys that they call with."""

from tenants.admin.keys import APIKeyAdmin
from tenants.admin.tenants import TenantAdmin

__all__ = ["APIKeyAdmin", "TenantAdmin"]
