"""The admin's pages of this app: providers, models, deployments, prices."""

from gateway.catalogue.admin.models import CatalogueModelAdmin, DeploymentAdmin
from gateway.catalogue.admin.prices import PriceAdmin
from gateway.catalogue.admin.providers import ProviderAdmin

__all__ = ["CatalogueModelAdmin", "DeploymentAdmin", "PriceAdmin", "ProviderAdmin"]
