"""How a request is refused: what is wrong, where, and what to do about it. The same words on every protocol."""

from dataclasses import dataclass, field

LONGEST = 80  # characters of a caller's value that a message repeats


@dataclass
class RefusedError(Exception):
    """A request that is not answered, and why."""

    status: int  # of HTTP
    what: str
    where: str
    do: str
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.do}"

    def body(self) -> dict[str, dict[str, str]]:
        """What a caller gets as JSON."""
        return {"error": {"what": self.what, "where": self.where, "do": self.do}}


def invalid(where: str, what: str, do: str) -> RefusedError:
    """For an observation that the policy cannot be asked about."""
    return RefusedError(422, what, where, do)


def busy(what: str, *, seconds: int = 1) -> RefusedError:
    """For what can be asked again soon."""
    return RefusedError(503, what, "the server", f"ask again in {seconds} s", {"Retry-After": str(seconds)})


def brief(value: object) -> str:
    """A caller's value as a message can repeat it: short, and in letters that every encoding has."""
    text = ascii(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
