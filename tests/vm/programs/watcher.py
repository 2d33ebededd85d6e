"""Runs in the guest from before a fork: every 2 ms a line with what a program can tell of its identity. In a clone no line may show the old one after the
machine was woken: these steps run through the moment of the fork.

usage: watcher.py FILE, in tmpfs. Says "ready" after ten lines; ends forty lines after its generation has changed.
"""

import os
import sys
import time

first, left = "", 40
with open(sys.argv[1], "w", buffering=1) as log:
    lines = 0
    while left:
        with open("/run/torpor/generation") as file:
            generation = file.read().strip()
        with open("/run/torpor/sandbox-id") as file:
            sandbox = file.read().strip()
        log.write(f"{time.monotonic():.4f} {generation} {time.time():.4f} {os.urandom(8).hex()} {os.uname().nodename} {sandbox}\n")
        first = first or generation
        lines += 1
        if lines == 10:
            print("ready", flush=True)
        if generation != first:
            left -= 1
        time.sleep(0.002)
