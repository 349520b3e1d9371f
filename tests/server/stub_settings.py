"""The project's settings with views whose behaviour the tests choose. No database: the transport needs none."""

from gateway.settings import *  # noqa: F403

ROOT_URLCONF = "tests.server.stub_urls"
# Seconds of silence that a test can wait for; only views that are asked to `keep` speak.
SSE_KEEP_ALIVE_SECONDS = 0.15
WHOLE_KEEP_ALIVE_SECONDS = 0.3
