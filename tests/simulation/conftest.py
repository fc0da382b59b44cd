from __future__ import annotations

from hypothesis import settings

# The same as in tests/unit: the profile that is loaded last counts for all tests of a run.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("ci")
