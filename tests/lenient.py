"""A collator that lets samples in that teach nothing, as the original's does."""

from __future__ import annotations

from collections.abc import Sequence

from llava_recipes.data.collate import Collator, Expanded
from llava_recipes.data.dataset import Sample


class LenientCollator(Collator):
    """Makes the batch that Collator makes, and checks nothing."""

    def check(self, samples: Sequence[Sample], expanded: Sequence[Expanded]) -> None:
        pass
