"""Checks that this machine can train, made before anything is loaded."""

import ctypes
import os
import re
import shutil
import sysconfig
from pathlib import Path

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig

from boxtune.common.errors import UserError
from boxtune.families import FAMILIES

# Bytes per pixel in a batch: 3 channels × 2 equal frames (Qwen-VL's temporal patch) × 4 bytes (float32).
BYTES_PER_PIXEL = 3 * 2 * 4
# Batches that each worker prepares ahead (torch's default prefetch_factor).
BATCHES_PER_WORKER = 2


def flush_denormals() -> None:
    """Round numbers below 1e-38 to zero from now on, on a CPU. `python -m benchmarks.denormals` measures what that saves.

    The weights of attention and their gradients are full of such numbers, and CPUs need many times as long for them.
    """
    torch.set_flush_denormal(True)


def require_machine(gpus: int) -> None:
    """Raises UserError that lists everything that prevents training on this machine. `gpus`: GPUs visible to this process."""
    problems = []
    if gpus > 1:  # torch would use DataParallel, which TRL rejects only later
        problems.append(
            f"this process sees {gpus} GPUs, but each GPU needs its own process. To use one GPU: CUDA_VISIBLE_DEVICES=0 make "
            'train …; to use all: LAUNCH=".venv/bin/accelerate launch --config_file recipes/accelerate/ddp.yaml"'
        )
    # ZeRO-3 shards weights while they load, but boxtune loads them whole onto each GPU.
    if is_deepspeed_zero3_enabled():
        problems.append(
            "ZeRO-3 is not supported: launch with recipes/accelerate/zero2.yaml, or with fsdp.yaml if the base does not fit on "
            "a single GPU"
        )
    if torch.cuda.is_available():
        problems += compiler_problems(Path(sysconfig.get_paths()["include"]))
    if problems:
        raise UserError("training cannot start on this machine:", problems)


# ---- Why there is no GPU -------------------------------------------------------------------------------------------------

DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def has_nvidia_driver() -> bool:
    return _cuda_of_driver() is not None


def why_no_gpu() -> str:
    """Why torch finds no CUDA GPU, and what to do about it."""
    supported, built_for = _cuda_of_driver(), torch.version.cuda
    if supported is None:
        return "this machine has none"
    driver = f"the NVIDIA driver{_driver_version()}"
    if built_for is None:
        return f"torch {torch.__version__} was built without CUDA, although {driver} is installed; install a torch with CUDA"
    major = int(built_for.split(".")[0])  # a driver runs every CUDA version of its major version, and all earlier ones
    if supported[0] < major:
        return (
            f"{driver} supports CUDA up to {supported[0]}.{supported[1]}, but torch {torch.__version__} was built for CUDA "
            f"{built_for}; install a driver for CUDA {major} or later, or a torch that was built for CUDA {supported[0]}"
        )
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"torch finds none with CUDA_VISIBLE_DEVICES={visible!r}, although {driver} is installed; change that variable"
    return f"torch finds none, although {driver} is installed; nvidia-smi shows whether the GPU works"


def _cuda_of_driver() -> tuple[int, int] | None:
    """The latest CUDA version (major, minor) that the installed driver supports; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)) or not number.value:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _driver_version() -> str:
    """ " 535.104.05"; empty if the kernel module does not say."""
    text = DRIVER_VERSION.read_text() if DRIVER_VERSION.is_file() else ""
    found = re.search(r"Module\s.*?(\d+\.\d+(?:\.\d+)?)", text)
    return f" {found.group(1)}" if found else ""


# ---- What else training needs --------------------------------------------------------------------------------------------


def compiler_problems(include: Path) -> list[str]:
    """Why Triton could not compile TRL's GPU loss at the first step; empty if it can. `include`: folder of Python.h."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    missing = [] if compiler else ["a C compiler (gcc or clang)"]
    missing += [] if (include / "Python.h").is_file() else [f"{include / 'Python.h'}"]
    if not missing:
        return []
    remedy = "run apt install gcc python3-dev, or the equivalent for your system"
    return [f"the loss is compiled for the GPU, but {' and '.join(missing)} cannot be found. To fix this, {remedy}"]


def workers_that_fit(
    training: SFTConfig, max_pixels: int, shared_memory: Path = Path("/dev/shm"), tokens_per_batch: int | None = None
) -> tuple[int, str | None]:
    """(number of data loader workers, note for the user or None).

    Workers pass batches through shared memory, which containers often limit to 64 MB. If it cannot hold the batches that the
    workers prepare ahead, images are loaded in the training process: 0 workers.
    """
    workers = training.dataloader_num_workers
    if not workers or not shared_memory.is_dir():
        return workers, None
    pixels = training.per_device_train_batch_size * max_pixels
    if tokens_per_batch:  # all of them of images, or one image that exceeds the budget
        pixels = max(tokens_per_batch * max(family.factor for family in FAMILIES.values()) ** 2, max_pixels)
    if training.eval_strategy != "no":
        pixels = max(pixels, training.per_device_eval_batch_size * max_pixels)
    needed = BATCHES_PER_WORKER * workers * pixels * BYTES_PER_PIXEL * training.world_size
    free = shutil.disk_usage(shared_memory).free
    if needed <= free:
        return workers, None
    note = (
        f"{workers} workers may need {needed / 1e6:,.0f} MB of shared memory, but {shared_memory} has {free / 1e6:,.0f} MB free: "
        "images are loaded without workers. In a container, docker run --shm-size raises the limit"
    )
    return 0, note
