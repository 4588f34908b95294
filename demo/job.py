"""The `demo` command: one picture painted by a real headless ComfyUI, fetched over HTTP and measured."""

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .server import PACK, Server, ServerError

WORKFLOW = PACK / "workflows" / "api" / "text-paint.json"
OUT = PACK / "out"
# What the demo workflow's SaveImage nodes call their pictures, in filename_prefix.
SCENE, MASK, RESULT, BEFORE_PASTE = "scene", "mask", "result", "before-paste"


class Progress:
    """Prints a line for each node that starts, and a counter for the steps of long ones."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self._workflow = workflow
        self._start = time.monotonic()
        self._name = ""

    def __call__(self, event: dict[str, Any]) -> None:
        data = event["data"]
        if event["type"] == "executing" and data["node"] is not None:
            self._name = self._workflow.get(data["node"], {}).get("class_type", data["node"])
            self._say("")
        elif event["type"] == "progress" and data["value"] in (data["max"], *range(0, data["max"], 10)):
            self._say(f"{data['value']}/{data['max']}")

    def _say(self, text: str) -> None:
        print(f"  {time.monotonic() - self._start:6.1f} s  {self._name} {text}".rstrip(), flush=True)


def main(arguments: list[str], comfyui: Path, workflow: Path = WORKFLOW, out: Path = OUT) -> int:
    """Runs the job on that ComfyUI and writes its pictures to `out`; returns the exit code."""
    argparse.ArgumentParser("dev.py demo", description=__doc__).parse_args(arguments)
    try:
        _check_writable(out)
        if not workflow.is_file():
            raise FileNotFoundError(f"The demo's workflow {workflow} is missing: this checkout is not complete")
        graph = json.loads(workflow.read_text(encoding="utf-8"))
        begin = time.monotonic()
        print(f"Starting the server of {comfyui.name} ...", flush=True)
        with Server(comfyui, cpu=not _cuda_works()) as server:
            ready = time.monotonic()
            print(f"The server is up after {ready - begin:.1f} s; painting {workflow.stem} ...", flush=True)
            pictures = fetch(server, graph, server.run(graph, Progress(graph)))
            done = time.monotonic()
        files, figures = report(pictures, out)
    except (ServerError, OSError, ValueError) as error:
        print(f"dev.py demo: {str(error).removesuffix('.')}.", file=sys.stderr)
        return 1
    for name, value in {"seconds": f"{done - ready:.1f}", **figures}.items():
        print(f"{name + ':':<36}{value}")
    print(*files, sep="\n")
    return 0


def fetch(server: Server, graph: dict[str, Any], outputs: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """The saved pictures as 8-bit RGB arrays (H, W, 3), by the last part of their node's filename_prefix."""
    pictures: dict[str, list[np.ndarray]] = {}
    for node, output in outputs.items():
        prefix = graph[node]["inputs"].get("filename_prefix", node)
        for image in output.get("images", []):
            decoded = Image.open(io.BytesIO(server.picture(image))).convert("RGB")
            pictures.setdefault(str(prefix).rpartition("/")[2], []).append(np.asarray(decoded))
    return pictures


def report(pictures: dict[str, list[np.ndarray]], out: Path) -> tuple[list[Path], dict[str, str]]:
    """Writes every picture and the contact sheet; returns the paths and the figures. Raises ValueError if some lack."""
    for name in (SCENE, MASK, RESULT):
        if name not in pictures:
            raise ValueError(f"The workflow saved no picture called {name!r}, only {sorted(pictures)}")
    scene, mask = pictures[SCENE][0], pictures[MASK][0]
    differences = [_difference(scene, result) for result in pictures[RESULT]]
    files = []
    for name, images in {**pictures, "difference": differences}.items():
        for index, image in enumerate(images, 1):
            files.append(out / (f"{name}-{index}.png" if len(images) > 1 else f"{name}.png"))
            Image.fromarray(image).save(files[-1])
    rows = [(scene, mask, result, change) for result, change in zip(pictures[RESULT], differences, strict=True)]
    files.append(out / "contact-sheet.png")
    contact_sheet(rows, ("scene", "mask", "result", "difference x8")).save(files[-1])
    return files, figures(scene, mask, pictures[RESULT], pictures.get(BEFORE_PASTE, []))


def figures(scene: np.ndarray, mask: np.ndarray, results: list[np.ndarray], before: list[np.ndarray]) -> dict[str, str]:
    """Change inside the mask (mean, of 255), background PSNR (dB) before the paste, pixels changed outside it."""
    inside = mask.max(axis=-1) > 0
    change = [np.abs(result.astype(int) - scene)[inside].mean() for result in results]
    touched = [int((result != scene).any(axis=-1)[~inside].sum()) for result in results]
    found = {"mean change inside the mask": " ".join(f"{value:.1f}/255" for value in change)}
    if before:
        errors = [np.square(image.astype(float) - scene)[~inside].mean() for image in before]
        found["background PSNR before the paste"] = " ".join(f"{_psnr(error):.1f} dB" for error in errors)
    exact = "exact, bit for bit" if not any(touched) else f"{touched} of {int((~inside).sum())} pixels changed"
    return {**found, "background": exact}


def contact_sheet(rows: list[tuple[np.ndarray, ...]], titles: tuple[str, ...], tile: int = 256) -> Image.Image:
    """One row of tiles per entry under a line of titles, each picture scaled to the height of a tile."""
    gap, head = 8, 24
    widths = [
        max(tile, *(round(tile * row[column].shape[1] / row[column].shape[0]) for row in rows))
        for column in range(len(titles))
    ]
    size = (sum(widths) + gap * (len(titles) + 1), head + len(rows) * (tile + gap))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = gap
    for column, title in enumerate(titles):
        draw.text((left, 6), title, fill="black")
        for row, images in enumerate(rows):
            picture = images[column]
            width = round(tile * picture.shape[1] / picture.shape[0])
            picture = Image.fromarray(picture).resize((width, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, head + row * (tile + gap)))
        left += widths[column] + gap
    return sheet


def _difference(scene: np.ndarray, result: np.ndarray) -> np.ndarray:
    return np.clip(8 * np.abs(result.astype(int) - scene), 0, 255).astype(np.uint8)


def _psnr(error: float) -> float:
    return 10 * np.log10(255**2 / error) if error else float("inf")


def _check_writable(out: Path) -> None:
    probe = out / ".probe"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"Pictures cannot be written to {out} ({error.strerror}); make that folder writable") from None


def _cuda_works() -> bool:
    import torch

    return torch.cuda.is_available()
