"""Files where a job may have put something else: a link, a pipe, a device.

Neither the file nor the folder that it lies in may be a link. The file is opened relative to the open folder, so that
nothing can be put in the folder's place between the look and the opening.
"""

import os
import stat
from pathlib import Path


def open_folder(path: Path) -> int:
    """A descriptor of a real folder. Raises OSError for a link in its place, or anything else."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_regular(path: Path) -> int:
    """A descriptor, for reading, of a regular file in a real folder. Raises OSError for anything else."""
    folder = open_folder(path.parent)
    try:
        fd = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file")
    return fd
