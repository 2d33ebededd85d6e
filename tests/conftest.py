"""For all tests: property tests try the same examples on every run, and may be as slow as the machine is busy; programs that tests start can be interrupted.

`--hypothesis-profile new` tries new examples, as `make soak` does.
"""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("same", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("new", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell in the background has it so, and who is started from here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
