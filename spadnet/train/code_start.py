"""Start the codebook from clusters of what the encoder says.

A tokenizer first trains with its quantizer bypassed; then k-means on the normalised latents of
recent batches gives the codes. Without this start a short training uses a fraction of its codes.
"""

import torch
from torch import Tensor


def kmeans(
    points: Tensor, num_clusters: int, *, generator: torch.Generator, steps: int = 15
) -> Tensor:
    """Cluster centres by k-means++ seeding and Lloyd's steps.

    Args:
        points: [N, C] with N at least ``num_clusters``.
        num_clusters: Number of clusters K.
        generator: Source of the seeds, on the device of the points.
        steps: Number of Lloyd's steps.

    Returns:
        Centres, [K, C]; an empty cluster moves onto a random point.
    """
    if len(points) < num_clusters:
        raise ValueError(f"{num_clusters} clusters need as many points, got {len(points)}")
    device = points.device
    first = torch.randint(len(points), (1,), generator=generator, device=device)
    chosen = [points[first]]
    distance = (points - chosen[0]).square().sum(1)
    for _ in range(num_clusters - 1):
        pick = torch.multinomial(distance + 1e-9, 1, generator=generator)
        chosen.append(points[pick])
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(1))
    centres = torch.cat(chosen)
    for _ in range(steps):
        nearest = torch.cdist(points, centres).argmin(1)
        total = torch.zeros_like(centres).index_add_(0, nearest, points)
        count = torch.bincount(nearest, minlength=num_clusters).unsqueeze(1)
        spare = torch.randint(len(points), (num_clusters,), generator=generator, device=device)
        centres = torch.where(count > 0, total / count.clamp_min(1), points[spare])
    return centres


def temperature_for_entropy(points: Tensor, centres: Tensor, entropy: float) -> float:
    """Temperature at which ``softmax(-|z - c|^2 / temperature)`` has the wanted mean entropy.

    Args:
        points: [N, C].
        centres: [K, C].
        entropy: Mean entropy per point in nats, below ln K.
    """
    distance = torch.cdist(points, centres).square()
    low, high = 1e-3, 1e4
    for _ in range(60):
        middle = (low * high) ** 0.5
        log_p = (-distance / middle).log_softmax(-1)
        if -(log_p.exp() * log_p).sum(-1).mean() < entropy:
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5
