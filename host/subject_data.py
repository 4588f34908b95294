"""What a subject is trained on: all views of its photos at once, or those of a folder as they are needed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..training.subject import draw_rows
from ..training.subject_settings import SubjectSettings
from .fingerprints import tensors_id
from .subject_folder import PictureFolder
from .subject_photos import Photo
from .subject_telling import Condition
from .subject_views import Item, Views, views_each

# Views of a folder in memory at a time.
STRETCH = 128


@dataclass(frozen=True)
class SubjectData:
    """context_of: (n,), the condition's row of each view. rows: (n,) sorted, the numbers under which the training knows
    the views; None where they are all there are.
    """

    views: Views
    condition: Condition
    context_of: Tensor
    rows: Tensor | None = None

    def at(self, rows: Tensor) -> Tensor:
        """Where these rows of the whole data set are in this part."""
        return rows if self.rows is None else torch.searchsorted(self.rows, rows)


Build = Callable[[Iterable[Item]], SubjectData]


def drawn_rows(settings: SubjectSettings, groups: Sequence[Tensor], steps: range) -> Tensor:
    """Those of the data set's rows that these steps need, (n,) sorted."""
    needed = torch.zeros(sum(map(len, groups)), dtype=torch.bool)
    for step in steps:
        for part in range(settings.accumulation):
            needed[draw_rows(settings.seed, step, part, groups, settings.batch)] = True
        if needed.all():
            break
    return needed.nonzero()[:, 0]


class PhotoSource:
    """The photos of one subject and of its class; every view that the run needs is made before the first step."""

    def __init__(
        self,
        own: Sequence[Photo],
        others: Sequence[Photo],
        prompts: Sequence[str],
        settings: SubjectSettings,
        build: Build,
    ) -> None:
        """prompts: of each photo, those of the class last; none where references tell the subject."""
        self.own, self.others = own, others
        photos, each = [*own, *others], views_each(settings)
        # Not fewer in a short run: a longer one that resumes it draws from the same.
        groups = (torch.arange(len(own) * each), torch.arange(len(own) * each, len(photos) * each))
        self.groups = [group for group in groups if len(group)]
        rows = drawn_rows(settings, self.groups, range(settings.steps))
        items = [
            Item(row // each, row % each, photos[row // each], prompts[row // each] if prompts else "")
            for row in rows.tolist()
        ]
        data = build(items)
        self.data, self.steps = SubjectData(data.views, data.condition, data.context_of, rows), settings.steps

    def stretch(self, done: int) -> tuple[SubjectData, int]:
        """The data of the next steps and the step at which it ends."""
        return self.data, self.steps

    def fingerprint(self) -> dict[str, str]:
        """What the run learns from, by what users call it."""
        return {
            "images": tensors_id([photo.picture for photo in self.own]),
            "masks": tensors_id([photo.mask for photo in self.own]),
            "class_images": tensors_id([photo.picture for photo in self.others]),
        }


class FolderSource:
    """The pictures of a folder, a few steps' views at a time, the same however often the run is resumed."""

    def __init__(self, folder: PictureFolder, prompt: str, settings: SubjectSettings, build: Build) -> None:
        """prompt: of pictures without a caption of their own."""
        self.folder, self.prompt, self.settings, self.build = folder, prompt, settings, build
        self.each = views_each(settings)
        self.groups = [torch.arange(len(folder) * self.each)]
        self.steps = max(1, STRETCH // (settings.batch * settings.accumulation))

    def stretch(self, done: int) -> tuple[SubjectData, int]:
        # Stretches begin at the same steps in a resumed run, so that the same pictures are encoded side by side.
        first = done // self.steps * self.steps
        end = min(first + self.steps, self.settings.steps)
        rows = drawn_rows(self.settings, self.groups, range(first, end))
        data = self.build(self._items(rows.tolist()))
        return SubjectData(data.views, data.condition, data.context_of, rows), end

    def fingerprint(self) -> dict[str, str]:
        return self.folder.fingerprint()

    def _items(self, rows: Sequence[int]) -> Iterator[Item]:
        """One picture in memory at a time: a stretch of large ones would not fit."""
        for number, group in groupby(rows, key=lambda row: row // self.each):
            photo, caption = self.folder.photo(number)
            for row in group:
                yield Item(number, row % self.each, photo, caption or self.prompt)


Source = PhotoSource | FolderSource
