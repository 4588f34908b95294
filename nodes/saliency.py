from comfy_api.latest import io

from ..attention.overlay import overlay
from ..host.attention_layers import LAYERS
from ..host.attention_pass import parse_timesteps
from ..host.salient_masks import SOURCES, given_masks, saliency_scores, salient_masks
from .widgets import seed_widget


class SaliencyMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlaySaliencyMask",
            display_name="Mask Salient Part",
            category="inlay/mask",
            description="Masks what the model itself finds important in a picture, from its attention (Spin's S).",
            search_aliases=["saliency", "attention mask", "auto mask", "self-attention map", "foreground"],
            inputs=[
                io.Model.Input("model", tooltip="An SD1.x, SD2.x or SDXL model. It is left as it is."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="The pictures to look at, of any size."),
                io.Combo.Input(
                    "source",
                    options=list(SOURCES),
                    default="self-attention",
                    tooltip="self-attention: the paper's map. calibrated: each layer turned so that the picture's "
                    "border is background. attention to the border: what attends least to it. words: where given words "
                    "act. mask: your own mask.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    tooltip="Gamma. self-attention: times the average attention. calibrated and border: standard "
                    "deviations above the average. words: halves of the strongest response.",
                ),
                io.Combo.Input(
                    "layer",
                    options=["auto", *LAYERS],
                    default="auto",
                    tooltip="auto: the middle block for self-attention, as in the paper; 16x16 decoder for the border, "
                    "16x16 else. NxN: the mean of the encoder's and decoder's layers with the nearest number of tokens "
                    "a side.",
                ),
                io.String.Input(
                    "timesteps",
                    default="500, 300, 100",
                    tooltip="Noise levels at which the model looks, 0 to 999, averaged. High ones give noisy maps.",
                ),
                io.Int.Input("draws", default=1, min=1, max=64, tooltip="Noise draws averaged at each timestep."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="A text for the self-attention sources. None is no text. Its first entry is used.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The model's text encoder. Needed for words."),
                io.String.Input(
                    "words",
                    default="",
                    optional=True,
                    tooltip="For the source words: what to mask, or embedding:name; commas between several.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    tooltip="For the source words: a sentence about the picture that holds them. Empty: the words.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Your own mask, for the source mask."),
                io.Int.Input(
                    "clean_up",
                    default=0,
                    min=0,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="Radius in pixels: specks smaller than it go, holes smaller than it are filled. 0 is off.",
                ),
                io.Boolean.Input(
                    "largest_part",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Keep the largest connected part only.",
                ),
                seed_widget("Of the noise. Every picture of a batch gets the same.", optional=True, advanced=True),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="mask", tooltip="The salient part: 1 inside, 0 elsewhere."),
                io.Mask.Output(
                    "soft_mask",
                    display_name="soft_mask",
                    tooltip="The map itself: 0.5 at the threshold, 1 from twice the threshold.",
                ),
                io.Image.Output("preview", display_name="preview", tooltip="The map and the mask's outline on it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        image,
        source,
        threshold,
        layer,
        timesteps,
        draws,
        positive=None,
        clip=None,
        words="",
        prompt="",
        mask=None,
        clean_up=0,
        largest_part=False,
        seed=0,
    ) -> io.NodeOutput:
        if source == "mask":
            found, soft = given_masks(mask, image)
        else:
            steps = parse_timesteps(timesteps)
            scores = saliency_scores(
                model, vae, image, source, positive, clip, prompt, words, layer, steps, draws, seed
            )
            found, soft = salient_masks(scores, threshold, clean_up, largest_part)
        return io.NodeOutput(found, soft, overlay(image, soft, found))


NODES = [SaliencyMask]
