"""Networks whose weights the user gives: the published shapes, names and protocols, with random weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quintet.core.errors import UsageError
from quintet.core.spec import DataSpec
from quintet.metrics.evaluate import Part, Reference
from quintet.metrics.judges import CoordinateSpace
from quintet.metrics.judges.dinov2 import VisionTransformer, published_names
from quintet.metrics.judges.inception import InceptionV3, resize
from quintet.metrics.judges.pretrained import rgb
from quintet.metrics.judges.weights import load_judges, parse_judges

SPEC = DataSpec("image", (3, 16, 16), 256)


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Weights of a size that keeps activations alive, statistics of a plausible batch."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=g)
            fan = tensor[0].numel() if tensor.ndim > 1 else 1
            if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.copy_(1 + 0.2 * noise.clamp(-2, 2))
            else:
                tensor.copy_(noise * math.sqrt(2 / fan) if tensor.ndim > 1 else 0.1 * noise)
    return network.eval()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    tensors = dict(randomised(InceptionV3(), 1).state_dict())
    tensors |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}  # as the published file
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dinov2.safetensors"
    tensors = dict(randomised(VisionTransformer(128, 2, 1370), 2).state_dict()) | {"mask_token": torch.zeros(1, 128)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_the_networks_have_the_published_sizes() -> None:
    with torch.device("meta"):
        inception, dino = InceptionV3(), VisionTransformer(1024, 24, 1370)
    # torchvision's without auxiliary head has 23,834,568, of which its classifier 1000 x 2049
    assert sum(p.numel() for p in inception.parameters()) == 23_834_568 - 1000 * 2049
    # ViT-L/14: 304.4 million with the mask token that only training needs
    assert sum(p.numel() for p in dino.parameters()) + 1024 == 304_368_640
    for name in ("Mixed_6e.branch7x7dbl_5.bn.running_var", "Mixed_7c.branch3x3dbl_3b.conv.weight"):
        assert name in inception.state_dict()
    for name in ("patch_embed.proj.weight", "blocks.23.attn.qkv.bias", "blocks.0.ls1.gamma", "pos_embed"):
        assert name in dino.state_dict()


def test_resizing_is_that_of_tensorflow_1() -> None:
    x = torch.rand(2, 3, 7, 10, dtype=torch.float64)
    found, side = resize(x, 23), 23
    for i, j in ((0, 0), (5, 17), (22, 22), (11, 3)):
        at = (i * 7 / side, j * 10 / side)
        low = [math.floor(v) for v in at]
        high = [min(low[0] + 1, 6), min(low[1] + 1, 9)]
        a, b = at[0] - low[0], at[1] - low[1]
        top = (1 - b) * x[..., low[0], low[1]] + b * x[..., low[0], high[1]]
        bottom = (1 - b) * x[..., high[0], low[1]] + b * x[..., high[0], high[1]]
        assert torch.allclose(found[..., i, j], (1 - a) * top + a * bottom, atol=1e-6)
    assert torch.equal(resize(x, 7)[..., :7, 0], x[..., 0])  # the first column stays where it is


def test_inception_agrees_with_torch_fidelity(inception_file: Path, tmp_path: Path) -> None:
    fidelity = pytest.importorskip("torch_fidelity")
    from safetensors.torch import load_file

    torch.save(load_file(inception_file), tmp_path / "weights.pth")
    theirs = fidelity.FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    raw = np.random.default_rng(5).integers(0, 256, (2, 3, 16, 16)).astype(np.uint8)
    (expected,) = theirs(torch.from_numpy(raw))
    ours = load_judges({"inception": inception_file}, SPEC)["inception"].features(raw)
    assert np.allclose(ours, expected.numpy(), atol=1e-4)


def test_the_transformer_agrees_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    theirs = randomised(transformers.Dinov2Model(config), 3)
    named = published_names(theirs.state_dict())
    ours = VisionTransformer(128, 2, named["pos_embed"].shape[1]).eval()
    ours.load_state_dict({name: tensor for name, tensor in named.items() if name != "mask_token"})
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x).last_hidden_state[:, 0], atol=1e-5)


def test_names_of_the_conversion_become_the_published_ones() -> None:
    network = randomised(VisionTransformer(64, 1, 17), 4)
    published = dict(network.state_dict())
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "blocks.0.attn.proj.weight": "encoder.layer.0.attention.output.dense.weight",
        "blocks.0.attn.proj.bias": "encoder.layer.0.attention.output.dense.bias",
        "blocks.0.ls1.gamma": "encoder.layer.0.layer_scale1.lambda1",
        "blocks.0.ls2.gamma": "encoder.layer.0.layer_scale2.lambda1",
        "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
    }  # fmt: skip
    converted: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if "qkv" in name:
            kind = name.rsplit(".", 1)[1]
            for part, which in zip(tensor.chunk(3), ("query", "key", "value"), strict=True):
                converted[f"encoder.layer.0.attention.attention.{which}.{kind}"] = part
        else:
            converted[names.get(name, name.replace("blocks.0.", "encoder.layer.0."))] = tensor
    for prefix in ("", "dinov2."):
        back = published_names({prefix + name: tensor for name, tensor in converted.items()})
        assert set(back) == set(published)
        assert all(torch.equal(back[name], published[name]) for name in published)


def test_positions_are_kept_on_their_own_grid_and_smooth_on_another() -> None:
    network = randomised(VisionTransformer(64, 1, 1 + 37 * 37), 6)
    assert torch.equal(network._positions((37, 37)), network.pos_embed)
    with torch.no_grad():
        network.pos_embed[:, 1:] = torch.linspace(0, 1, 37).repeat_interleave(37)[None, :, None]  # rises row by row
    found = network._positions((16, 16))[0, 1:, 0].view(16, 16)
    assert found.shape == (16, 16)
    assert torch.allclose(found[:, 0], found[:, 9], atol=1e-5)
    assert (found[1:, 0] > found[:-1, 0]).all()


def test_grey_images_are_repeated_and_levels_scaled() -> None:
    x = np.array([[[[0, 8], [16, 4]]]], np.uint8)
    found = rgb(x, DataSpec("image", (1, 2, 2), 17))
    assert found.shape == (1, 3, 2, 2)
    assert found[0, 2].tolist() == [[0, 128], [255, 64]]


def test_features_by_item_and_both_columns(inception_file: Path, dino_file: Path, tmp_path: Path) -> None:
    g = np.random.default_rng(7)
    raw = g.integers(0, 256, (12, 3, 16, 16)).astype(np.uint8)
    spaces = load_judges({"inception": inception_file, "dinov2": dino_file}, SPEC)
    for space, width in ((spaces["inception"], 2048), (spaces["dinov2"], 128)):
        found = space.features(raw[:3])
        assert found.shape == (3, width)
        assert np.allclose(space.features(raw[1:2]), found[1:2], atol=1e-4)
        assert found.std(axis=0).max() > 1e-3
        assert 0 < space.seconds_each(raw, least_s=0.0) < 60
        space.store = tmp_path
        assert np.allclose(space.remembered(raw[:3]), found, atol=1e-5)
        space.features = lambda x: pytest.fail("known features are not made again")  # type: ignore[method-assign]
        assert np.allclose(space.remembered(raw[:3]), found, atol=1e-5)
    judged = load_judges({"dinov2": dino_file}, SPEC)
    judge = CoordinateSpace(raw.reshape(12, -1))
    reference = Reference(SPEC, train=Part(raw), test=Part(raw[:6]), judge=judge, pretrained=judged)
    near = reference.evaluate(raw)["fd_dinov2"]
    far = reference.evaluate(g.integers(0, 40, (12, 3, 16, 16)).astype(np.uint8))["fd_dinov2"]
    assert "fd_dinov2" in reference.names
    assert near.value == pytest.approx(0, abs=1e-6)
    assert far.value > 1
    assert "not comparable" in far.protocol
    assert "12 samples" in far.protocol


def test_what_may_stand_beside_published_values(inception_file: Path) -> None:
    colour = load_judges({"inception": inception_file}, SPEC)["inception"]
    grey = load_judges({"inception": inception_file}, DataSpec("image", (1, 16, 16), 17))["inception"]
    assert colour.comparable(50_000, 50_000, 50_000) == "by the published protocol"
    assert "instead of 50,000" in colour.comparable(1000, 50_000, 50_000)
    assert "training items" in colour.comparable(50_000, 1000, 50_000)
    assert "grey" in grey.comparable(50_000, 50_000, 50_000)


def test_what_is_wrong_is_said(inception_file: Path, dino_file: Path, tmp_path: Path) -> None:
    assert parse_judges(["inception=a.safetensors", "dinov2=b=c"]) == {"inception": Path("a.safetensors"), "dinov2": Path("b=c")}  # fmt: skip  # noqa: E501
    for text, words in (("inception", "NAME=FILE"), ("resnet=x", "Unknown judge"), ("dinov2=", "NAME=FILE")):
        with pytest.raises(UsageError, match=words):
            parse_judges([text])
    with pytest.raises(UsageError, match="no file"):
        load_judges({"inception": tmp_path / "none"}, SPEC)
    (tmp_path / "bad.pth").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(UsageError, match="safetensors"):
        load_judges({"inception": tmp_path / "bad.pth"}, SPEC)
    for name, path in (("inception", dino_file), ("dinov2", inception_file)):
        with pytest.raises(UsageError, match="does not hold the weights"):
            load_judges({name: path}, SPEC)
    with pytest.raises(UsageError, match="images"):
        load_judges({"dinov2": dino_file}, DataSpec("vector", (2,)))
