"""VGG and AlexNet feature nets from the user's own safetensors. Nothing is downloaded, nothing pickled is opened."""

import os
from collections.abc import Iterator

import folder_paths
import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor, nn

StateDict = dict[str, Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# LPIPS's own scaling, for [-1, 1].
_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)
# The layers of torchvision's `features` whose output LPIPS compares.
_LPIPS_STAGES = {"vgg16": (3, 8, 15, 22, 29), "alexnet": (1, 4, 7, 9, 11)}
_CONVOLUTIONS = {13: "vgg16", 16: "vgg19", 5: "alexnet"}


class LPIPSNet(nn.Module):
    """A backbone and LPIPS's linear weights; `stages` and `linear` are what guidance.metrics.lpips takes."""

    def __init__(self, kind: str, features: nn.Sequential, linear: list[Tensor]) -> None:
        super().__init__()
        self.ends = _LPIPS_STAGES[kind]
        self.features = features[: self.ends[-1] + 1]
        self.linear = nn.ParameterList(nn.Parameter(scale, requires_grad=False) for scale in linear)

    def stages(self, pictures: Tensor) -> list[Tensor]:
        shift, scale = (pictures.new_tensor(values)[:, None, None] for values in (_LPIPS_SHIFT, _LPIPS_SCALE))
        x = (pictures * 2 - 1 - shift) / scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.ends:
                found.append(x)
        return found


def load_lpips(net: str) -> LPIPSNet:
    """LPIPS over `vgg` or `alex` from models/lpips, its backbone from the same file, from there or from models/vgg.

    Raises ValueError with the sentence that says which file is missing, damaged or of another network, or how to
    convert a pickled one.
    """
    kind = {"vgg": "vgg16", "alex": "alexnet"}[net]
    widths = {"vgg16": 128, "alexnet": 192}[kind]
    for path in weight_files("lpips"):
        weights = read_weights(path)
        scales = [weights.get(f"lin{stage}.model.1.weight") for stage in range(5)]
        if all(scale is not None for scale in scales) and scales[1].numel() == widths:
            own = _backbone(weights)
            features = build_features(kind, own, path) if own else load_features(kind, ("lpips", "vgg"))
            with torch.inference_mode(False):
                linear = [scale.float().flatten().clone() for scale in scales]
                return LPIPSNet(kind, features, linear).eval()
    raise ValueError(
        missing_weights("lpips", f"LPIPS's linear weights for {net} (lin0.model.1.weight ... lin4.model.1.weight)")
    )


def load_features(kind: str, folders: tuple[str, ...] = ("vgg",)) -> nn.Sequential:
    """torchvision's frozen `features` of vgg16, vgg19 or alexnet with the user's weights, fp32.

    Raises ValueError with the sentence that says which file is missing, damaged or of another network, or how to
    convert a pickled one.
    """
    for folder in folders:
        for path in weight_files(folder):
            weights = _backbone(read_weights(path))
            if _kind(weights) == kind:
                return build_features(kind, weights, path)
    raise ValueError(missing_weights(folders[-1], f"torchvision's {kind} (features.0.weight ...)"))


def build_features(kind: str, weights: StateDict, path: str = "") -> nn.Sequential:
    """weights: torchvision's keys without `features.`, of the file at path. Raises ValueError for another net's."""
    with torch.inference_mode(False):
        with torch.device("meta"):
            features = getattr(torchvision.models, kind)(weights=None).features
        try:
            features.load_state_dict({key: value.float().clone() for key, value in weights.items()}, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"The file {_shown(path)} is of another network than torchvision's {kind} ({kind}_bn is another one). "
                f"Put torchvision's {kind} there."
            ) from error
        # ReLUs that overwrite their input would change the maps already collected.
        for layer in features.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
    return features.requires_grad_(False).eval()


def read_weights(path: str) -> StateDict:
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"The file {_shown(path)} is damaged, or a pickled one that was only renamed to .safetensors. "
            "Replace it by torchvision's weights, saved with safetensors."
        ) from error


def _shown(path: str) -> str:
    """models/<folder>/<file>: where on the machine the models lie is nobody's business."""
    return "/".join(["models", *path.replace(os.sep, "/").split("/")[-2:]])


def weight_files(folder: str) -> list[str]:
    """Paths of the safetensors under models/<folder>, by name."""
    return [folder_paths.get_full_path_or_raise(folder, name) for name in _names(folder, (".safetensors",))]


def _names(folder: str, endings: tuple[str, ...]) -> Iterator[str]:
    folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
    return (name for name in sorted(folder_paths.get_filename_list(folder)) if name.endswith(endings))


def missing_weights(folder: str, what: str) -> str:
    pickled = next(_names(folder, (".pth", ".pt", ".bin")), None)
    if pickled is None:
        return f"No file under models/{folder} holds {what}. Put one there as .safetensors."
    target = os.path.splitext(pickled)[0] + ".safetensors"
    return (
        f'models/{folder}/{pickled} is pickled and is not opened. Convert it once: python -c "import torch, '
        f"safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in torch.load('{pickled}', "
        f"weights_only=True, map_location='cpu').items()}}, '{target}')\""
    )


def _backbone(weights: StateDict) -> StateDict:
    """Keys as in torchvision's `features`, from torchvision's files (features.N) or LPIPS's own (net.sliceK.N)."""
    found = {}
    for key, value in weights.items():
        parts = key.split(".")
        if parts[0] == "features":
            found[".".join(parts[1:])] = value
        elif parts[0] == "net" and len(parts) == 4 and parts[1].startswith("slice"):
            found[".".join(parts[2:])] = value
    return found


def _kind(weights: StateDict) -> str | None:
    return _CONVOLUTIONS.get(sum(value.ndim == 4 for value in weights.values()))
