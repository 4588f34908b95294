"""The quality suites, one file each, which defines SUITE."""

from importlib import import_module

from ..study import Suite

MODULES = {
    "demo-models": "demo_models",
    "text-paint": "text_paint",
    "saliency": "saliency",
    "concept": "concept",
    "style": "style",
    "spin": "spin",
    "blended": "blended",
    "boxes": "boxes",
    "swap": "swap",
    "subject": "subject",
}


def load_suite(name: str) -> Suite:
    return import_module(f".{MODULES[name]}", __package__).SUITE
