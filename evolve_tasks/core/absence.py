"""For how long something has been missing, as far as anybody has looked."""

from __future__ import annotations

# Nobody looks while all goes well. What was missing before that says nothing of what is missing
# now: it must have been there meanwhile.
SELDOM_S = 60.0


class Absence:
    """Remembers since when things have been missing.

    Example:
        >>> absence = Absence()
        >>> absence.missing_s("GPU", 10.0), absence.missing_s("GPU", 15.0)
        (0.0, 5.0)
        >>> absence.found("GPU")
        >>> absence.missing_s("GPU", 20.0)
        0.0
    """

    __slots__ = ("_looks",)

    def __init__(self) -> None:
        self._looks: dict[str, tuple[float, float]] = {}  # the first in a row, and the last

    def found(self, name: str) -> None:
        """Somebody looked, and it was there."""
        self._looks.pop(name, None)

    def missing_s(self, name: str, now_s: float) -> float:
        """Somebody looked, and it was not there.

        Args:
            name: of what is missing.
            now_s: seconds on a clock that never goes back.

        Returns:
            For how many seconds it has been missing, each time that somebody looked; 0 if nobody
            had looked for a minute.
        """
        since, last = self._looks.get(name, (now_s, now_s))
        if now_s - last > SELDOM_S:
            since = now_s
        self._looks[name] = since, now_s
        return now_s - since
