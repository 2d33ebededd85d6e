"""Wake-ups between tasks and processes, behind ports.bus: in one process (local), or through Redis Streams (streams, whose client takes its time to import)."""

from torpor.bus.local import LocalBus

__all__ = ["LocalBus"]
