"""How soon a server of ours gets a core while its microVMs want all of them.

Linux shares the cores among sessions first (sched(7), "The autogroup feature"); the VMMs are a group of their own beside them. A server that sleeps most of the
time then waits behind VMMs for their whole turns: with ten that start on two cores, up to 200 ms of a second. As a session of more weight it is served sooner.
"""

from __future__ import annotations

import os

from torpor.log import Log

log = Log()

NICE = -5
"""Three times the weight of another session: enough to be served soon, and little enough to leave the VMMs their share while a pause copies memory."""
_AUTOGROUP = "/proc/self/autogroup"


def come_first() -> bool:
    """Gives this process's session more weight; True when it has it. Not in a session that others began, a terminal's: it would be theirs as well, and stay.
    Nothing where the kernel has no such groups, where a service manager set weights of its own (they count instead), or without the privilege."""
    if os.getsid(0) != os.getpid():
        return False
    try:
        with open(_AUTOGROUP, "w", encoding="ascii") as file:
            file.write(str(NICE))
    except OSError as error:
        log.debug("no_priority", error=str(error))
        return False
    return True
