"""What the keeper has to say, in keeper.log: its standard error."""

from __future__ import annotations

import os


def say(text: str) -> None:
    """One line. A log that takes no more (its disk is full) loses it: the keeper must serve its children all the same."""
    try:
        os.write(2, f"keeper: {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return
