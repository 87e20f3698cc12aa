"""When a wait is worth telling someone who only follows a run's rounds."""

from __future__ import annotations

from fedbus_schemas.report import RunReport

from fedbus.rounds.reasons import WaitCode

# What every round waits for.
USUAL: tuple[WaitCode, ...] = ("updates", "aggregating")
# Workers and planner need some seconds to hear of one another.
TELL_AFTER_S = 5.0


class Waits:
    """Tells of each reason once, when it has lasted."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._told: set[str] = set()

    def news(self, report: RunReport, now: float) -> str | None:
        """The reason for which a run waits, with its code, when it has waited long and this was not told yet.

        Args:
            report: the run as it is now.
            now: seconds, by any clock.
        """
        over = report.state in ("finished", "aborted")
        if over or not report.reason or report.code in USUAL:
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        said = f"{report.reason} [{report.code}]"
        if now - self._since < TELL_AFTER_S or said in self._told:
            return None
        self._told.add(said)
        return said
