"""What the models of open runs lack of the exact sums: a file for each, which the next model takes up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedbus.base.clock import random_token

# That of each run's last model and of the one before; each is as large as a model.
KEPT = 8


class Residuals:
    """The files, named by run and model; the one that was not used for longest goes first.

    Args:
        folder: of these files only; made when there is one to write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, run: str, model: str) -> Path:
        """Where a model's file is, if there is one."""
        return self._folder / f"{run}.{model}"

    @contextmanager
    def making(self, run: str) -> Iterator[Path]:
        """A file to write into, for `keep`; what is not kept is removed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self._folder / f"{run}.{random_token()}.part"
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    def keep(self, part: Path, run: str, model: str, base: str | None) -> None:
        """Take a model's file over. That of its base stays: a killed party must make the same model again."""
        part.replace(self.path(run, model))
        kept = (self.path(run, model), self.path(run, base or ""))
        for path in self._folder.glob(f"{run}.*"):
            if path not in kept and path.suffix != ".part":
                path.unlink(missing_ok=True)
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for oldest in files[:-KEPT]:
            oldest.unlink(missing_ok=True)

    def forget(self, run: str) -> None:
        """Delete a run's files."""
        for path in self._folder.glob(f"{run}.*"):
            path.unlink(missing_ok=True)
