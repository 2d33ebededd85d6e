"""The hosts of an installation that is one process: they are objects in it."""

from __future__ import annotations

from collections.abc import Sequence

from torpor.model.errors import HostUnavailable
from torpor.ports.hosts import Host


class LocalHosts:
    """Implements ports.hosts.Hosts. A host is online from `add` to `remove`."""

    def __init__(self, *hosts: Host) -> None:
        self._hosts = {host.id: host for host in hosts}

    def add(self, host: Host) -> None:
        self._hosts[host.id] = host

    def remove(self, host_id: str) -> None:
        self._hosts.pop(host_id, None)

    def get(self, host_id: str) -> Host:
        host = self._hosts.get(host_id)
        if host is None:
            raise HostUnavailable(f"Host {host_id[:40] or 'without a name'} is not here.")
        return host

    def online(self) -> Sequence[Host]:
        return list(self._hosts.values())
