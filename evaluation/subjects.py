"""Novel subjects for suites that are about one picture of a thing. Tuning and reported seeds share none of them."""

from ..demo.scenes import Scenes
from ..demo.subjects import SUITE_SUBJECTS, draw_things, scenes_with_subjects
from ..demo.training.pictures import SEEDS


def subject_of(seed: int) -> int:
    """The number of the seed's subject: in the first half of the suites' for reported seeds, else in the second."""
    half = SUITE_SUBJECTS // 2
    return seed % half + (0 if seed >= SEEDS["held-out"] else half)


def with_subject_of(seed: int, scene: Scenes) -> Scenes:
    """The same scene with the seed's subject in the pose of the one that is there."""
    there, nothing = scene.things
    subject = draw_things([subject_of(seed)]).posed(there.centre, there.radius, there.angle, there.mirrored)
    return scene.with_things((subject, nothing), scene.count)


def scene_of_subject(seed: int, style: int | None = None, background: int | None = None) -> Scenes:
    """One scene with the seed's subject in it."""
    return scenes_with_subjects([subject_of(seed)], [seed], style=style, background=background)
