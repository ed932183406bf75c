"""Visible tokens: as many as the reference shows, sorted, seeded, each as likely."""

import pytest
import torch

from spadnet.data.masking import num_visible, random_visible_index


@pytest.mark.parametrize(
    ("num_tokens", "visible"), [(500, 225), (8, 3), (4, 1), (64, 28), (16, 7), (2, 1), (1000, 450)]
)
def test_number_of_visible_tokens(num_tokens: int, visible: int) -> None:
    assert num_visible(num_tokens, 0.55) == visible


def test_ratios_at_the_ends_leave_something_on_either_side() -> None:
    assert num_visible(10, 0.99) == 1
    assert num_visible(10, 0.01) == 9


def test_index_is_sorted_without_repetition_and_seeded() -> None:
    first, second = (
        random_visible_index(5, 64, mask_ratio=0.55, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.shape == (5, 28)
    assert first.dtype == torch.int64
    assert (first[:, 1:] > first[:, :-1]).all()
    assert not torch.equal(first[0], first[1])


def test_every_token_is_as_likely() -> None:
    index = random_visible_index(
        4000, 16, mask_ratio=0.5, generator=torch.Generator().manual_seed(0)
    )
    share = torch.bincount(index.flatten(), minlength=16) / 4000
    assert (share - 0.5).abs().max() < 0.04


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_draw_what_a_single_process_draws(world_size: int) -> None:
    def draw(batch: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        return random_visible_index(
            batch,
            64,
            mask_ratio=0.55,
            generator=torch.Generator().manual_seed(1),
            rank=rank,
            world_size=world_size,
        )

    parts = [draw(2, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat(parts), draw(2 * world_size))


def test_impossible_requests_are_named() -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"mask_ratio must lie between 0 and 1, got 1\.0"):
        random_visible_index(1, 8, mask_ratio=1.0, generator=generator)
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        random_visible_index(1, 1, mask_ratio=0.5, generator=generator)
