"""Prints what PyTorch's CPU generator draws; the golden numbers of src/stream/noise.rs come from here.

Usage: python tools/reference/torch_randn.py      (needs torch)
"""

import torch

for seed in (0, 42, 2**40 + 7):
    for length in (3, 16, 21, 64):
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(length, generator=generator).tolist()
        second = torch.randn(length, generator=generator).tolist()
        print(f"({seed}, {length}, {[round(v, 6) for v in first[:3]]}, {[round(v, 6) for v in second[-2:]]}),")
