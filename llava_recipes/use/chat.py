"""A conversation with a model about images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from llava_recipes.data.images import BadImage, read_prepared
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import expanded, real_path
from llava_recipes.layouts import IMAGE
from llava_recipes.model.generate import Answerer, Decoding, Prompt
from llava_recipes.templates import Turn


@dataclass(frozen=True)
class _Shown:
    """An image of the conversation, encoded once: `features` float[K, D] serve every later answer."""

    features: Tensor
    num_tokens: int


class Chat:
    """The turns and images so far. A question that cannot be asked leaves them as they were.

    say  receives notes for the user, such as that an image tag was added
    """

    def __init__(self, answerer: Answerer, decoding: Decoding, *, say: Callable[[str], None]) -> None:
        self._answerer, self._decoding, self._say = answerer, decoding, say
        self._turns: list[Turn] = []
        self._shown: list[_Shown] = []
        self._waiting: list[_Shown] = []
        self._has_said_so = False
        self.is_plain = answerer.data.template == "plain"

    @property
    def num_waiting(self) -> int:
        """Images that the next question is about."""
        return len(self._waiting)

    def show(self, file: str) -> None:
        """Add an image to the next question. Raises RecipeError when it cannot be used."""
        # A user may name a link to any place.
        path = real_path(expanded(file))
        try:
            image = read_prepared(str(path.parent), path.name, self._answerer.prepare)
        except BadImage as error:
            message = f"the image {file} cannot be used"
            raise RecipeError.of(message, code="bad-image", found=error.reason) from None
        self._waiting.append(_Shown(self._answerer.look([image])[0], image.num_tokens))

    def reset(self) -> None:
        """Forget everything that was said and shown."""
        self._turns, self._shown, self._waiting = [], [], []

    def ask(self, text: str, listen: Callable[[str], None] | None = None) -> str:
        """The answer to a question, also passed to `listen` piece by piece.

        Raises RecipeError when the numbers of tags and images differ, the prompt does not fit, or the
        question is not UTF-8. After an interrupt the answer is what was generated until then.
        """
        if text != text.encode("utf-8", "replace").decode("utf-8"):
            raise RecipeError.of(
                "the question must be UTF-8", code="not-utf-8", hint="set the terminal to UTF-8"
            )
        question = self._question(text)
        # A captioner has no conversation: every question starts anew.
        turns, shown = ([], []) if self.is_plain else (self._turns, self._shown)
        turns, shown = [*turns, Turn("human", question)], [*shown, *self._waiting]
        prompt = self._prompt(turns, shown)
        said: list[str] = []

        def note(piece: str) -> None:
            said.append(piece)
            if listen is not None:
                listen(piece)

        try:
            answer = self._answerer.answer([prompt], self._decoding, listen=note)[0]
        except KeyboardInterrupt:
            self._keep(turns, shown, "".join(said))
            raise
        self._keep(turns, shown, answer)
        return answer

    def _keep(self, turns: list[Turn], shown: list[_Shown], answer: str) -> None:
        self._turns, self._shown, self._waiting = [*turns, Turn("gpt", answer.replace(IMAGE, ""))], shown, []

    def _question(self, text: str) -> str:
        num_tags, num_images = text.count(IMAGE), len(self._waiting)
        if self.is_plain:
            if not num_images:
                hint = "add one with --image, or with /image in a conversation"
                message = "this run has the template `plain`, which captions images, and no image was added"
                raise RecipeError.of(message, code="plain-needs-an-image", hint=hint)
            words = text.replace(IMAGE, "").strip()
            if words:
                self._say("this run has the template `plain`, which captions images: the question is ignored")
            return IMAGE * num_images
        if num_tags == num_images:
            return text
        if num_tags == 0:
            if not self._has_said_so:
                self._say(f"the question has no {IMAGE} tag: images are put in front of it")
                self._has_said_so = True
            return f"{IMAGE}\n" * num_images + text
        raise RecipeError(_tags_problem(num_tags, num_images))

    def _prompt(self, turns: Sequence[Turn], shown: Sequence[_Shown]) -> Prompt:
        try:
            input_ids = self._answerer.prompt_ids(turns)
        except ValueError as error:
            raise RecipeError.of(
                f"the conversation cannot be written: {error}", code="sample-does-not-fit-template"
            ) from None
        counts = [image.num_tokens for image in shown]
        num_tokens = self._answerer.num_tokens(input_ids, counts)
        problem = self._answerer.does_not_fit(num_tokens, counts, self._decoding)
        if problem is not None:
            raise RecipeError(problem)
        return Prompt(input_ids, tuple(image.features for image in shown))


def _tags_problem(num_tags: int, num_images: int) -> Problem:
    """A question whose numbers of `<image>` tags and images differ."""
    hint = f"write {IMAGE} once for every image, or not at all"
    if num_images == 0:
        hint = "add an image with --image FILE (or /image FILE), or leave the tag out"
    more = "images than tags" if num_images > num_tags else "tags than images"
    return Problem(
        f"the question has more {more}",
        code="images-and-tags-differ",
        found=f"{num_images} image{'s' * (num_images != 1)}, {num_tags} {IMAGE} tag{'s' * (num_tags != 1)}",
        hint=hint,
    )
