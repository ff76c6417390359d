"""What others compute of the same features, media and weights. It needs `selfflow[parity]`.

Run as `python -m tests.parity.evaluation_reference` from the repository's root it writes the recordings in
tests/goldens that the ordinary tests hold the code against; tests/parity/test_evaluation.py computes them anew.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import polynomial_mmd

from tests.evaluation import made

DISTANCES, FEATURES = made.GOLDENS / "evaluation_distances.npz", made.GOLDENS / "evaluation_features.npz"


def distances(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """torch-fidelity's KID over all samples at once and its FID; precision and recall as ADM's evaluator has them."""
    one, two = (fid_features_to_statistics(torch.from_numpy(x)) for x in (generated, real))
    found = {"frechet": fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"]}
    found["precision"], found["recall"] = precision_recall(real, generated)
    if len(real) == len(generated):  # all that torch-fidelity knows
        found["kid"] = float(polynomial_mmd(generated, real, 3, None, 1))
    return found


def precision_recall(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """The definition, pair by pair, with k = 3: ADM's evaluator needs TensorFlow 1, and is no package."""
    apart = lambda a, b: np.array([[np.linalg.norm(x - y) for y in b] for x in a])
    radius = lambda x: np.sort(apart(x, x), axis=1)[:, 3]  # the sample itself comes first
    between = apart(real, generated)
    precision = (between <= radius(real)[:, None]).any(axis=0).mean()
    return float(precision), float((between <= radius(generated)).any(axis=1).mean())


def tensors(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Weights with the counters of batches that torch asks for."""
    found = {name: torch.tensor(array) for name, array in weights.items()}
    means = [name for name in weights if name.endswith(".running_mean")]
    return found | {name.replace("running_mean", "num_batches_tracked"): torch.tensor(1) for name in means}


def inception(weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """torch-fidelity's 2 048 channels of uint8 images [B, H, W, 3]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(tensors(weights), path)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)).eval()
    with torch.inference_mode():
        return network(torch.from_numpy(images).permute(0, 3, 1, 2))[0].numpy()


def i3d(weights: dict[str, np.ndarray], scaled: np.ndarray) -> np.ndarray:
    """400 logits of pytorch-i3d's network, as cd-fvd carries it, of videos [B, T, 224, 224, 3] in -1..1."""
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d

    network = InceptionI3d(400).eval()
    network.load_state_dict(tensors(weights))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-3  # pytorch-i3d's own, which cd-fvd has changed
    with torch.inference_mode():
        return network(torch.from_numpy(scaled).permute(0, 4, 1, 2, 3)).numpy()


def effnet(weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The pooled map of 112 channels of efficientnet-lite-pytorch, of uint8 images [B, H, W, 3]."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    lacking, unknown = network.load_state_dict(tensors(weights), strict=False)
    assert not unknown and not any(name.startswith(("_conv_stem", "_blocks.10.")) for name in lacking)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    with torch.inference_mode():
        x = network._swish(network._bn0(network._conv_stem((x - 127) / 128)))
        for block in network._blocks[:11]:
            x = block(x)
    return x.mean(dim=(2, 3)).numpy()


def recorded_distances() -> dict[str, float]:
    """{case/number: value} for every case."""
    return {f"{case}/{name}": v for case in made.CASES for name, v in distances(*made.feature_sets(case)).items()}


def recorded_features() -> dict[str, np.ndarray]:
    """Features of drawn weights and, of EfficientNet, of the package's."""
    from selfflow.encoders.effnet import _packaged
    from selfflow.encoders.media import resize_like_tensorflow_1
    from selfflow.weights.read import read_weights

    frames = np.asarray(resize_like_tensorflow_1(made.videos(1, 9)[0], 224))[None]
    return {
        "inception": inception(made.inception_weights(), made.images(2)),
        "i3d": i3d(made.i3d_weights(), 2 * frames / 255 - 1),
        "effnet": effnet(made.effnet_weights(), made.images(2)),
        "effnet/packaged": effnet(read_weights(_packaged()), made.images(2)),
    }


if __name__ == "__main__":
    np.savez(DISTANCES, **{name: np.float64(value) for name, value in recorded_distances().items()})
    np.savez(FEATURES, **recorded_features())
