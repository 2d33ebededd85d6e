"""Wake-ups between tasks and processes, behind ports.bus: in one process, or through Redis Streams."""

from torpor.bus.local import LocalBus
from torpor.bus.streams import RedisBus

__all__ = ["LocalBus", "RedisBus"]
