"""For all tests: property tests try the same examples on every run, and may be as slow as the machine is busy.

`--hypothesis-profile new` tries new examples, as `make soak` does.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("same", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("new", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")
