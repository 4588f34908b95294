"""The demo world's models and scenes, to try every workflow without a download."""

from comfy_api.latest import io

from ..demo.tasks import KINDS, draw_photos, draw_tasks
from ..demo.vocabulary import BACKGROUNDS, STYLES
from ..host.demo_world import VARIANTS, load_demo_models
from .sockets import ReferenceEncoder

ANY = "any"


class DemoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayDemoModels",
            display_name="Load Demo Models",
            category="inlay/demo",
            description="The tiny models that ship with Inlay. They know Inlay's demo scenes and nothing else.",
            search_aliases=["demo checkpoint", "tiny model", "example model"],
            inputs=[
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="text",
                    tooltip="text: painted from words. inpaint: the 9-channel model, painted from a reference picture.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The UNet, an SD1.x model in miniature."),
                io.Clip.Output("clip", display_name="clip", tooltip="The text encoder, with a real text projection."),
                io.Vae.Output(
                    "vae", display_name="vae", tooltip="The autoencoder: 8 pixels a latent cell, 4 channels."
                ),
                io.ClipVision.Output(
                    "clip_vision",
                    display_name="clip_vision",
                    tooltip="The vision tower that goes with the text encoder.",
                ),
                ReferenceEncoder.Output(
                    "reference_encoder",
                    display_name="reference_encoder",
                    tooltip="Turns a reference's CLIP state into the inpaint model's conditioning.",
                ),
            ],
        )

    @classmethod
    def execute(cls, variant: str) -> io.NodeOutput:
        loaded = load_demo_models(variant)
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae, loaded.clip_vision, loaded.reference_encoder)


class DemoScene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayDemoScene",
            display_name="Draw Demo Scene",
            category="inlay/demo",
            description="A procedural scene with a place to fill and a thing to put there.",
            search_aliases=["demo image", "example image", "test picture"],
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=2**40, tooltip="Each seed is another scene."),
                io.Combo.Input(
                    "style",
                    options=[*STYLES, ANY],
                    default="photo",
                    tooltip="The hand it is drawn by. any: by the seed.",
                ),
                io.Combo.Input(
                    "background", options=[*BACKGROUNDS, ANY], default="meadow", tooltip="The place; any: by the seed."
                ),
                io.Combo.Input(
                    "task",
                    options=list(KINDS),
                    default="fill",
                    tooltip="fill: an empty place and a named thing. replace: another thing stands there. "
                    "subject: a thing that only the reference shows. show: a thing and its true mask. "
                    "pair: two things, the first masked.",
                ),
                io.Int.Input(
                    "references",
                    default=1,
                    min=1,
                    max=16,
                    optional=True,
                    advanced=True,
                    tooltip="How many pictures of the wanted thing, each in another place, pose and hand.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The scene, 128 x 128."),
                io.Mask.Output(
                    "mask", display_name="mask", tooltip="The place to fill, or the thing's true mask: white inside."
                ),
                io.Image.Output("reference", display_name="reference", tooltip="The wanted thing in another picture."),
                io.Mask.Output(
                    "reference_mask",
                    display_name="reference_mask",
                    tooltip="The true mask of the thing in the reference.",
                ),
                io.String.Output(
                    "caption", display_name="caption", tooltip="The prompt for the picture with the wish fulfilled."
                ),
            ],
        )

    @classmethod
    def execute(cls, seed: int, style: str, background: str, task: str, references: int = 1) -> io.NodeOutput:
        drawn = draw_tasks(
            [seed],
            task,
            style=None if style == ANY else STYLES.index(style),
            background=None if background == ANY else BACKGROUNDS.index(background),
        )
        photos, masks = draw_photos(drawn.wanted, seed, references)
        return io.NodeOutput(drawn.image, drawn.mask, photos, masks, drawn.captions[0])


NODES = [DemoModels, DemoScene]
