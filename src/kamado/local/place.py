"""Where a server of this user listens on this machine: a Unix socket in a folder that only the user can enter.

    $XDG_RUNTIME_DIR/kamado/server.sock        the usual place (platformdirs' run-time folder)
    $KAMADO_HOME/run-UID/server.sock           with KAMADO_HOME: a store of its own has a server of its own

The folder must be the user's and closed to others (0700) before anything in it is touched; where the system tells who
is at the other end of a connection, that must be the user too. On Linux the socket is reached through the folder's
descriptor, so that the folder that was checked is the one that is used, and no path is too long for a socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ServerError

NAME = "server.sock"
_DESCRIPTORS = "/proc/self/fd"
_CONNECT_SECONDS = 1.0
_BACKLOG = 128
_MOST_PATH_BYTES = 100  # of a socket where the folder's descriptor cannot stand for it: 104 on macOS


def socket_folder() -> Path:
    """The folder of the socket. It may not exist."""
    home = os.environ.get("KAMADO_HOME")
    if home:
        return Path(home).expanduser().absolute() / f"run-{os.getuid()}"
    import platformdirs

    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR it takes a folder below /tmp and says so; `Folder` looks whose that is.
        warnings.simplefilter("ignore")
        return platformdirs.user_runtime_path("kamado", appauthor=False)


class Folder:
    """The socket's folder, opened and found to be the user's alone. `close` it when no socket is opened any more."""

    def __init__(self, path: Path, *, make: bool) -> None:
        """`make`: it is made if it is not there, and closed to others. Raises FileNotFoundError, ServerError."""
        self.path = path
        try:
            if make:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ServerError(f"{path} cannot be used for the server's socket: {error.strerror or error}") from None
        try:
            self._check(make)
        except BaseException:
            self.close()
            raise

    def _check(self, make: bool) -> None:
        found = os.fstat(self.fd)
        if found.st_uid != os.getuid():
            raise ServerError(f"{self.path} belongs to another user, so the server's socket in it is not used")
        if stat.S_IMODE(found.st_mode) & 0o077:
            if not make:
                raise ServerError(
                    f"{self.path} is open to other users, so the server's socket in it is not used: chmod 700 it"
                )
            os.fchmod(self.fd, 0o700)

    @property
    def address(self) -> str:
        """The socket, as `bind` and `connect` take it while the folder is open. Raises ServerError."""
        if os.path.isdir(_DESCRIPTORS):
            return f"{_DESCRIPTORS}/{self.fd}/{NAME}"
        path = str(self.path / NAME)
        ServerError.when(len(os.fsencode(path)) > _MOST_PATH_BYTES, f"{path} is too long for a socket's name")
        return path

    @property
    def has_socket(self) -> bool:
        """Whether something has the socket's name."""
        try:
            os.stat(NAME, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Gives the descriptor back; may be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def has_sockets() -> bool:
    """Whether this system has what is needed."""
    return hasattr(socket, "AF_UNIX") and hasattr(os, "getuid")


def is_own_user(connection: socket.socket) -> bool:
    """Whether the other end of a connection, or who listens at it, is this user. Where the system does not say, the
    folder's mode has to do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())


def find() -> Folder | None:
    """The folder of a server that takes connections now; None: no server of this user runs here.

    Raises ServerError when there is one that cannot be used, with the reason.
    """
    if not has_sockets():
        return None
    try:
        folder = Folder(socket_folder(), make=False)
    except FileNotFoundError:
        return None
    try:
        if folder.has_socket and is_answered(folder):
            return folder
    except BaseException:
        folder.close()
        raise
    folder.close()
    return None


def is_answered(folder: Folder) -> bool:
    """Whether somebody listens at the folder's socket. Raises ServerError when that is another user, or nobody takes
    the connection within a second."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(folder.address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:  # also BlockingIOError: as many connections wait as may
            if isinstance(error, (TimeoutError, BlockingIOError)):
                raise ServerError("the server here takes no connections: it hangs, or is too busy") from None
            if error.errno in (errno.ENOTSOCK, errno.ECONNRESET):
                return False
            raise ServerError(f"the server here cannot be reached: {error.strerror or error}") from None
        ServerError.when(not is_own_user(probe), f"the server at {folder.path / NAME} is another user's: not used")
        return True


class Listener:
    """The socket of this process's server. `close` takes it away again."""

    def __init__(self, folder: Folder, listening: socket.socket) -> None:
        self.socket = listening
        self._folder = folder

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._folder.path / NAME

    def close(self) -> None:
        """No more connections. The name goes too, unless another server has it by now; may be called again."""
        self.socket.close()
        if self._folder.fd < 0:
            return
        with suppress(OSError, ServerError), _alone(self._folder):
            _clear(self._folder)
        self._folder.close()


def listen() -> Listener:
    """Listens at the user's place. What a server that is gone left there is taken away.

    Raises ServerError when that cannot be: another server is there, or the folder is not to be trusted.
    """
    ServerError.when(not has_sockets(), "this system has no sockets for it")
    try:
        folder = Folder(socket_folder(), make=True)
    except FileNotFoundError as error:
        raise ServerError(f"{socket_folder()} cannot be made: {error.strerror}") from None
    try:
        with _alone(folder):
            _clear(folder)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listening.bind(folder.address)
                os.chmod(NAME, 0o600, dir_fd=folder.fd)
                listening.listen(_BACKLOG)
                listening.set_inheritable(False)
                return Listener(folder, listening)
            except BaseException:
                listening.close()
                raise
    except OSError as error:
        folder.close()
        raise ServerError(f"{folder.path / NAME}: {error.strerror or error}") from None
    except BaseException:
        folder.close()
        raise


def _clear(folder: Folder) -> None:
    """Takes a socket away that nobody listens at. Raises ServerError when somebody does."""
    if folder.has_socket:
        ServerError.when(is_answered(folder), "another server of yours is there already")
        os.unlink(NAME, dir_fd=folder.fd)


@contextmanager
def _alone(folder: Folder) -> Iterator[None]:
    """Two servers that start at once do not take each other's socket for one that was left."""
    import fcntl

    fcntl.flock(folder.fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(folder.fd, fcntl.LOCK_UN)
