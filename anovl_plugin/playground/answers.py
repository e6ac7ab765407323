"""What the playground answers to what a person enters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from anovl_plugin.config import cause_of
from anovl_plugin.hosts.anomalib import is_image_file
from anovl_plugin.playground.images import is_readable_path, keep_image, keep_together
from anovl_plugin.playground.results import render_error, render_image, render_result
from anovl_plugin.playground.session import Scored, Session, judge
from anovl_plugin.playground.words import Words

NAMES = ("A", "B")


class Answer(NamedTuple):
    """The answer for one set of words.

    Attributes:
        scored: Scores, to be judged by another threshold; ``None`` if there are none.
        page: HTML.
    """

    scored: Scored | None
    page: str


class Answers(NamedTuple):
    """The answers to what a person entered.

    Attributes:
        image: The image, as HTML.
        each: An answer for each set of words.
    """

    image: str
    each: list[Answer]


class Playground:
    """A session with the images that it offers.

    Args:
        session: Computes scores.
        images: Images to choose from, by name.
        folder: Where dropped images are kept.
    """

    def __init__(self, session: Session, images: Mapping[str, Path], folder: Path) -> None:
        self.session, self.images, self.folder = session, dict(images), folder

    @property
    def accelerator(self) -> str:
        """Lightning's name of the device."""
        kind = self.session.device.type
        return "gpu" if kind == "cuda" else kind

    def answer(
        self,
        choice: str,
        dropped: str | None,
        references: Sequence[str] | None,
        threshold: float,
        words: Sequence[Words],
    ) -> Answers:
        """Return what comes out for an image and one or more sets of words; mistakes are said in one line.

        Args:
            choice: Name of an image of the session.
            dropped: File that takes its place, if any.
            references: Files of reference images, if any.
            threshold: Score above which an image, or a pixel, is abnormal.
            words: Sets of words.
        """
        try:
            path = self._find_image(choice, dropped)
            folder = self._keep_references(references or [])
        except (OSError, ValueError) as error:
            problem = Answer(None, render_error(explain_problem(error)))
            return Answers("", [problem] * len(words))
        each = [
            self._answer(path, folder, threshold, one, name)
            for one, name in zip(words, NAMES[: len(words)], strict=True)
        ]
        scored = next((answer.scored for answer in each if answer.scored is not None), None)
        name = Path(dropped).name if dropped else choice
        return Answers("" if scored is None else render_image(scored, name), each)

    def move(self, scored: Scored | None, name: str, threshold: float) -> str | None:
        """Return a result with another threshold, without running the model; ``None`` if there is no result."""
        if scored is None:
            return None
        return render_result(judge(scored, threshold), name, self.accelerator)

    def _find_image(self, choice: str, dropped: str | None) -> Path:
        if dropped:
            return keep_image(Path(dropped), self.folder)
        if choice not in self.images:
            msg = "there is no image yet; choose one, or drop one"
            raise ValueError(msg)
        path = self.images[choice]
        return path if is_readable_path(path) else keep_image(path, self.folder)

    def _keep_references(self, references: Sequence[str]) -> Path | None:
        paths = [Path(each) for each in references]
        for path in paths:
            # In a folder of references, other files are passed over.
            if not is_image_file(path):
                msg = (
                    f"{path.name} cannot be a reference image, because its name is not that of an image file; remove it"
                )
                raise ValueError(msg)
        return keep_together(paths, self.folder) if paths else None

    def _answer(self, path: Path, folder: Path | None, threshold: float, words: Words, name: str) -> Answer:
        try:
            scored = self.session.score(path, words, folder)
            return Answer(scored, render_result(judge(scored, threshold), name, self.accelerator))
        except Exception as error:  # noqa: BLE001 - whatever it is, the page says so, and the server goes on
            return Answer(None, render_error(explain_problem(error)))


def explain_problem(error: Exception) -> str:
    """Return what went wrong in one line: our own messages as they are, others with their type."""
    if isinstance(error, ValueError | TypeError) and str(error):
        return str(error)
    return cause_of(error)
