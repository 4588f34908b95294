from comfy_api.latest import io

from ..guidance.extrapolation import SIDES, seam_step
from ..host.extrapolation import LARGEST, ExtrapolateSettings, extrapolate
from ..host.paint_settings import SAMPLER_NAMES
from .widgets import cfg_widget, feather_widget, scheduler_widget, seed_widget


def _level(name: str, default: float, tooltip: str, low: float = 0.01) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=low, max=1.0, step=0.01, advanced=True, tooltip=tooltip)


class Extrapolate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayExtrapolate",
            display_name="Extrapolate Picture",
            category="inlay/blend",
            description="Grows a picture beyond its sides, strip by strip, each side by a prompt of its own; the "
            "original's pixels stay exactly as they are (Blended Diffusion).",
            search_aliases=["outpaint", "uncrop", "extend picture", "expand canvas", "panorama"],
            inputs=[
                io.Model.Input("model", tooltip="The model that paints, with any patches on it."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="One picture or a batch, of any size."),
                *(
                    io.Int.Input(
                        side,
                        default=128 if side == "right" else 0,
                        min=0,
                        max=LARGEST,
                        tooltip=f"Pixels to add at the {side}. Any number; 0 leaves this side alone.",
                    )
                    for side in SIDES
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the new area shows, on sides without a prompt of their own. May be empty.",
                ),
                *(
                    io.String.Input(
                        f"{side}_prompt",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip=f"What the {side} shows. Empty: the prompt.",
                    )
                    for side in SIDES
                ),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="Sampling steps of each strip."),
                cfg_widget("How strictly to follow the prompts."),
                seed_widget("Of the first strip; each further one takes the next seed.", control_after_generate=True),
                _level(
                    "first_level",
                    0.2,
                    "Where the first of four strips starts. Each is mirrored first; low levels keep the mirror image.",
                ),
                _level("last_level", 0.75, "Where its fourth strip starts; the levels rise in between."),
                _level("clean_up", 0.2, "The level of the pass over each four strips that smooths them. 0: none.", 0.0),
                io.Combo.Input(
                    "sampler",
                    options=SAMPLER_NAMES,
                    default="ddim",
                    advanced=True,
                    tooltip="As at Paint Into Mask: ddim, ddpm and euler put the background back after each step.",
                ),
                scheduler_widget(advanced=True),
                feather_widget("Pixels of the soft transition, inside the new area only.", advanced=True),
                io.String.Input(
                    "negative", default="", multiline=True, advanced=True, tooltip="What to avoid, on every side."
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The other half of clip's CLIP: guides each strip by its prompt too. clip then needs its "
                    "text_projection.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.1,
                    min=0.0,
                    max=100000.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Of the guidance by CLIP: the share of the noise that changes.",
                ),
                io.Boolean.Input(
                    "match_colour",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Lead each strip's colours up to those of the edge that it continues.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The grown picture."),
                io.Mask.Output("mask", display_name="mask", tooltip="The new area: 1 inside, 0 on the original."),
                io.Float.Output(
                    "seam",
                    display_name="seam",
                    tooltip="How much the mean colours on the two sides of the seam differ, in 255ths. In smooth "
                    "places an edge shows from about 3.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, image, left, right, top, bottom, prompt, negative, clip_vision=None, **rest
    ) -> io.NodeOutput:
        widths = dict(zip(SIDES, (left, right, top, bottom), strict=True))
        own = {side: rest.pop(f"{side}_prompt", "") for side in SIDES}
        prompts = {side: text if text.strip() else prompt for side, text in own.items()}
        settings = ExtrapolateSettings(**rest)
        grown, new = extrapolate(model, clip, vae, image, widths, prompts, settings, negative, clip_vision)
        return io.NodeOutput(grown, new, float(seam_step(grown, new).mean()))


NODES = [Extrapolate]
