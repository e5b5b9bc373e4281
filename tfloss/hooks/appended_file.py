r"""A file that grows by whole records: a record that doesn't fit on the disk leaves nothing. Host.

file = AppendedFile(path)
file.append(b"a line\n")        # OSError: the file is as long as before
"""

import contextlib
import os
from pathlib import Path

from tfloss.common.files import open_regular


class AppendedFile:
    """Appends to a file without a buffer, so that readers see everything at once.

    Args:
      path: The file. It is created by the first `append`; its directory must exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self._handle: int | None = None

    def append(self, data: bytes) -> None:
        """Appends all of the data, or nothing.

        A file that somebody has deleted is created again.

        Args:
          data: The data.

        Raises:
          OSError: It can't be written, or the path is no regular file. The file is as it was.
        """
        if self._handle is not None and os.fstat(self._handle).st_nlink == 0:
            self.close()
        if self._handle is None:
            self._handle = open_regular(self.path, os.O_WRONLY | os.O_APPEND)
        end = os.lseek(self._handle, 0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, end)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def sync(self) -> None:
        """Waits until the data are on the disk.

        Raises:
          OSError: They can't be written.
        """
        if self._handle is not None:
            os.fsync(self._handle)

    def close(self) -> None:
        """Closes the file. `append` opens it again."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)
