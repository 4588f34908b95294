"""NIMA by torchvision's networks, from the user's own file."""

import pytest
import safetensors.torch
import torch
import torchvision
from inlay.host.nima import load_nima, nima_if_there, nima_scores
from torch import nn


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "nima", raising=False)
    folder_paths.filename_list_cache.clear()
    (tmp_path / "nima").mkdir()
    yield tmp_path / "nima"
    folder_paths.folder_names_and_paths.pop("nima", None)
    folder_paths.filename_list_cache.clear()


def test_the_score_is_the_mean_vote(folder):
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2(weights=None, num_classes=10).eval()
    safetensors.torch.save_file(net.state_dict(), folder / "mine.safetensors")
    pictures = torch.rand(2, 224, 224, 3)
    pixels = torchvision.transforms.functional.normalize(
        pictures.movedim(-1, 1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    with torch.no_grad():
        votes = net(pixels).softmax(1)
    expected = [sum((place + 1) * float(share) for place, share in enumerate(row)) for row in votes]
    assert nima_if_there()(pictures).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_votes_decide(folder):
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    net(torch.zeros(1, 3, 224, 224))
    nn.init.zeros_(net[1].weight)
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([0.0] * 9 + [50.0]))
    assert nima_scores(net, torch.rand(1, 100, 60, 3)).item() == pytest.approx(10, abs=1e-4)
    nn.init.zeros_(net[1].bias)
    assert nima_scores(net, torch.rand(1, 100, 60, 3)).item() == pytest.approx(5.5, abs=1e-4)


def test_a_user_without_the_network_gets_no_column(folder):
    assert nima_if_there() is None


def test_another_network_is_refused_in_a_sentence(folder):
    safetensors.torch.save_file({"features.0.weight": torch.rand(4, 3, 3, 3)}, folder / "other.safetensors")
    with pytest.raises(ValueError, match="No file under models/nima holds NIMA, torchvision's vgg16 or mobilenet_v2"):
        load_nima()
