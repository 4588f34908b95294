"""Widgets that several nodes have, with the same range and default on each."""

from typing import Any

from comfy_api.latest import io

from ..host.paint_settings import SCHEDULER_NAMES
from ..host.precision import PRECISIONS


def seed_widget(tooltip: str, **more: Any) -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip=tooltip, **more)


def cfg_widget(tooltip: str) -> io.Input:
    return io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def scheduler_widget(**more: Any) -> io.Input:
    return io.Combo.Input(
        "scheduler", options=SCHEDULER_NAMES, default="normal", tooltip="How the noise levels lie.", **more
    )


def feather_widget(tooltip: str, **more: Any) -> io.Input:
    return io.Int.Input("feather", default=4, min=0, max=256, tooltip=tooltip, **more)


def precision_widget(what: str) -> io.Input:
    return io.Combo.Input(
        "precision",
        options=list(PRECISIONS),
        default="auto",
        optional=True,
        advanced=True,
        tooltip=f"{what} auto: as it is loaded.",
    )


def checkpointing_widget() -> io.Input:
    return io.Boolean.Input(
        "checkpointing",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Compute the UNet's blocks again in backward: much less memory, about a third more time.",
    )


def strength_unit_widget(raw: str) -> io.Input:
    """raw: what the strength is then."""
    return io.Combo.Input(
        "strength_unit",
        options=["normalised", "raw"],
        default="normalised",
        advanced=True,
        tooltip=f"Normalised carries over between models and noise levels; raw is {raw}.",
    )


def range_widgets(starts: str = "Where it starts.", ends: str = "Where it ends.") -> list[io.Input]:
    """start_percent and end_percent, shares of sampling."""
    return [
        io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, advanced=True, tooltip=tooltip)
        for name, default, tooltip in (("start_percent", 0.0, starts), ("end_percent", 1.0, ends))
    ]
