"""Socket types of our own."""

from comfy_api.latest import io

Trajectory = io.Custom("INLAY_TRAJECTORY")
ReferenceEncoder = io.Custom("INLAY_REFERENCE_ENCODER")
