"""The memory that training takes."""

import psutil
import torch


def memory_gb() -> float:
    """GB (10^9 bytes): the most that torch had allocated on this process's GPU so far or, without one, what the process takes."""
    taken = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
    return round(taken / 1e9, 3)
