"""`manage.py apply FILE`: providers, models, prices and tenants, stated in a YAML file (docs/operations.md).

document -> statements -> writer: YAML nodes that know their lines, then typed entries, then rows. What a file
does not mention stays as it is; a list that it does mention (deployments) is the whole list; prices are only
ever added. Layers above add what is theirs (extensions). Everything is written in one transaction, or nothing.
"""

from gateway.catalogue.apply.document import Problem, Refused
from gateway.catalogue.apply.extensions import extensions
from gateway.catalogue.apply.report import Report
from gateway.catalogue.apply.writer import apply

__all__ = ["Problem", "Refused", "Report", "apply", "extensions"]
