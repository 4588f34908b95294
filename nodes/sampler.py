from comfy_api.latest import io

from ..guidance.samplers import SAMPLERS
from ..host.background_sampler import BACKGROUNDS, background_sampler
from .sockets import Trajectory


class BackgroundSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlayBackgroundSampler",
            display_name="Sample With Background",
            category="inlay/paint",
            description="A sampler that generates inside the mask and puts the picture back outside it after every "
            "step, at the noise level just reached.",
            search_aliases=["blended diffusion", "inpaint sampler", "RePaint", "noise mask", "Spin", "keep background"],
            inputs=[
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default="inverted",
                    tooltip="inverted: the picture's own path to noise (needs a trajectory). renoised: fresh noise at "
                    "every step (Blended Diffusion). fixed: one noise, as the host's mask does it. none: nothing.",
                ),
                io.Latent.Input("latent_image", tooltip="The clean picture, encoded. The same size as sampled."),
                io.Mask.Input("mask", tooltip="Where to generate: white inside. Of the picture's aspect; may be soft."),
                Trajectory.Input("trajectory", optional=True, tooltip="From Invert Image, for background inverted."),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Any other sampler instead of `method`; it sees the background at the model's input.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(SAMPLERS),
                    default="ddim",
                    tooltip="The sampling loop where no `sampler` is connected.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Fresh noise in each step of ddim: 0 none, 1 as much as ddpm.",
                ),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=20,
                    advanced=True,
                    tooltip="Does every step so many times, with noise added back in between (RePaint). 1 is plain.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    "sampler", display_name="sampler", tooltip="For SamplerCustomAdvanced or SamplerCustom."
                )
            ],
        )

    @classmethod
    def execute(
        cls, background, latent_image, mask, method="ddim", eta=0.0, repeats=1, trajectory=None, sampler=None
    ) -> io.NodeOutput:
        candidates = latent_image.get("batch_index")
        return io.NodeOutput(
            background_sampler(
                background, latent_image["samples"], mask, trajectory, sampler, method, eta, repeats, candidates
            )
        )


NODES = [BackgroundSampler]
