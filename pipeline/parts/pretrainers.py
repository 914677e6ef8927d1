"""Pretrainers: what a backbone learns from images alone, before anybody has labelled them.

Form: a class ``f(plan, *, …) -> nn.Module`` with ``forward(network, pixels) -> (B,) float32``, the loss of each image.
plan: the sizes of what it works on. network: has ``prepare`` (pixels in 0…255 → the backbone's input), ``maps``
(input → (B, F, h, w)) and ``vectors`` (input → (B, F), the mean over the map). pixels: (B, C, S, S) uint8; of a part
with the fact ``views``, so many views of B images, one view of all of them after the other. What is drawn comes from
torch's generator, which the loop seeds for each step. What the part learns itself, decoder or projector, is dropped
afterwards.

One with the fact ``reconstructs`` has ``reconstruct(network, pixels) -> Reconstruction``, which draws the same for
every image, so that errors can be compared. Targets are pixels in −2…2, whatever ``data.normalise`` is.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.parts.pairs import sup_con
from pipeline.registry import part

MIDDLE, SPAN = 127.5, 63.75  # of pixels in 0…255, which become −2…2: of natural images of deviation 1, about
CELLS = 7  # patches along a side, as the 32 px of 224 that Xie et al. hide
GRID = 4  # places along a side that a code is made of
MASKS = 4  # whose errors an image's is the mean of
NARROWEST, WIDEST = 16, 256  # channels of the decoder's finest and coarsest maps
BOUND = 10.0  # of log variances: beyond, exp() is no number in half precision


class Plan(NamedTuple):
    """Of images: channels and side in pixels. Of the backbone's last map: features, height and width.

    tokens: whether the map's places are a transformer's patches, of which each sees itself alone at first.
    """

    channels: int
    size: int
    features: int
    height: int
    width: int
    tokens: bool = False


class Reconstruction(NamedTuple):
    """Of B images: what the network was shown and what it made of it, (B, C, S, S) float in −2…2; errors (B,).

    codes: (B, L) float32, or None where there are none.
    """

    shown: Tensor
    made: Tensor
    errors: Tensor
    codes: Tensor | None = None


def standard(pixels: Tensor) -> Tensor:
    """Pixels in 0…255 → float32 in −2…2."""
    return (pixels.float() - MIDDLE) / SPAN


def grey(values: Tensor) -> Tensor:
    """The inverse of ``standard``; what lies beyond is cut."""
    return (values.float() * SPAN + MIDDLE).clamp(0, 255)


# --- decoders -----------------------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """A map → an image, by one linear layer at each place (Xie et al. 2022, sec. 3.4): the rest is the backbone's."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.size = plan.size
        self.stride = math.ceil(plan.size / min(plan.height, plan.width))
        self.project = nn.Conv2d(plan.features, plan.channels * self.stride**2, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, F, h, w) → (B, C, S, S) float32."""
        found = functional.pixel_shuffle(self.project(maps), self.stride).float()
        if found.shape[-2:] == (self.size, self.size):
            return found
        return functional.interpolate(found, size=(self.size, self.size), mode="bilinear", antialias=True)


class Upwards(nn.Sequential):
    """A vector → an image, by convolutions that double a map of about 4 × 4 until it is as large."""

    def __init__(self, plan: Plan, inputs: int) -> None:
        doublings = max(0, math.ceil(math.log2(plan.size / GRID)))
        self.size, start = plan.size, math.ceil(plan.size / 2**doublings)
        widths = [min(WIDEST, NARROWEST * 2 ** (doublings - step)) for step in range(doublings + 1)]
        layers: list[nn.Module] = [
            nn.Linear(inputs, widths[0] * start**2), nn.Unflatten(1, (widths[0], start, start)), *_settled(widths[0])
        ]  # fmt: skip
        for before, after in itertools.pairwise(widths):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1, bias=False)]
            layers += _settled(after)
        super().__init__(*layers, nn.Conv2d(widths[-1], plan.channels, 3, padding=1))

    def forward(self, input: Tensor) -> Tensor:
        """(B, L) → (B, C, S, S) float32."""
        return super().forward(input)[..., : self.size, : self.size].float()


def _settled(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


# --- reconstruction -----------------------------------------------------------------------------------------------


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B, L) each → (B,): the KL divergence of N(mean, variance) from N(0, 1). Kingma & Welling 2014, appendix B."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


@part(
    source="Kingma & Welling 2014, eq. 10; beta: Higgins et al. 2017 (β-VAE), eq. 4",
    reconstructs=True,
    codes=True,
    allowed={"latent": (1, 4096), "beta": (0, None)},
)
class vae(nn.Module):
    """A variational auto-encoder: the image as a few numbers with a spread, and back.

    Half the squared error summed over pixels (a Gaussian of deviation 1 in the units of −2…2) plus beta times the KL
    divergence from N(0, 1), both divided by the number of pixels. latent: numbers of the code, made of the last map at
    4 × 4 places. beta: 1 is the bound on the likelihood; more makes codes simpler and images more blurred.
    """

    def __init__(self, plan: Plan, *, latent: int = 64, beta: float = 1.0) -> None:
        super().__init__()
        self.beta, self.grid = beta, (min(GRID, plan.height), min(GRID, plan.width))
        self.moments = nn.Linear(plan.features * math.prod(self.grid), 2 * latent)
        self.decode = Upwards(plan, latent)

    def posterior(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, h, w) → mean and log variance of the code, (B, L) float32 each."""
        found = self.moments(functional.adaptive_avg_pool2d(maps, self.grid).flatten(1)).float()
        mean, log_variance = found.chunk(2, dim=1)
        return mean, log_variance.clamp(-BOUND, BOUND)

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """(B, C, S, S) uint8 → (B,) losses."""
        mean, log_variance = self.posterior(network.maps(network.prepare(pixels)))
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.decode(code) - standard(pixels)).square().flatten(1).sum(dim=1) / 2
        return (error + self.beta * divergence(mean, log_variance)) / pixels[0].numel()

    def reconstruct(self, network: Any, pixels: Tensor) -> Reconstruction:
        """What the mean of the code decodes to; nothing is drawn."""
        codes, wanted = self.posterior(network.maps(network.prepare(pixels)))[0], standard(pixels)
        made = self.decode(codes)
        return Reconstruction(wanted, made, (made - wanted).square().flatten(1).mean(dim=1), codes)


