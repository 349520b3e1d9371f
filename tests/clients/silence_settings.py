"""The project's settings with silences that a test can wait for."""

from gateway.settings import *  # noqa: F403

SSE_KEEP_ALIVE_SECONDS = 0.15
WHOLE_KEEP_ALIVE_SECONDS = 0.3
STALL_SECONDS = 4
