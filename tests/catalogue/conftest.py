from tests.cast import acme, admin, browser, finance, globex

__all__ = ["acme", "admin", "browser", "finance", "globex"]
