"""Counterfoil: the OpenAI API for many tenants, with books that add up."""

__version__ = "0.1.0"
