"""Pools compared by probes that never see the cases they are scored on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spadnet.data.task_images import TaskImage
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing
from spadnet.weights.hub import save_pretrained

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def test_noise_tells_nothing_and_a_signal_all() -> None:
    import compare_pools

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 20, generator=generator)
    noise = (torch.randn(400, generator=generator) > 0).long()
    signal = (x[:, 0] > 0).long()
    for score in (
        compare_pools.cross_validated,
        lambda x, y: compare_pools.few_labels(x, y, 60),
    ):
        assert abs(score(x, noise) - 0.5) < 0.1
        assert score(x, signal) > 0.9


def test_table_has_a_row_for_each_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import compare_pools

    rng = np.random.default_rng(0)
    labels = {split: np.arange(n)[:, None] % 2 for split, n in (("train", 30), ("val", 10))}
    arrays = {f"{split}_labels": found for split, found in labels.items()}
    arrays |= {
        f"{split}_images": (rng.random((len(found), 32, 32)) * 99 + 100 * found[:, :, None]).astype(
            np.uint8
        )
        for split, found in labels.items()
    }
    arrays |= {"test_images": arrays["val_images"], "test_labels": arrays["val_labels"]}
    np.savez(tmp_path / "two.npz", **arrays)
    torch.manual_seed(0)
    vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=1)
    folder = save_pretrained(vit, tmp_path / "vit")
    line = ["compare_pools.py", str(folder), "--data", str(tmp_path / "two.npz"), "--few", "8"]
    monkeypatch.setattr(sys, "argv", line)
    compare_pools.main()
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in rows] == ["token", "avg", "avgstd"]
    assert all(float(value) > 0.9 for row in rows for value in row.split()[2:])
    monkeypatch.setattr(sys, "argv", [*line[:-1], "30"])
    with pytest.raises(SystemExit, match="--few must be 4 to 20, got 30"):
        compare_pools.main()


def test_pools_are_those_of_the_model() -> None:
    import compare_pools

    torch.manual_seed(0)
    vit = SpadViT(in_chans=1, embed_dim=24, depth=1, num_heads=1, num_registers=2).eval()
    image = TaskImage("a", torch.rand(1, 1, 32, 32), torch.zeros(1), 5, Spacing.planar())
    for pool, found in compare_pools.features(vit, [image]).items():
        vit.reset_classifier(0, pool)
        with torch.no_grad():
            torch.testing.assert_close(found, vit(image.image[None], 5))
