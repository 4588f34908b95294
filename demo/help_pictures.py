"""`dev.py pictures`: paints the pictures of the help pages again, with the nodes themselves on the demo world."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..host.generate import encode_texts, generate
from ..nodes import all_nodes

DOCS = Path(__file__).resolve().parents[1] / "web" / "docs"
TILE, GAP, LINE = 160, 6, 18
Row = Sequence[tuple[str, Tensor]]


class World:
    """The demo models, loaded once, and nodes run as the graph runs them: widgets not given keep their defaults."""

    def __init__(self) -> None:
        self._nodes = {node.define_schema().node_id: node for node in all_nodes()}
        self.model, self.clip, self.vae, self.clip_vision, self.encoder = self.run("InlayDemoModels")
        self.empty = self.words("")

    def run(self, node: str, **inputs: Any) -> tuple:
        schema = self._nodes[node].define_schema()
        # A forced input has a default too, which the graph never gives it.
        widgets = [socket for socket in schema.inputs if not getattr(socket, "force_input", False)]
        given = {socket.id: socket.default for socket in widgets if getattr(socket, "default", None) is not None}
        given.update(inputs)
        if schema.is_input_list:
            given = {name: [value] for name, value in given.items() if value is not None}
        return self._nodes[node].execute(**given).args

    def words(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def draw(self, texts: Sequence[str], model: Any = None, seed: int = 0) -> Tensor:
        """New pictures of these texts, (B, H, W, 3)."""
        both = (encode_texts(self.clip, texts), encode_texts(self.clip, [""] * len(texts)))
        return self.vae.decode(generate(self.model if model is None else model, *both, seed, len(texts)))

    def job(self, seed: int, task: str = "fill", **options: Any) -> tuple:
        """image, mask, reference, reference_mask, caption"""
        return self.run("InlayDemoScene", seed=seed, task=task, **options)

    def paint(self, seed: int, model: Any = None, task: str = "fill", **settings: Any) -> tuple[tuple, Tensor]:
        job = self.job(seed, task)
        model = self.model if model is None else model
        both = {"positive": self.words(job[4]), "negative": self.empty}
        images, _ = self.run("InlayPaint", model=model, vae=self.vae, image=job[0], mask=job[1], **both, **settings)
        return job, images


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Labelled tiles of one height, row by row."""
    widths = [[round(TILE * picture.shape[1] / picture.shape[0]) for _, picture in row] for row in rows]
    width = max(sum(row) + GAP * len(row) for row in widths) + GAP
    page = Image.new("RGB", (width, len(rows) * (TILE + LINE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(page)
    for line, row in enumerate(rows):
        top, left = GAP + line * (TILE + LINE + GAP), GAP
        for (label, picture), across in zip(row, widths[line], strict=True):
            pixels = (picture.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
            page.paste(Image.fromarray(pixels).resize((across, TILE), Image.Resampling.LANCZOS), (left, top + LINE))
            draw.text((left, top + 2), label if len(label) < 27 else f"{label[:25]}..", fill="black")
            left += across + GAP
    return page


def main(argv: list[str]) -> int:
    from .help_edit_pages import PAGES as EDITING
    from .help_pages import PAGES as PAINTING
    from .help_training_pages import PAGES as TRAINING

    pages = {**PAINTING, **EDITING, **TRAINING}

    parser = argparse.ArgumentParser(prog="dev.py pictures", description=__doc__)
    parser.add_argument("pages", nargs="*", help="only these nodes")
    wanted = parser.parse_args(argv).pages or list(pages)
    if unknown := set(wanted) - set(pages):
        parser.error(f"there is no help page for {', '.join(sorted(unknown))}")
    with torch.inference_mode():
        world = World()
        for name in wanted:
            path = DOCS / f"{name}.jpg"
            sheet(pages[name](world)).save(path, quality=88, optimize=True)
            print(path.relative_to(DOCS.parents[1]), flush=True)
    return 0