@part(source="Vincent et al. 2010, sec. 3.3", reconstructs=True, allowed={"deviation": (0.01, 4)})
class denoising(nn.Module):
    """An auto-encoder that removes Gaussian noise; the squared error over all pixels.

    deviation: of the noise, where pixels are −2…2.
    """

    def __init__(self, plan: Plan, *, deviation: float = 1.0) -> None:
        super().__init__()
        self.deviation, self.decode = deviation, Pixels(plan)

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """(B, C, S, S) uint8 → (B,) losses."""
        wanted = standard(pixels)
        made = self._cleaned(network, wanted + self.deviation * torch.randn_like(wanted))
        return (made - wanted).square().flatten(1).mean(dim=1)

    def reconstruct(self, network: Any, pixels: Tensor) -> Reconstruction:
        """The same noise on every image."""
        wanted = standard(pixels)
        noise = torch.randn(wanted.shape[1:], generator=torch.Generator().manual_seed(0)).to(wanted.device)
        spoilt = wanted + self.deviation * noise
        made = self._cleaned(network, spoilt)
        return Reconstruction(spoilt, made, (made - wanted).square().flatten(1).mean(dim=1))

    def _cleaned(self, network: Any, spoilt: Tensor) -> Tensor:
        made: Tensor = self.decode(network.maps(network.prepare(spoilt * SPAN + MIDDLE)))
        return made


