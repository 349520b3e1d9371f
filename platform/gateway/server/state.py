"""What this process is doing, for /readyz."""

draining = False
