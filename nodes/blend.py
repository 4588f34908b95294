from dataclasses import fields

from comfy_api.latest import io

from ..host.blending import ALGORITHMS, BlendModels, BlendTexts, blend_pictures, blend_settings
from ..host.clip_guidance_patch import ClipOptions
from .clip_guidance import ClipGuidance
from .paint import Paint
from .widgets import cfg_widget, scheduler_widget, seed_widget

# Widgets that mean here what they mean at the two nodes this one is made of.
_OF_GUIDANCE = ("strength", "mode", "augmentations", "view", "strength_unit", "distance", "range_weight", "mix")
_OF_PAINT = ("feather", "colour_match", "at_once", "eta", "progressive")
# Behind all others: a saved graph keeps its widgets' values by their order.
_OF_PAINT_LAST = ("repeats", "start")


def _widgets(node: type[io.ComfyNode], names: tuple[str, ...]) -> list[io.Input]:
    by_name = {socket.id: socket for socket in node.define_schema().inputs}
    return [by_name[name] for name in names]


class Blend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayBlend",
            display_name="Blend Edit",
            category="inlay/blend",
            description="Adds, alters, replaces or removes something in the mask by words: CLIP guidance, the "
            "picture's background blended in at every step, and the best of several candidates (Blended Diffusion).",
            search_aliases=["blended diffusion", "blended latent diffusion", "local edit", "text edit", "inpaint"],
            inputs=[
                io.Model.Input("model", tooltip="The model that paints, with any patches on it."),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder of clip_vision's CLIP, with its text_projection. It also tells the model "
                    "the text, unless `positive` does.",
                ),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.ClipVision.Input("clip_vision", tooltip="CLIP's vision model, the other half of the text encoder."),
                io.Image.Input("image", tooltip="One picture or a batch, of any size."),
                io.Mask.Input("mask", tooltip="Where to edit: white. Not the whole picture."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What the place should show. Empty: what is there is removed; then say at `positive` what "
                    "the place shows without it.",
                ),
                io.Combo.Input(
                    "algorithm",
                    options=list(ALGORITHMS),
                    default="ddpm",
                    tooltip="ddpm: the paper's algorithm 2, better from about 100 steps. ddim: algorithm 3, better "
                    "below 50. local: algorithm 1, no blending, a loss holds the background.",
                ),
                io.Boolean.Input(
                    "condition",
                    default=True,
                    tooltip="Tell the model the text too. Off: the model runs without a text and CLIP alone steers it.",
                ),
                io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Sampling steps."),
                cfg_widget("How strictly the model follows what it is told."),
                io.Float.Input(
                    "denoise",
                    default=0.75,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="The level to start at. 0.2 keeps most of what is drawn, 0.5 suits scribbles, 0.75 is the "
                    "paper's, 1 forgets what was there.",
                ),
                seed_widget(
                    "Each candidate has its own noise, whatever batch it runs in.", control_after_generate=True
                ),
                io.Int.Input("candidates", default=4, min=1, max=1024, tooltip="How many results to choose from."),
                io.Int.Input(
                    "keep", default=1, min=0, max=1024, tooltip="How many of each picture's best to return. 0: all."
                ),
                io.Combo.Input(
                    "paste",
                    options=["exact", "feather", "none", "decoder tuning"],
                    default="exact",
                    tooltip="exact: the original's pixels outside the mask. feather: the same with a soft transition "
                    "inside it. none: the decoder's picture. decoder tuning: fits a copy of the decoder to the "
                    "background first, 75 steps a picture, then exact.",
                ),
                *_widgets(ClipGuidance, _OF_GUIDANCE),
                io.Float.Input(
                    "background_weight",
                    default=10.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Weight of the background's loss of the algorithm `local`, relative to CLIP's distance.",
                ),
                scheduler_widget(advanced=True),
                *_widgets(Paint, _OF_PAINT),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="What the model is told, instead of the text itself."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What the model avoids, instead of the empty prompt."
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="Noise levels to use instead of steps, scheduler and denoise."
                ),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip="Paints instead of model, condition, positive, negative and cfg. CLIP guides it too.",
                ),
                *_widgets(Paint, _OF_PAINT_LAST),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The best candidates, best first."),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="CLIP's cosine of each inside the mask; not a number where there is no text to rank by.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        clip_vision,
        image,
        mask,
        text,
        algorithm,
        condition,
        keep,
        background_weight,
        positive=None,
        negative=None,
        sigmas=None,
        guider=None,
        **widgets,
    ) -> io.NodeOutput:
        guidance = {field.name: widgets.pop(field.name) for field in fields(ClipOptions) if field.name in widgets}
        options = ClipOptions(**guidance, background_weight=background_weight if algorithm == "local" else 0.0)
        texts = BlendTexts(text, condition, positive, negative)
        models = BlendModels(model, clip, vae, clip_vision)
        settings = blend_settings(algorithm, **widgets)
        return io.NodeOutput(*blend_pictures(models, image, mask, texts, settings, options, keep, sigmas, guider))


NODES = [Blend]