@part(
    source="Xie et al. 2022 (SimMIM), sec. 3, for nets of any kind; He et al. 2022 (MAE)",
    reconstructs=True,
    crops=True,
    allowed={"ratio": (0.05, 0.95), "patch": (0, 1024)},
)
class masked(nn.Module):
    """An auto-encoder that fills in hidden patches; the absolute error over their pixels alone.

    A hidden patch has the value 0 behind data.normalise, the mean of all images. ratio: share of patches that is
    hidden. patch: their side in pixels; 0: a seventh of the image's, of a transformer whole patches of its own.
    """

    def __init__(self, plan: Plan, *, ratio: float = 0.6, patch: int = 0) -> None:
        super().__init__()
        stride = plan.size / plan.height if plan.tokens and plan.height > 1 else 1.0
        own = patch or max(1, round(max(1, round(plan.size / CELLS / stride)) * stride))
        self.patch = min(own, math.ceil(plan.size / 2))
        self.side = math.ceil(plan.size / self.patch)
        self.hidden = min(self.side**2 - 1, max(1, round(ratio * self.side**2)))
        self.size, self.decode = plan.size, Pixels(plan)

    def masks(self, order: Tensor) -> Tensor:
        """(B, cells) numbers drawn → (B, 1, S, S) float, 1 where it is hidden: the patches of the smallest numbers."""
        hidden = (order.argsort(dim=1).argsort(dim=1) < self.hidden).float()
        cells = hidden.view(-1, 1, self.side, self.side)
        whole = cells.repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)
        return whole[..., : self.size, : self.size]

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """(B, C, S, S) uint8 → (B,) losses."""
        masks = self.masks(torch.rand(len(pixels), self.side**2, device=pixels.device))
        return self._error(self._filled(network, pixels, masks), standard(pixels), masks)

    def reconstruct(self, network: Any, pixels: Tensor) -> Reconstruction:
        """The mean error under the same few masks on every image; shown and made under the first of them."""
        generator, wanted = torch.Generator().manual_seed(0), standard(pixels)
        errors = []
        for _ in range(MASKS):
            masks = self.masks(torch.rand(1, self.side**2, generator=generator).to(wanted.device))
            made = self._filled(network, pixels, masks)
            errors.append((self._error(made, wanted, masks), wanted * (1 - masks), wanted.lerp(made, masks)))
        _, shown, whole = errors[0]
        return Reconstruction(shown, whole, torch.stack([error for error, *_ in errors]).mean(dim=0))

    def _filled(self, network: Any, pixels: Tensor, masks: Tensor) -> Tensor:
        prepared = network.prepare(pixels)
        made: Tensor = self.decode(network.maps(prepared * (1 - masks).to(prepared.dtype)))
        return made

    def _error(self, made: Tensor, wanted: Tensor, masks: Tensor) -> Tensor:
        apart = (made - wanted).abs().mean(dim=1, keepdim=True) * masks
        return apart.flatten(1).sum(dim=1) / masks.flatten(1).sum(dim=1)


# --- comparison of views ------------------------------------------------------------------------------------------


def _layers(*widths: int, last: bool) -> list[nn.Module]:
    """Linear layers, BatchNorms behind all, the last of which has no scale; last: whether it is there."""
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(itertools.pairwise(widths), 1):
        if place < len(widths) - 1:
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        elif last:
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=False)]
        else:
            layers += [nn.Linear(before, after)]
    return layers


@part(source="Chen & He 2021 (SimSiam), algorithm 1", views=2, allowed={"width": (0, 65536)})
class simsiam(nn.Module):
    """Each view's vector predicts the other's, which is held still: no negatives, so that small batches will do.

    Minus the cosine, from −1 to 1, the mean of both directions. width: of projector and predictor, a quarter of it in
    the middle of the latter; 0: the backbone's features.
    """

    def __init__(self, plan: Plan, *, width: int = 0) -> None:
        super().__init__()
        width = width or plan.features
        self.project = nn.Sequential(*_layers(plan.features, width, width, width, last=True))
        self.predict = nn.Sequential(*_layers(width, max(1, width // 4), width, last=False))

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """(2B, C, S, S) uint8 → (B,) losses."""
        points = self.project(network.vectors(network.prepare(pixels)))
        guesses = self.predict(points).float().chunk(2)
        first, second = points.float().detach().chunk(2)
        toward = functional.cosine_similarity(guesses[0], second), functional.cosine_similarity(guesses[1], first)
        return -(toward[0] + toward[1]) / 2


@part(source="Chen et al. 2020 (SimCLR), eq. 1", views=2, negatives=True, allowed={"temperature": (0.001, None),
      "width": (1, 65536)})  # fmt: skip
class simclr(nn.Module):
    """Each view is to find the other of its image among all views of the batch, by cosines (NT-Xent).

    temperature: divides the cosines; the paper's is 0.5 for small images and 0.1 for ImageNet. width: of the points
    that are compared. The images of a batch are the negatives: 128 at least.
    """

    def __init__(self, plan: Plan, *, temperature: float = 0.2, width: int = 128) -> None:
        super().__init__()
        self.temperature = temperature
        self.project = nn.Sequential(*_layers(plan.features, plan.features, width, last=True))

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """(2B, C, S, S) uint8 → (B,) losses."""
        points = self.project(network.vectors(network.prepare(pixels)))
        images = torch.arange(len(points) // 2, device=points.device).repeat(2)
        rows: Tensor = sup_con(points, images, temperature=self.temperature)  # of one positive: NT-Xent
        return rows.view(2, -1).mean(dim=0)
