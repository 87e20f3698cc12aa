"""What the models of open runs lack of the exact sums: a file for each, which the next model takes up.

The aggregators of a stack share them, and one that hung may still be in a round that is long over. So a
file's name has its round, and who keeps one deletes older ones only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedbus.base.clock import random_token
from fedbus_schemas.ids import RoundRef


class Residuals:
    """The files `<run>.<round>.<model>`: of an open run, those of its last model and of the one before.

    Args:
        folder: of these files only; made when there is one to write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, ref: RoundRef, model: str) -> Path:
        """Where the file is of a model that a round made, if there is one."""
        return self._folder / f"{ref.run}.{ref.number}.{model}"

    @contextmanager
    def making(self, ref: RoundRef) -> Iterator[Path]:
        """A file to write into, for `keep`; what is not kept is removed."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self.path(ref, f"{random_token()}.part")
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    def keep(self, part: Path, ref: RoundRef, model: str, base_round: int) -> None:
        """Take a model's file over, and delete what is older than that of its base.

        That of the base stays: a killed party must make the same model again.

        Args:
            part: as `making` gave it.
            ref: the round that made the model.
            model: its digest.
            base_round: the round that made its base.
        """
        with suppress(FileNotFoundError):  # the run went on without us, or ended: nobody needs it
            part.replace(self.path(ref, model))
        for path in self._folder.glob(f"{ref.run}.*"):
            number = path.name.split(".")[1]
            if number.isdecimal() and int(number) < base_round:
                path.unlink(missing_ok=True)

    def runs(self) -> set[str]:
        """Runs of which there are files."""
        return {path.name.partition(".")[0] for path in self._folder.glob("*")}

    def forget(self, run: str) -> None:
        """Delete a run's files."""
        for path in self._folder.glob(f"{run}.*"):
            path.unlink(missing_ok=True)
