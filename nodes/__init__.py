"""The pack's nodes: schema and a short execute each."""

from importlib import import_module

_MODULES: tuple[str, ...] = (
    "demo",
    "rank",
    "measure",
    "region",
    "invert",
    "sampler",
    "paint",
    "paste",
    "saliency",
    "boxes",
    "concept_region",
    "swap",
    "clip_guidance",
    "train_concept",
    "blend",
    "extrapolate",
    "style_guidance",
    "reference",
    "load_subject",
    "train_subject",
)


def all_nodes() -> list[type]:
    return [node for name in _MODULES for node in import_module(f".{name}", __name__).NODES]
