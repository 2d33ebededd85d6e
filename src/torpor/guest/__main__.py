"""`python -m torpor.guest`: PID 1 of a microVM; with three arguments (socket, user, home) an agent for tests on a host."""

from __future__ import annotations

import sys

from torpor.guest.main import main, serve_socket

if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve_socket(sys.argv[1], sys.argv[2], sys.argv[3])
    else:
        main()
