"""Small files of /proc and /sys in which Linux describes the machine; an unknown is None or missing, never 0."""

from pathlib import Path

from tiercast_profiles.units import KIB


def read_words(path: Path) -> str | None:
    """What a file says, without the space around it; None where it says nothing or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """A file that holds one number without a sign; None where it holds anything else."""
    words = read_words(path)
    return int(words) if words is not None and words.isdecimal() else None


def read_choice(path: Path) -> str | None:
    """The bracketed choice of a list such as ``always [madvise] never``."""
    words = read_words(path)
    return None if words is None else (words.partition("[")[2].partition("]")[0] or words)


def read_memory_info(path: Path) -> dict[str, int]:
    """``/proc/meminfo``: sizes in bytes, and counts of pages as they are."""
    sizes = {}
    for line in (read_words(path) or "").splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split()
        if fields and fields[0].isdecimal():
            sizes[name] = int(fields[0]) * (KIB if fields[1:] == ["kB"] else 1)
    return sizes
