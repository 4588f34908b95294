"""Labelled contact sheets."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor

TILE = 112
GAP = 4
LABEL = 150
HEAD = 46


def save_tile(folder: Path, row: int, column: str, label: str, picture: Tensor) -> None:
    """Keeps one picture (H, W, 3), or mask (H, W), in [0, 1] for the sheet of a run that may stop and resume."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    note = PngImagePlugin.PngInfo()
    note.add_text("label", label)
    Image.fromarray(np.asarray(pixels)).convert("RGB").save(_tile_path(folder, row, column), pnginfo=note)


def _tile_path(folder: Path, row: int, column: str) -> Path:
    return folder / f"{row:03d} {''.join(letter if letter.isalnum() else '-' for letter in column)}.png"


def compose_sheet(folder: Path, columns: Sequence[str], rows: int) -> Image.Image:
    """The kept tiles of rows 0 to rows - 1 under the columns' titles, each row's label at its left.

    Columns without any tile are left out: not every run measures all that a suite can.
    """
    columns = [name for name in columns if any(_tile_path(folder, row, name).exists() for row in range(rows))]
    size = (LABEL + len(columns) * (TILE + GAP), HEAD + rows * (TILE + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        left = LABEL + number * (TILE + GAP)
        draw.multiline_text((left, 4), textwrap.fill(column, 18), fill="black", spacing=1)
        for row in range(rows):
            path = _tile_path(folder, row, column)
            if not path.exists():
                continue
            top = HEAD + row * (TILE + GAP)
            with Image.open(path) as tile:
                if number == 0:
                    draw.multiline_text((4, top + 4), textwrap.fill(tile.info.get("label", ""), 22), fill="black")
                sheet.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
    return sheet
