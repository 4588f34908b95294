from comfy_api.latest import io

from ..guidance.paste import COLOUR_MATCHES
from ..guidance.start import STARTS
from ..host.background_sampler import BACKGROUNDS
from ..host.paint_settings import PASTES, SAMPLER_NAMES, PaintSettings
from ..host.painting import paint
from .sockets import Trajectory
from .widgets import cfg_widget, feather_widget, scheduler_widget, seed_widget


class Paint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayPaint",
            display_name="Paint Into Mask",
            category="inlay/paint",
            description="Paints the prompt into the mask and gives the picture back in its own size, with every pixel "
            "outside the mask exactly as it was.",
            search_aliases=["inpaint", "fill", "replace object", "Spin", "blended diffusion", "candidates"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any model, with LoRAs, Guide Region and other patches on it. "
                    "Inpainting models get their extra channels set here.",
                ),
                io.Conditioning.Input("positive", tooltip="What to paint."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What to avoid; an empty prompt is fine. It is also the prompt of an inversion here.",
                ),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="One picture or a batch, of any size."),
                io.Mask.Input("mask", tooltip="Where to paint: white. The picture's size or aspect. Soft edges mix."),
                Trajectory.Input(
                    "trajectory",
                    optional=True,
                    tooltip="From Invert Image, for background `inverted`. Unconnected, the picture is inverted here.",
                ),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip="Paints instead of model, positive, negative and cfg. `model` then only inverts.",
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="Noise levels to use instead of steps, scheduler and denoise."
                ),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="Sampling steps."),
                cfg_widget("How strictly to follow the prompt."),
                seed_widget(
                    "Candidate i is what the host paints at batch index i of this seed.", control_after_generate=True
                ),
                io.Int.Input(
                    "candidates",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="How many different results. Rank Pictures sorts them.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default="inverted",
                    tooltip="What stands outside the mask while sampling. inverted: the picture's own path to noise "
                    "(Spin). renoised: fresh noise each step (Blended Diffusion). fixed: one noise, the host's way. "
                    "none: the model paints everything.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=SAMPLER_NAMES,
                    default="ddim",
                    tooltip="ddim, ddpm and euler put the background back after each step; the others see it in the "
                    "model's input.",
                ),
                scheduler_widget(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 forgets what was in the mask; less keeps its shapes and colours.",
                ),
                io.Combo.Input(
                    "paste",
                    options=list(PASTES),
                    default="feather",
                    tooltip="feather: the original outside the mask, a soft transition inside it. exact: a hard edge. "
                    "none: the decoder's own background. decoder tuning: fits a copy of the decoder to the picture, "
                    "then a hard edge.",
                ),
                feather_widget("Pixels of the transition, inside the mask only."),
                io.Combo.Input(
                    "colour_match",
                    options=list(COLOUR_MATCHES),
                    default="none",
                    optional=True,
                    advanced=True,
                    tooltip="Brings the painted colours to the original's, as the band around the mask tells them. "
                    "smooth: the local difference. mean_std: brightness and contrast of each channel.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=20,
                    optional=True,
                    advanced=True,
                    tooltip="How often each step of ddim, ddpm and euler is done, with noise in between (RePaint).",
                ),
                io.Int.Input(
                    "inversion_steps",
                    default=50,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Steps of the inversion where no trajectory is connected.",
                ),
                io.Int.Input(
                    "at_once",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    advanced=True,
                    tooltip="Candidates in one batch; 0: as many as fit into memory. The results do not depend on it.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Fresh noise in each step of ddim: 0 none, 1 as much as ddpm.",
                ),
                io.Int.Input(
                    "progressive",
                    default=0,
                    min=0,
                    max=16,
                    optional=True,
                    advanced=True,
                    tooltip="For thin masks: they start this many latent cells wider on each side and shrink to "
                    "themselves. 0 is off. Not for background `none`.",
                ),
                io.Combo.Input(
                    "start",
                    options=list(STARTS),
                    default="surroundings",
                    optional=True,
                    advanced=True,
                    tooltip="What lies under the first noise in the mask, where sampling begins at the highest level. "
                    "surroundings: their colours, continued into the mask. noise: nothing. picture: what was there, "
                    "as the host does it.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    display_name="images",
                    tooltip="Candidate after candidate, each with all pictures of the batch.",
                ),
                io.Latent.Output("latent", display_name="latent", tooltip="Their latents, before the paste."),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, vae, image, mask, trajectory=None, guider=None, sigmas=None, **settings
    ) -> io.NodeOutput:
        images, latent = paint(
            model, positive, negative, vae, image, mask, PaintSettings(**settings), trajectory, guider, sigmas
        )
        return io.NodeOutput(images, latent)


NODES = [Paint]
