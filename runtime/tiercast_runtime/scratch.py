"""A folder for files that only this process needs: removed at its end, or after a kill when the next one starts.

Who made a folder holds a lock on a file in it, which the kernel lets go of when the process ends, however that was.
A process id would say less: ids are given out again, and mean nothing in another container that works in the folder.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tiercast_profiles.errors import FileProblem

PREFIX = ".tiercast-probe-"
OWNER = "owner"


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, removed at the end, also after a failure; those of killed processes go first.

    Raises:
        FileProblem: the folder cannot be made.
    """
    try:
        remove_abandoned(parent)
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise FileProblem(f"{parent}: cannot be written ({error.strerror or error}); give another folder") from None
    try:
        with (made / OWNER).open("w", encoding="ascii") as stream:
            with contextlib.suppress(OSError):  # no locks on this file system: then nobody takes it for abandoned
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stream.write(f"{os.getpid()}\n")
                stream.flush()
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders in ``parent`` that this user's ended processes left there.

    A folder stays when its owner lives, is another user, or cannot be told: a folder without a written owner may have
    been made a moment ago.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / OWNER).open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(stream.fileno()).st_size:
                    shutil.rmtree(folder, ignore_errors=True)
