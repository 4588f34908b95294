from comfy_api.latest import io

from ..guidance.distillation import METHODS
from ..host.concept_region_patch import OUTSIDES, ROWS
from ..host.swap import swap_picture
from ..host.swap_settings import BGM, PASTES, SECR, TIMESTEPS, SwapSettings, SwapTexts
from .widgets import feather_widget, seed_widget


class Swap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlaySwap",
            display_name="Swap Concept",
            category="inlay/swap",
            description="Makes the thing in the box another one, of any shape, or adds or removes one, and leaves the "
            "rest of the picture exactly as it was (InstantSwap).",
            search_aliases=[
                "InstantSwap",
                "replace object",
                "DDS",
                "SDS",
                "CDS",
                "remove object",
                "insert",
                "face swap",
            ],
            inputs=[
                io.Model.Input("model", tooltip="An SD1.x, SD2.x or SDXL model, for the picture as it is."),
                io.Model.Input(
                    "target_model",
                    optional=True,
                    tooltip="For the picture to be: the same base with a LoRA, or a customised checkpoint of the same "
                    "family. Unconnected, model serves both, in one batch.",
                ),
                io.Clip.Input("clip", tooltip="The models' text encoder. Learned concepts work as embedding:name."),
                io.Clip.Input(
                    "target_clip",
                    optional=True,
                    tooltip="For the target's texts, where target_model has a text encoder of its own: a customised "
                    "checkpoint's, or clip with the LoRA on it.",
                ),
                io.Vae.Input("vae", tooltip="The models' VAE."),
                io.Image.Input("image", tooltip="One picture or a batch, of any size."),
                io.Mask.Input("mask", tooltip="The box around its white part is where the swap happens."),
                io.BoundingBox.Input(
                    "bbox",
                    optional=True,
                    force_input=True,
                    socketless=False,
                    tooltip="Takes the place of the box around the mask, in the picture's pixels. One box a picture.",
                ),
                io.String.Input(
                    "source_prompt",
                    default="",
                    multiline=True,
                    tooltip="The picture as it is. Empty where something is inserted and nothing is to be said of it.",
                ),
                io.String.Input(
                    "target_prompt",
                    default="",
                    multiline=True,
                    tooltip="The picture as it shall be. Empty to remove what is in the box.",
                ),
                io.String.Input(
                    "source_concept",
                    default="",
                    tooltip="What is in the box now, as a short phrase. Empty where something is inserted.",
                ),
                io.String.Input(
                    "target_concept",
                    default="",
                    tooltip="What shall be in the box, as a short phrase. Empty to remove.",
                ),
                io.String.Input(
                    "negative", default="", multiline=True, tooltip="What guidance moves away from; empty in the paper."
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="instantswap",
                    tooltip="instantswap: box, phrases and reused gradients. dds, sds, cds: the older methods, without "
                    "box and phrases unless bgm and secr say so. dds and cds were published with 200 iterations, skip "
                    "1, timesteps unsorted from 50 to 948.",
                ),
                io.Int.Input(
                    "iterations",
                    default=550,
                    min=1,
                    max=10000,
                    tooltip="Updates of the latent. 550 for instantswap, 200 for dds and cds.",
                ),
                io.Int.Input(
                    "skip",
                    default=5,
                    min=1,
                    max=1000,
                    tooltip="Updates that share one gradient: the model runs once every so many. 1 reuses none.",
                ),
                io.Float.Input(
                    "guidance",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly both texts pull. 1 leaves the negative out and halves the time.",
                ),
                seed_widget("Of the timesteps and of each gradient's noise.", control_after_generate=True),
                io.Combo.Input(
                    "paste",
                    options=list(PASTES),
                    default="exact",
                    tooltip="exact: the original's pixels outside the box. feather: the same, with a soft transition "
                    "inside it. none: the decoder's own picture, as in the paper.",
                ),
                feather_widget(
                    "Pixels of the transition of paste `feather`, inside the box only.", optional=True, advanced=True
                ),
                io.Combo.Input(
                    "timesteps",
                    options=list(TIMESTEPS),
                    default="random",
                    optional=True,
                    advanced=True,
                    tooltip="random: drawn, then sorted from high to low. ladder: evenly from high to low. unsorted: "
                    "drawn, as dds and cds were published.",
                ),
                io.Int.Input(
                    "t_min",
                    default=100,
                    min=0,
                    max=999,
                    optional=True,
                    advanced=True,
                    tooltip="The lowest timestep; 50 for dds and cds.",
                ),
                io.Int.Input(
                    "t_max",
                    default=899,
                    min=0,
                    max=999,
                    optional=True,
                    advanced=True,
                    tooltip="The highest timestep; 948 for dds and cds.",
                ),
                io.Combo.Input(
                    "bgm",
                    options=list(BGM),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Background gradient masking: nothing outside the box moves. auto: on for instantswap.",
                ),
                io.Combo.Input(
                    "secr",
                    options=list(SECR),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Which branches attend to their phrase alone in the box. auto: both for instantswap, "
                    "otherwise off.",
                ),
                io.Combo.Input(
                    "outside",
                    options=list(OUTSIDES),
                    default="ca",
                    optional=True,
                    advanced=True,
                    tooltip="With phrases, outside the box. ca: the prompts act. raw: no text acts, as in the authors' "
                    "code; the prompts then do nothing.",
                ),
                io.Combo.Input(
                    "rows",
                    options=list(ROWS),
                    default="both",
                    optional=True,
                    advanced=True,
                    tooltip="With phrases, in the box. both: the negative attends to the phrase too, as in the "
                    "authors' code, so that guidance hardly acts there. conditional: guidance strengthens the phrase.",
                ),
                io.Float.Input(
                    "momentum",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Of the updates; 0 in the paper.",
                ),
                io.Float.Input(
                    "contrast",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.001,
                    round=0.00001,
                    optional=True,
                    advanced=True,
                    tooltip="Weight of the contrastive loss of cds.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    round=0.00001,
                    optional=True,
                    advanced=True,
                    tooltip="Length of an update; 0.1 in the paper.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The pictures, in their own size."),
                io.Latent.Output("latent", display_name="latent", tooltip="Their latents, before the paste."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        image,
        mask,
        source_prompt,
        target_prompt,
        source_concept,
        target_concept,
        negative,
        target_model=None,
        target_clip=None,
        bbox=None,
        **settings,
    ) -> io.NodeOutput:
        texts = SwapTexts(source_prompt, target_prompt, source_concept, target_concept, negative)
        job = clip, vae, image, mask, texts, SwapSettings(**settings), bbox, target_clip
        return io.NodeOutput(*swap_picture(model, target_model, *job))


NODES = [Swap]
