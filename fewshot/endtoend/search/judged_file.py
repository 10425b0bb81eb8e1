"""Answers of supernets: a line for each composition, on disk as soon as it is known."""

import json
from pathlib import Path

from cache.errors import UserError
from cache.files.atomic import replacing
from fewshot.endtoend.search.space import Candidate
from fewshot.endtoend.search.strategies import Fitness


class JudgedFile:
    """Candidate -> its fitness, in a file that continues.

    Args:
        path: Of the file; made where there is none.
        about: All that a fitness depends on.

    Raises:
        UserError: The file is of something else.
    """

    def __init__(self, path: Path, about: str) -> None:
        self.path, self._known = path, dict[Candidate, Fitness]()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        whole = [json.dumps({"about": about})]
        if lines and lines[0] != whole[0]:
            raise UserError(f"{path} is of another search; remove it, or give another --out")
        for line in lines[1:]:
            try:
                widths, accuracy, loss = json.loads(line)
                self._known[tuple(map(int, widths))] = float(accuracy), float(loss)
            except (TypeError, ValueError):  # cut off by a kill: judged again
                break
            whole.append(line)
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")

    def get(self, candidate: Candidate) -> Fitness | None:
        """The fitness, if it is known."""
        return self._known.get(candidate)

    def add(self, candidate: Candidate, fitness: Fitness) -> None:
        """Keep a fitness."""
        self._known[candidate] = fitness
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([candidate, *fitness]) + "\n")
