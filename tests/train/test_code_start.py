"""The codebook's start: clusters, and a softness that is asked for."""

import math

import pytest
import torch

from spadnet.data.batch import Batch
from spadnet.models.tokenizer import Tokenizer
from spadnet.train.code_start import kmeans, temperature_for_entropy
from spadnet.train.tokenizer_task import CodeStart, TokenizerTask


def _blobs(num_blobs: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(num_blobs, 6, generator=generator)
    noise = 0.1 * torch.randn(num_blobs, size, 6, generator=generator)
    return centres, (centres[:, None] + noise).flatten(0, 1)


def test_kmeans_finds_separated_blobs() -> None:
    centres, points = _blobs(8, 40)
    found = kmeans(points, 8, generator=torch.Generator().manual_seed(1))
    distance = torch.cdist(centres, found).min(dim=1).values
    assert distance.max() < 0.2


def test_kmeans_is_a_function_of_its_generator() -> None:
    _, points = _blobs(5, 30)
    a, b = (kmeans(points, 7, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


def test_kmeans_needs_enough_points() -> None:
    with pytest.raises(ValueError, match="9 clusters need as many points, got 8"):
        kmeans(torch.randn(8, 2), 9, generator=torch.Generator())


@pytest.mark.parametrize("entropy", [0.3, 1.0, 1.5])
def test_temperature_gives_the_entropy_asked_for(entropy: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(300, 4, generator=generator)
    centres = points[:12]
    temperature = temperature_for_entropy(points, centres, entropy)
    log_p = (-torch.cdist(points, centres).square() / temperature).log_softmax(-1)
    assert -(log_p.exp() * log_p).sum(-1).mean() == pytest.approx(entropy, abs=0.01)
    assert entropy < math.log(12)


def test_started_codes_serve_the_latents_they_come_from() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=12, norm_latent=True)
    task = TokenizerTask(tokenizer, max_steps=10, code_start=CodeStart(share=0.5, entropy=0.5))
    spacing = torch.ones(4, 3)
    batches = [
        [Batch(torch.rand(4, 1, 4, 32, 32) ** power, 2, spacing, ["a"] * 4)]
        for power in (0.3, 1.0, 3.0)
    ]
    image = torch.cat([batch[0].image for batch in batches])

    def mean_entropy_and_codes() -> tuple[float, int]:
        with torch.no_grad():
            logits = tokenizer.quantizer(tokenizer.encode(image, 2)).logits
        p = logits.softmax(-1)
        return -(p * p.log()).sum(-1).mean().item(), len(logits.argmax(-1).unique())

    task.start_codes(batches)
    entropy, codes = mean_entropy_and_codes()
    assert entropy == pytest.approx(0.5, abs=0.05)
    assert codes == 12
