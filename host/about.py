"""Which ComfyUI this is."""

import comfyui_version


def host_version() -> str:
    return comfyui_version.__version__
