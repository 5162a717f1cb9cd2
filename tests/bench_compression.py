"""What a codec costs and saves on one large vector: prints figures, judges nothing.

    python tests/bench_compression.py [NUMBERS]     25,000,000 by default

Codecs alternate, medians of five rounds after one that is not counted; CPU seconds of this process, one thread. The deltas are
drawn from a normal distribution. GB/s: bytes of the float32 vector over encoding and decoding together.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gossipfl.learning.compression import decode, encode, payload_size

CODECS = ("f32", "bf16", "int8", "topk:0.1", "topk:0.01")
ROUNDS = 5


def main(numbers: int) -> None:
    rng = np.random.default_rng(0)
    ref = rng.standard_normal(numbers, dtype=np.float32)
    y = ref + np.float32(0.01) * rng.standard_normal(numbers, dtype=np.float32)
    replica = np.empty_like(ref)
    payloads = {codec: np.empty(payload_size(codec, numbers, 0, 4), np.uint8) for codec in CODECS}
    spent: dict[str, list[tuple[float, float]]] = {codec: [] for codec in CODECS}
    for _ in range(ROUNDS + 1):
        for codec, payload in payloads.items():
            began = time.process_time()
            encode(codec, y, ref, n_parameters=numbers, out=payload)
            between = time.process_time()
            decode(codec, payload, ref, n_parameters=numbers, out=replica)
            spent[codec].append((between - began, time.process_time() - between))
    print(f"{numbers:,} float32 numbers, {4 * numbers / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}")
    print(f"{'codec':<10} {'smaller':>8} {'encode ms':>10} {'decode ms':>10} {'GB/s':>6}")
    for codec, payload in payloads.items():
        one, other = (statistics.median(part) for part in zip(*spent[codec][1:], strict=True))
        rate = 4e-9 * numbers / (one + other)
        print(f"{codec:<10} {1 - len(payload) / (4 * numbers):>8.2%} {one * 1e3:>10.0f} {other * 1e3:>10.0f} {rate:>6.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 25_000_000)
