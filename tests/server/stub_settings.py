"""The project's settings with views whose behaviour the tests choose. No database: the transport needs none."""

from gateway.settings import *  # noqa: F403

ROOT_URLCONF = "tests.server.stub_urls"
