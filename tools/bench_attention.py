"""Time the attention of short sequences on a CPU in bfloat16, forward and backward.

python tools/bench_attention.py     ratios of torch's fused kernel over what spadnet does
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.layers.attention import attend

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def seconds(attention: Attention, inputs: list[Tensor]) -> float:
    """Time of one call with its gradients."""
    start = time.perf_counter()
    attention(*inputs).sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Print a row per length."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("tokens  fused ms  spadnet ms  ratio")
    for batch, tokens in ((8, 17), (8, 65), (8, 129), (2, 257), (2, 513), (1, 1025)):
        inputs = [
            torch.randn(batch, 3, tokens, 64, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        ]
        rows = [
            (seconds(F.scaled_dot_product_attention, inputs), seconds(attend, inputs))
            for _ in range(args.repeats)
        ]
        fused, own = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        ratio = statistics.median(first / second for first, second in rows)
        print(f"{tokens:6d}  {fused:8.2f}  {own:10.2f}  {ratio:5.2f}")


if __name__ == "__main__":
    main()
