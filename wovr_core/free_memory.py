"""How much memory a process may still take: the one count for whoever asks before hours are spent. Needs no torch."""

from pathlib import Path

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that a new process may take; a container's limit counts, files that it holds in its cache do not."""
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = (CGROUP / f"memory.{name}" for name in ("max", "current"))
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        usage = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        cached = int(usage["active_file"]) + int(usage["inactive_file"])  # such as weights that were read
        free = min(free, int(most) - int(used.read_text()) + cached)
    return free
