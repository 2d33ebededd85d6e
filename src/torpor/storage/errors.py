"""Where the databases' errors become ours. By code, never by message.

full disk, full table                      NoSpace
refused file, read-only, wrong password    NoPermission
no connection, lost, busy, deadlock        HostUnavailable (seconds to wait)
a unique value is taken                    Conflict
text or number the database cannot hold    InvalidInput
a damaged or foreign file                  Corrupt
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from torpor.model.errors import Conflict, Corrupt, HostUnavailable, InternalError, InvalidInput, NoPermission, NoSpace, TorporError

_SPACE = "Free space where the database lies, then try again."

_SQLITE: dict[str, type[TorporError]] = {
    "SQLITE_FULL": NoSpace,
    "SQLITE_TOOBIG": InvalidInput,
    "SQLITE_CONSTRAINT_UNIQUE": Conflict,
    "SQLITE_CONSTRAINT_PRIMARYKEY": Conflict,
    "SQLITE_PERM": NoPermission,
    "SQLITE_CANTOPEN": NoPermission,
    "SQLITE_READONLY": NoPermission,
    "SQLITE_AUTH": NoPermission,
    "SQLITE_BUSY": HostUnavailable,
    "SQLITE_LOCKED": HostUnavailable,
    "SQLITE_PROTOCOL": HostUnavailable,
    "SQLITE_IOERR": HostUnavailable,
    "SQLITE_IOERR_SHMSIZE": NoSpace,
    "SQLITE_CORRUPT": Corrupt,
    "SQLITE_NOTADB": Corrupt,
}
"""By SQLite's extended code, or else by the primary code it begins with."""

_POSTGRES: dict[str, type[TorporError]] = {
    "23505": Conflict,
    "22": InvalidInput,
    "54000": InvalidInput,
    "53100": NoSpace,
    "53": HostUnavailable,
    "08": HostUnavailable,
    "57": HostUnavailable,
    "58": HostUnavailable,
    "40": HostUnavailable,
    "55P03": HostUnavailable,
    "25P03": HostUnavailable,
    "3D000": HostUnavailable,
    "28": NoPermission,
    "42501": NoPermission,
    "XX001": Corrupt,
    "XX002": Corrupt,
}
"""By SQLSTATE, or else by its class (the first two digits)."""


@contextmanager
def translated() -> Iterator[None]:
    """Around calls of a database, and of nothing else."""
    try:
        yield
    except TorporError:
        raise
    except exc.DBAPIError as error:
        raise _translate(error, error.orig) from error
    except exc.TimeoutError as error:
        raise HostUnavailable("Every connection to the database is in use.", 1) from error
    except sqlite3.Error as error:
        raise _translate(error, error) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise InvalidInput(f"The database cannot hold a value: {error}.") from error
    except (OSError, TimeoutError) as error:
        raise HostUnavailable(f"The database cannot be reached ({error or type(error).__name__}).") from error
    except exc.SQLAlchemyError as error:
        raise InternalError(f"The database refused a statement ({error}).") from error


@contextmanager
def driver_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Around calls of a PostgreSQL driver itself, inside of `translated`: its errors have a SQLSTATE, or are of a connection that is no good any more."""
    try:
        yield
    except kinds as error:
        raise _translate(exc.InterfaceError("", None, error), error) from error


def _translate(error: Exception, cause: BaseException | None) -> TorporError:
    if isinstance(cause, sqlite3.Error):
        name = getattr(cause, "sqlite_errorname", "")
        found = _SQLITE.get(name) or _SQLITE.get("_".join(name.split("_")[:2]))
        return _worded(found, f"{cause} ({name or type(cause).__name__})")
    state = getattr(cause, "sqlstate", None) or ""
    found = _POSTGRES.get(state) or _POSTGRES.get(state[:2])
    if found is None and isinstance(error, exc.DBAPIError) and (error.connection_invalidated or isinstance(error, exc.InterfaceError)):
        found = HostUnavailable
    return _worded(found, f"{cause} ({state or type(cause).__name__})")


def _worded(kind: type[TorporError] | None, words: str) -> TorporError:
    if kind is NoSpace:
        return NoSpace(f"The database has no space left: {words}.", mend=_SPACE)
    if kind is HostUnavailable:
        return HostUnavailable(f"The database cannot be used at present: {words}.", 2)
    if kind is Conflict:
        return Conflict("The name or id is taken.")
    if kind is None:
        return InternalError(f"The database refused a statement: {words}.")
    return kind(f"The database refused: {words}.")
