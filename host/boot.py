"""ComfyUI in this very process, for tests, evaluation, benchmarks and training. Never used inside a running server."""

import os
import sys
from pathlib import Path


def boot(
    comfyui: Path, base_directory: Path | None = None, cpu: bool | None = None, fused_attention: bool = False
) -> None:
    """Makes `comfy`, `nodes` and the rest importable from the ComfyUI at that path.

    cpu: True or False forces the device, None takes CUDA where torch finds it. base_directory: where models, input
    and output live. fused_attention: PyTorch's own, also on a CPU, where the host takes one that saves memory and is
    slower. Only the first call in a process has an effect. Raises FileNotFoundError if there is no ComfyUI.
    """
    if "comfy" in sys.modules:
        return
    root = Path(comfyui).resolve()
    if not (root / "comfy" / "sd.py").is_file():
        raise FileNotFoundError(f"There is no ComfyUI at {root}. Prepare one with `python dev.py host`.")
    # The host's `utils` is a package that a flat `utils` elsewhere on the path would hide.
    sys.path.insert(0, str(root))
    import utils.install_util  # noqa: F401
    import comfy.options  # isort: skip

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    if cpu is None:
        import torch

        cpu = not torch.cuda.is_available()
    comfy.cli_args.args.cpu = cpu
    comfy.cli_args.args.disable_api_nodes = True
    comfy.cli_args.args.use_pytorch_cross_attention |= fused_attention
    if base_directory is not None:
        os.makedirs(base_directory, exist_ok=True)
        comfy.cli_args.args.base_directory = str(base_directory)
