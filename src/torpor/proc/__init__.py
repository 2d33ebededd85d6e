"""The only room that starts processes: argv, scrubbed environment, limits, jail, always reaped.

daemon --- SOCK_SEQPACKET ---> keeper (keeper/, one per home) --- clone, confine, exec ---> microVMs
   \\--- tools.run ---> short-lived tools
"""

from torpor.proc.processes import LocalProcesses

__all__ = ["LocalProcesses"]
