"""The output of a frozen vision tower, kept on disk: each image passes the tower once in all epochs, and in all runs."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from boxtune.common.errors import UserError
from boxtune.models.config import family_of

SUFFIX = ".safetensors"


class CachedTower(nn.Module):
    """A vision tower whose output for a named image is computed once, alone, and then read from `folder`.

    Calls inside `naming(keys)` use the cache; other calls pass through. At most `max_bytes` are kept: after that, further
    outputs are computed each time. Attributes are those of the tower. hits, misses: numbers of named images.
    """

    def __init__(self, tower: nn.Module, folder: Path, max_bytes: int):
        super().__init__()
        self.tower = tower
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.bytes = sum(path.stat().st_size for path in folder.parent.glob(f"*/*{SUFFIX}"))
        self.keys: Sequence[str] = ()
        self.hits = self.misses = 0

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("tower"), name)

    @contextmanager
    def naming(self, keys: Sequence[str]) -> Iterator[None]:
        """Inside the block, the images of a call have these keys, in their order."""
        self.keys = keys
        try:
            yield
        finally:
            self.keys = ()

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, **options):
        """hidden_states: (patches of all images, features). Returns the tower's output; of a named call, pooler_output and
        deepstack_features alone, which is what the language model reads."""
        if not self.keys:
            return self.tower(hidden_states, grid_thw=grid_thw, **options)
        patches = hidden_states.split(grid_thw.prod(1).tolist())
        parts = [
            self._output(key, image, grid[None], options)
            for key, image, grid in zip(self.keys, patches, grid_thw, strict=True)
        ]
        pooled, *deepstack = (torch.cat(same) for same in zip(*parts, strict=True))
        return BaseModelOutputWithDeepstackFeatures(pooler_output=pooled, deepstack_features=deepstack or None)

    def _output(self, key: str, image: Tensor, grid: Tensor, options: dict) -> list[Tensor]:
        """[pooler_output, *deepstack_features] of one image."""
        path = self.folder / f"{key}{SUFFIX}"
        if (found := _read(path, image.device)) is not None:
            self.hits += 1
            return found
        self.misses += 1
        with torch.no_grad():
            output = self.tower(image, grid_thw=grid, **options)
        tensors = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        self._write(path, tensors)
        return tensors

    def _write(self, path: Path, tensors: list[Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in tensors)
        if self.bytes + size > self.max_bytes:
            return
        temporary = path.with_suffix(f".{os.getpid()}")
        save_file({str(number): tensor.contiguous() for number, tensor in enumerate(tensors)}, temporary)
        os.replace(temporary, path)
        self.bytes += size


def _read(path: Path, device: torch.device) -> list[Tensor] | None:
    """The tensors of a file in their order; None if there is none, or if it is corrupt."""
    try:
        tensors = load_file(path, device=str(device))
    except (FileNotFoundError, SafetensorError):
        return None
    return [tensors[str(number)] for number in range(len(tensors))]


def cache_tower(base: PreTrainedModel, folder: Path, max_gb: float) -> CachedTower:
    """Replace the vision tower of `base` by one that keeps its outputs below `folder`, in a folder for its weights.

    base: the model below its adapters. Raises UserError if anything in the tower is trained.
    """
    parent_path, _, name = family_of(base.config).vision_tower.rpartition(".")
    parent = base.get_submodule(parent_path)
    tower = parent.get_submodule(name)
    if trained := [path for path, weight in tower.named_parameters() if weight.requires_grad]:
        raise UserError(
            f"vision_cache: the vision tower or its merger is trained, so its output changes. Freeze it (lora_vision: false, or "
            f"lora_parts without vision parts and merger), or omit vision_cache. {len(trained)} weights are trained, such as:",
            trained[:3],
        )
    cached = CachedTower(tower, folder / _weights_key(tower, base), int(max_gb * 1e9))
    setattr(parent, name, cached)
    return cached


def _weights_key(tower: nn.Module, base: PreTrainedModel) -> str:
    """A hash of what the output depends on besides the image: the weights, how they are multiplied, and where."""
    digest = hashlib.sha256()
    device = next(tower.parameters()).device.type
    digest.update(f"{base.config._attn_implementation} {device} {torch.__version__}".encode())
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
