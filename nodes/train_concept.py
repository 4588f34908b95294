from comfy_api.latest import io

from ..host.attention_layers import LAYERS
from ..host.concept_masks import MASK_SOURCES
from ..host.concept_text import SLOT
from ..host.concept_training import learn_concept
from ..host.embedding_files import IF_EXISTS
from ..training.concept import ConceptSettings
from ..training.objectives import OBJECTIVES
from .widgets import checkpointing_widget, precision_widget, seed_widget


class TrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayTrainConcept",
            display_name="Train Concept",
            category="inlay/train",
            description="Learns a thing from one or a few pictures as a word for prompts (textual inversion, with "
            "Spin's saliency focus).",
            search_aliases=["textual inversion", "embedding", "learn subject", "Spin", "DreamArtist", "VCT"],
            inputs=[
                io.Model.Input("model", tooltip="An SD1.x, SD2.x or SDXL model. It is left as it is."),
                io.Clip.Input("clip", tooltip="The model's text encoder. It is left as it is."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("images", tooltip="One or a few pictures of the thing, of any size."),
                io.String.Input(
                    "name", default="my-concept", tooltip="What to call it: embedding:name stands for it in prompts."
                ),
                io.Combo.Input(
                    "objective",
                    options=list(OBJECTIVES),
                    default="saliency focus",
                    tooltip="saliency focus: Spin. plain: textual inversion with one token. multi: with several. "
                    "pixel: DreamArtist's term. latent: VCT's. saliency focus alone: without the model's own loss.",
                ),
                io.Int.Input(
                    "tokens",
                    default=6,
                    min=1,
                    max=75,
                    tooltip="Places it takes in a prompt. plain always has one.",
                ),
                io.String.Input(
                    "init_word",
                    default="",
                    tooltip="A word or two for what it is, to start from. Empty: the average of all words.",
                ),
                io.String.Input(
                    "template",
                    default=SLOT,
                    multiline=True,
                    optional=True,
                    tooltip="What your pictures show, {} for the thing: a photo of {} on a beach. What it names need "
                    "not be learned with the thing. One line for all, or one per picture.",
                ),
                io.String.Input(
                    "sentence",
                    default=SLOT,
                    optional=True,
                    tooltip="What prompt and conditioning say, {} for the thing: an oil painting of {} in the snow.",
                ),
                io.Int.Input("steps", default=200, min=1, max=100000, tooltip="Updates."),
                io.Float.Input(
                    "learning_rate",
                    default=5e-4,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=1e-7,
                    tooltip="Of AdamW.",
                ),
                io.Int.Input("accumulation", default=4, min=1, max=256, tooltip="Noised pictures an update."),
                seed_widget("Of the start, the noises, the noise levels, the flips and the samples."),
                io.Combo.Input(
                    "if_exists",
                    options=list(IF_EXISTS),
                    default="number",
                    tooltip="When there is a concept of that name. number: save as name-2. overwrite: replace it. "
                    "error: stop before training.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="White on the thing, one or one per picture. Used by the focus instead of its own, "
                    "whatever mask_source says.",
                ),
                io.Combo.Input(
                    "mask_source",
                    options=list(MASK_SOURCES),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="What the focus takes for salient without masks, read from each training forward. auto: "
                    "attention to the border. self-attention: what receives most (paper). calibrated: that, turned so "
                    "that the border is background. attention to the border: what attends least to it.",
                ),
                io.Combo.Input(
                    "layer",
                    options=["auto", *LAYERS],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Where attention is read. auto: 16x16 decoder for the border; the middle block for "
                    "self-attention, as in the paper; 16x16 when calibrated.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Gamma: salient is what receives at least this many times the average attention; "
                    "calibrated and border, what lies this many deviations above it. 0: 1.25 for auto, 1 for the "
                    "others.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Lambda: of the objective's own term against the model's loss.",
                ),
                io.Float.Input(
                    "snr_cap",
                    default=5.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="Multiplies the focus term by at most cap / sigma squared, so that noisy steps do not "
                    "drown the others. 0: off, as in the paper.",
                ),
                io.Boolean.Input(
                    "norm",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="The focus term as the unsquared norm, as printed in the paper, not the mean square.",
                ),
                io.Boolean.Input(
                    "scale_lr",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Multiply the learning rate by the accumulation.",
                ),
                io.Boolean.Input(
                    "flips",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Mirror pictures at random. Off for things with text or a left and a right.",
                ),
                precision_widget("What the UNet computes in while training; losses are always fp32."),
                checkpointing_widget(),
                io.Int.Input(
                    "at_once",
                    default=0,
                    min=0,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="Noised pictures in one forward. 0: as many of an update's as fit. 1: least memory.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=25,
                    min=0,
                    max=100000,
                    optional=True,
                    advanced=True,
                    tooltip="Steps between live previews. 0: none.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Go on where a cancelled or failed run of the same name, settings and pictures stopped.",
                ),
                # New ones at the end: saved graphs hold the widgets' values in their order.
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=0,
                    max=16384,
                    step=64,
                    optional=True,
                    advanced=True,
                    tooltip="Longer side in pixels to which larger pictures and their masks are scaled down; smaller "
                    "ones stay. 512 for SD1.x, 1024 for SDXL. 0: every size as it is.",
                ),
                io.Float.Input(
                    "map_average",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="What each new map leaves of the average of those before: 0.9 steadies maps of noisy "
                    "pictures. 0: each noised picture's own map.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt", display_name="prompt", tooltip="The sentence, with embedding:name for the thing."
                ),
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="The sentence, encoded, ready to paint with.",
                ),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="The mask really used, averaged over the steps, one per picture. White: no mask was used.",
                ),
                io.Custom("LOSS_MAP").Output(
                    "loss_map", display_name="loss_map", tooltip="The loss of each step, for Plot Loss Graph."
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="The first picture, the same with the mask used, and a sample of the concept.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, clip, vae, images, name, if_exists, masks=None, sentence=SLOT, **settings) -> io.NodeOutput:
        settings = ConceptSettings(**settings)
        learned = learn_concept(model, clip, vae, images, name, settings, if_exists, masks, sentence)
        loss_map = {"loss": learned.losses}
        return io.NodeOutput(learned.prompt, learned.conditioning, learned.mask, loss_map, learned.preview)


NODES = [TrainConcept]
