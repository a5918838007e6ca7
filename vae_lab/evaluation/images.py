"""How well images are reconstructed, by the measures of image processing."""

import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.regression import MeanSquaredError

from vae_lab.distributions import centre
from vae_lab.evaluation.chunks import MEMORY, rows_within, some
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

SIGMA = 1.5
"""Of SSIM's window, which is 11 pixels wide (Wang et al. 2004); narrower where images are smaller than that."""


@torch.no_grad()
def images(vae: VAE, batch: Batch, memory: int = MEMORY) -> dict[str, float]:
    """MSE, PSNR and SSIM of the means of p(x | z) at the means of q(z | x), pixels being in [0, 1].

    Args:
        memory: the most bytes that may be used at a time
    Raises:
        ValueError: if data are no images [C, H, W] of at least 3 x 3 pixels.
    """
    if len(vae.shape) != 3 or min(vae.shape[1:]) < 3:
        raise ValueError(f"images must be [C, H, W] of at least 3 x 3 pixels, got data {list(vae.shape)}")
    radius = (min(vae.shape[1:]) - 1) // 2  # torchmetrics' is int(3.5 sigma + 0.5)
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0, sigma=SIGMA if radius >= 5 else radius / 3.5)
    measures = {"mse": MeanSquaredError(), "psnr": PeakSignalNoiseRatio(data_range=1.0), "ssim": ssim}

    def means(data: Batch) -> torch.Tensor:
        return vae.p_x(centre(vae.encoder(data)), data.label).mean

    rows = rows_within(memory, batch, means)
    for start in range(0, len(batch.x), rows):
        data = some(batch, slice(start, min(start + rows, len(batch.x))))
        reconstructed = means(data)
        for measure in measures.values():
            measure.to(data.x.device).update(reconstructed, data.x)
    return {name: float(measure.compute()) for name, measure in measures.items()}
