"""Starting a program with one posix_spawn and nothing else: each further exec costs tens of milliseconds in a guest that has just woken (TCG translates anew).

The child gets a session of its own, its cgroup before its first instruction (POSIX_SPAWN_SETCGROUP, glibc 2.39), working directory, standard descriptors or a
terminal, no other descriptors, default signals; and the credentials of the calling thread, which acts as the user with root left as saved uid. execve makes the
saved uid the effective one and, no id being root, empties every capability set.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from torpor.guest import libc
from torpor.guest.users import User, foreign, processes_as

_SETSIGDEF, _SETSIGMASK, _SETSID, _SETCGROUP = 0x04, 0x08, 0x80, 0x100
_ALL_SIGNALS = b"\xff" * 128
_NO_SIGNALS = b"\0" * 128
_L = libc.LIBC
HAS_CGROUP = hasattr(_L, "posix_spawnattr_setcgroup_np")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _find_program(name: str, path: str, cwd: str) -> str:
    """The program as the calling thread's user may run it. Raises OSError ENOENT or EACCES, as execvp would."""
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    candidates = [os.path.join(cwd, name)] if "/" in name else [os.path.join(cwd, folder, name) for folder in path.split(":")]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    code = errno.EACCES if any(os.access(candidate, os.F_OK) for candidate in candidates) else errno.ENOENT
    raise OSError(code, os.strerror(code), name)


def _check_directory(cwd: str) -> None:
    if not stat.S_ISDIR(os.stat(cwd).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), cwd)
    if not os.access(cwd, os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), cwd)


Vector = ctypes.Array[ctypes.c_char_p]


def vector(items: list[bytes]) -> Vector:
    """`items` as execve takes them."""
    return (ctypes.c_char_p * (len(items) + 1))(*items, None)


def _try(result: int, path: str | None = None) -> None:
    if result:
        raise OSError(result, os.strerror(result), path)


class Recipe:
    """Attributes and file actions of one spawn; generous buffers for glibc's opaque structures (336 and 80 bytes)."""

    def __init__(self, cgroup: int | None) -> None:
        self.attributes = ctypes.create_string_buffer(512)
        self.actions = ctypes.create_string_buffer(256)
        _try(_L.posix_spawnattr_init(self.attributes))
        _try(_L.posix_spawn_file_actions_init(self.actions))
        flags = _SETSIGDEF | _SETSIGMASK | _SETSID
        _try(_L.posix_spawnattr_setsigdefault(self.attributes, _ALL_SIGNALS))
        _try(_L.posix_spawnattr_setsigmask(self.attributes, _NO_SIGNALS))
        if cgroup is not None and HAS_CGROUP:
            flags |= _SETCGROUP
            _try(_L.posix_spawnattr_setcgroup_np(self.attributes, cgroup))
        _try(_L.posix_spawnattr_setflags(self.attributes, ctypes.c_short(flags)))

    def directory(self, cwd: str) -> None:
        _try(_L.posix_spawn_file_actions_addchdir_np(self.actions, os.fsencode(cwd)))

    def terminal(self, slave: str) -> None:
        # The first terminal a session leader opens becomes its controlling one.
        _try(_L.posix_spawn_file_actions_addopen(self.actions, 0, slave.encode(), os.O_RDWR, 0))
        _try(_L.posix_spawn_file_actions_adddup2(self.actions, 0, 1))
        _try(_L.posix_spawn_file_actions_adddup2(self.actions, 0, 2))

    def descriptors(self, stdin: int | None, stdout: int, stderr: int) -> None:
        if stdin is None:
            _try(_L.posix_spawn_file_actions_addopen(self.actions, 0, b"/dev/null", os.O_RDONLY, 0))
        else:
            _try(_L.posix_spawn_file_actions_adddup2(self.actions, stdin, 0))
        _try(_L.posix_spawn_file_actions_adddup2(self.actions, stdout, 1))
        _try(_L.posix_spawn_file_actions_adddup2(self.actions, stderr, 2))

    def spawn(self, program: str, argv: list[bytes], environment: Vector) -> int:
        """Raises OSError."""
        pid = ctypes.c_int(0)
        arguments = vector(argv)
        result = _L.posix_spawn(ctypes.byref(pid), os.fsencode(program), self.actions, self.attributes, arguments, environment)
        if result == errno.ENOEXEC:
            # A script without an interpreter line: execvp gives it to the shell.
            arguments = vector([b"sh", os.fsencode(program), *argv[1:]])
            result = _L.posix_spawn(ctypes.byref(pid), b"/bin/sh", self.actions, self.attributes, arguments, environment)
        _try(result, program)
        return pid.value

    def free(self) -> None:
        _L.posix_spawn_file_actions_destroy(self.actions)
        _L.posix_spawnattr_destroy(self.attributes)


def spawn(
    argv: list[str],
    env: dict[str, str],
    cwd: str,
    user: User,
    *,
    cgroup: int | None = None,
    terminal: str | None = None,
    stdin: int | None = None,
    stdout: int = -1,
    stderr: int = -1,
) -> int:
    """The new process's id. `cgroup`: a descriptor of its directory. `terminal`: the slave's path, else the three descriptors (stdin None: /dev/null), all
    above 2. To be called in a thread that may block. Raises OSError: ENOENT, EACCES, E2BIG, EAGAIN (no more processes), ENOMEM."""
    recipe = Recipe(cgroup)
    try:
        recipe.directory(cwd)
        if terminal is not None:
            recipe.terminal(terminal)
        else:
            recipe.descriptors(stdin, stdout, stderr)
        arguments = [os.fsencode(a) for a in argv]
        return _as_user(recipe, argv[0], arguments, environment_of(env), env.get("PATH", DEFAULT_PATH), cwd, user, cgroup is not None)
    finally:
        recipe.free()


def environment(user: User, home: str) -> dict[str, str]:
    """What every command finds in its environment."""
    return {"HOME": home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell, "PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}


def environment_of(env: dict[str, str]) -> Vector:
    return vector([os.fsencode(f"{k}={v}") for k, v in env.items()])


def _as_user(recipe: Recipe, name: str, arguments: list[bytes], environment: Vector, path: str, cwd: str, user: User, grouped: bool) -> int:
    needs_leave = grouped and foreign(user)
    with processes_as(user):
        _check_directory(cwd)
        program = _find_program(name, path, cwd)
        if needs_leave:
            # Only to be allowed into the cgroup, whose files are root's; the checks above were made without it.
            libc.raise_effective(libc.CAP_DAC_OVERRIDE)
        return recipe.spawn(program, arguments, environment)


class Prepared:
    """A spawn whose attributes, working directory and descriptors are settled ahead. `start` may be tried again after it failed; `free` it in the end."""

    def __init__(self, cgroup: int | None, cwd: str, stdout: int, stderr: int) -> None:
        self._cwd, self._grouped = cwd, cgroup is not None
        self._recipe = Recipe(cgroup)
        self._recipe.directory(cwd)
        self._recipe.descriptors(None, stdout, stderr)

    def start(self, argv: list[str], environment: Vector, path: str, user: User) -> int:
        """As `spawn`, on the calling thread. For root it leaves out the checks that tell the reasons of a failure apart: raises OSError, which then says
        only that it did not work."""
        arguments = [a.encode("utf-8", "surrogateescape") for a in argv]
        if foreign(user):
            return _as_user(self._recipe, argv[0], arguments, environment, path, self._cwd, user, self._grouped)
        name = argv[0]
        if "/" not in name:
            name = _find_program(name, path, self._cwd)
        return self._recipe.spawn(name, arguments, environment)

    def free(self) -> None:
        self._recipe.free()
