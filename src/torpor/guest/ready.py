"""The next command, prepared while nothing hurries: its cgroup, its pipes, the recipe of its spawn. What is left for the request is to start it."""

from __future__ import annotations

import os
from typing import Any

from torpor.guest import spawn, users
from torpor.guest.cgroups import Cgroups, Group
from torpor.guest.loop import Loop
from torpor.guest.stdio import Pipes

Json = dict[str, Any]


class Ready:
    """For a command of `user` in `home` (or / where that is no directory), without terminal and input. Raises OSError; nothing is left then."""

    def __init__(self, loop: Loop, groups: Cgroups, user: users.User, home: str) -> None:
        self.cwd = home if os.path.isdir(home) else "/"
        self._user, self._home = user, home
        self._environment = spawn.environment_of(spawn.environment(user, home))
        self.group: Group | None = None
        self.pipes = Pipes(loop, {})
        try:
            self.group = groups.take()
            self._prepared = spawn.Prepared(self.group.fd if self.group is not None else None, self.cwd, *self.pipes.child)
        except OSError:
            self._close(groups)
            raise

    def serves(self, user: users.User, home: str) -> bool:
        return user == self._user and home == self._home

    def fits(self, args: Json, user: users.User, home: str) -> bool:
        """Whether this is what an exec request's `args` ask for."""
        return self.serves(user, home) and (args.get("cwd") or home) == self.cwd and not args.get("terminal") and not args.get("stdin")

    def start(self, argv: list[str], extra: dict[str, str]) -> int:
        """The new process's id. Blocks until it has begun its program: only for when no process of a user's could hold that up. Raises OSError; it may be tried
        again then."""
        environment, path = self._environment, spawn.DEFAULT_PATH
        if extra:
            variables = spawn.environment(self._user, self._home) | extra
            environment, path = spawn.environment_of(variables), variables["PATH"]
        return self._prepared.start(argv, environment, path, self._user)

    def free(self) -> None:
        """The recipe only: the group and the pipes are the command's by now."""
        self._prepared.free()

    def discard(self, groups: Cgroups) -> None:
        """All of it, never used."""
        self.free()
        self._close(groups)

    def _close(self, groups: Cgroups) -> None:
        self.pipes.close_child()
        self.pipes.close_ours()
        if self.group is not None:
            groups.give(self.group)
