"""The stub's, which no worker can load: a defect that the checks of `manage.py serve` do not see."""

import sys

from tests.server.stub_settings import *  # noqa: F403

if "gateway.server" in sys.orig_argv:
    raise RuntimeError("this worker cannot start")
