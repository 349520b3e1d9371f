"""`make bench`: what Counterfoil adds to a direct call, with everything on. README.md says how to read it."""
