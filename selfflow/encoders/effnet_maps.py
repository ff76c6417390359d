"""The last map of EfficientNet-Lite0, of pictures and of the frames of films."""

import numpy as np
from jaxtyping import Float

from selfflow.encoders.batching import in_batches
from selfflow.encoders.effnet import EffNet, batch_limit, last_map
from selfflow.encoders.media import check_media


class EffNetMaps:
    """uint8 pictures [H, W, 3] -> [14, 14, 112], films [T, H, W, 3] -> [T, 14, 14, 112]; see `Frozen`."""

    ids = None

    def __init__(self):
        network = EffNet("image")
        self._params = network.params
        self.identity = network.identity.replace(network.name, "EffNetLite0")

    def __call__(self, media: np.ndarray, id: str = "") -> Float[np.ndarray, "... 14 14 112"]:
        """Features of one picture or film."""
        pictures = media[None] if media.ndim == 3 else media
        check_media(pictures, "EfficientNet-Lite0", "image")
        maps = in_batches(lambda batch: last_map(self._params, batch), pictures, batch_limit())
        return maps[0] if media.ndim == 3 else maps
