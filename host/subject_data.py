"""What a subject is trained on: all views of its photos at once, or those of a folder as they are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.subject import draw_rows
from ..training.subject_settings import SubjectSettings
from .subject_folder import PictureFolder
from .subject_telling import Condition
from .subject_views import Item, Photo, Views, most_views, views_per_photo

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


# Items with a caption each ("" where a reference tells them) to data.
Build = Callable[[Sequence[Item], Sequence[str]], SubjectData]


class PhotoSource:
    """The photos of one subject and of its class; every view is made once, before the first step."""

    def __init__(
        self,
        own: Sequence[Photo],
        others: Sequence[Photo],
        prompts: Sequence[str],
        settings: SubjectSettings,
        build: Build,
    ) -> None:
        """prompts: of each photo, those of the class last; none where references tell the subject."""
        photos = [*own, *others]
        each = views_per_photo(settings, len(photos))
        items = [Item(number, view, photo) for number, photo in enumerate(photos) for view in range(each)]
        self.data = build(items, [prompts[item.number] if prompts else "" for item in items])
        groups = (torch.arange(len(own) * each), torch.arange(len(own) * each, len(items)))
        self.groups = [group for group in groups if len(group)]
        self.steps, self.count = settings.steps, len(items)

    def stretch(self, done: int) -> tuple[SubjectData, int]:
        """The data of the next steps and the step at which it ends."""
        return self.data, self.steps

    def fingerprint(self) -> list[Tensor | None]:
        views, condition = self.data.views, self.data.condition
        return [views.latents, *views.channels.values(), views.subject, condition.contexts, condition.empty]


class FolderSource:
    """The pictures of a folder, a few steps' views at a time, the same however often the run is resumed."""

    def __init__(self, folder: PictureFolder, prompt: str, settings: SubjectSettings, build: Build) -> None:
        """prompt: of pictures without a caption of their own."""
        self.folder, self.prompt, self.settings, self.build = folder, prompt, settings, build
        # Not fewer in a short run: a longer one that resumes it draws from the same.
        self.each = most_views(settings)
        self.count = len(folder) * self.each
        self.groups = [torch.arange(self.count)]
        self.steps = max(1, STRETCH // (settings.batch * settings.accumulation))

    def stretch(self, done: int) -> tuple[SubjectData, int]:
        settings = self.settings
        # Stretches begin at the same steps in a resumed run, so that the same pictures are encoded side by side.
        first = done // self.steps * self.steps
        end = min(first + self.steps, settings.steps)
        drawn = [
            draw_rows(settings.seed, step, part, self.groups, settings.batch)
            for step in range(first, end)
            for part in range(settings.accumulation)
        ]
        rows = torch.cat(drawn).unique()
        items, texts = [], []
        for number, view in ((row // self.each, row % self.each) for row in rows.tolist()):
            photo, caption = self.folder.photo(number)
            items.append(Item(number, view, photo))
            texts.append(caption or self.prompt)
        data = self.build(items, texts)
        return SubjectData(data.views, data.condition, data.context_of, rows), end

    def fingerprint(self) -> list[Tensor | None]:
        return [self.folder.fingerprint()]


Source = PhotoSource | FolderSource
