"""Names of files that stand for text from outside: instructions, tasks, whatever a user or a data set calls things."""

import re
import unicodedata
from hashlib import sha256
from pathlib import Path

LONGEST = 120  # characters, which leaves room for a suffix: file systems stop at 255 bytes
CLEAN = re.compile(r"[a-z0-9]+( [a-z0-9]+)*")

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # as a part of a path: what is left of s3://bucket/key


def is_address(path: Path) -> bool:
    """Was it a URL before it became a path? A folder of that name would be made without a word."""
    parts = path.parts
    return any(SCHEME.fullmatch(part) and not Path(*parts[: i + 1]).exists() for i, part in enumerate(parts))


def file_name(text: str) -> str:
    """A name without a suffix: lower-case letters, digits, `_` and `-` only, never empty, at most `LONGEST` long.

    Different texts have different names, on file systems that ignore capitals too. Plain lower-case words keep
    theirs, with `_` for each space, as LIBERO names its files; any other text gets a digest after a `-`.
    """
    if CLEAN.fullmatch(text) and len(text) <= LONGEST:
        return text.replace(" ", "_")
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    digest = sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]
    return f"{slug[: LONGEST - 11].rstrip('_') or 'unnamed'}-{digest}"
