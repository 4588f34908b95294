"""`dev.py train-demo`: trains the demo models, one after another, from their checkpoints on."""

import argparse
import time
from pathlib import Path

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
PARTS = ("vae", "decoder", "clip", "vision", "judge", "unet", "inpaint")
STEPS = {
    "vae": 10_000,
    "decoder": 3_000,
    "clip": 2_000,
    "vision": 2_000,
    "judge": 1_500,
    "unet": 12_000,
    "inpaint": 5_000,
}
SCENES = {"unet": 40_000, "inpaint": 12_000}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py train-demo", description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="one part only; later parts must follow it")
    parser.add_argument("--steps", type=int, help="another budget than the default")
    parser.add_argument("--scenes", type=int, help="how many scenes the UNets' latents are prepared from")
    parser.add_argument("--rate", type=float, help="another peak learning rate than the part's own")
    parser.add_argument("--fresh", action="store_true", help="start from random weights, not from the committed ones")
    arguments = parser.parse_args(argv)
    for part in (arguments.part,) if arguments.part else PARTS:
        started = time.monotonic()
        train_part(part, arguments.steps, arguments.scenes, arguments.fresh, arguments.rate)
        print(f"{part}: done after {time.monotonic() - started:.0f} s, weights are in place", flush=True)
    return 0


def train_part(part: str, steps: int | None, scenes: int | None, fresh: bool, rate: float | None = None) -> None:
    """Trains one part on CUDA where there is one, and exports its averaged weights.

    Without a checkpoint it starts from the committed weights, if there are any; CLIP always starts afresh.
    """
    import torch

    from ..weights import WeightsError, load_part
    from . import clip, export, inpaint, judge, unet, vae, vision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    warm = None
    if not fresh and not (CHECKPOINTS / f"{part}.pt").exists():
        try:
            warm = {
                "vae": export.warm_vae,
                "judge": lambda: load_part("judge"),
                "unet": export.warm_unet,
                "inpaint": lambda: load_part("inpaint", matching=False),
            }.get(part, lambda: None)()
        except WeightsError as error:
            print(f"{part}: starts afresh. {error}", flush=True)
    budget = steps or STEPS[part]
    if part == "vae":
        export.export_vae(vae.train_vae(CHECKPOINTS, device, budget, warm, rate), vae.BATCH)
    elif part == "decoder":
        export.export_decoder(vae.train_decoder(CHECKPOINTS, device, budget, rate), vae.BATCH)
    elif part == "clip":
        export.export_clip(clip.train_clip(CHECKPOINTS, device, budget, warm, rate), clip.BATCH)
    elif part == "vision":
        export.export_vision(vision.train_vision(CHECKPOINTS, device, budget, rate), vision.BATCH)
    elif part == "judge":
        export.export_judge(judge.train_judge(CHECKPOINTS, device, budget, warm, rate), judge.BATCH)
    elif part == "unet":
        count = scenes or SCENES["unet"]
        run = unet.train_unet(CHECKPOINTS, device, budget, count, SCENES["inpaint"], warm, rate)
        export.export_unet(run, unet.BATCH)
    else:
        count = scenes or SCENES["inpaint"]
        export.export_inpaint(inpaint.train_inpaint(CHECKPOINTS, device, budget, count, warm, rate), unet.BATCH)
