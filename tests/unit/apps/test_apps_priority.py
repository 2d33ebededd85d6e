"""A server's session gets its cores sooner, and nobody else's does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.apps.priority import NICE

AUTOGROUP = Path("/proc/self/autogroup")
PROGRAM = """
import pathlib
from torpor.apps.priority import come_first
path = pathlib.Path("/proc/self/autogroup")
text = lambda: path.read_text().rpartition(" ")[2].strip() if path.exists() else ""
before = text()
print(come_first(), before, text())
"""


@pytest.mark.parametrize("own", [True, False])
def test_it_is_only_its_own_session_that_weighs_more(*, own: bool) -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], start_new_session=own, capture_output=True, text=True, check=True)
    took, before, after = said.stdout.split(" ") if AUTOGROUP.exists() else ("False", "", "\n")
    may = own and AUTOGROUP.exists() and os.geteuid() == 0
    assert (took, after) == (str(may), f"{NICE if may else before}\n")
