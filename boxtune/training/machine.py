"""What a machine must have for a training, told before anything is loaded."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig

from boxtune.common.errors import UserError

# Of a pixel that a worker hands over: three colours of two equal frames, in float32 (Qwen-VL's temporal patch).
BYTES_OF_PIXEL = 3 * 2 * 4


def require_machine(gpus: int) -> None:
    """Raises UserError that lists all that stands against training here; `gpus` are those of this one process."""
    problems = []
    if gpus > 1:  # torch's DataParallel, which TRL refuses late
        problems.append(
            f"this machine has {gpus} GPUs, and each needs a process of its own. For one of them: CUDA_VISIBLE_DEVICES=0 make "
            'train …; for all: LAUNCH=".venv/bin/accelerate launch --config_file recipes/accelerate/ddp.yaml"'
        )
    if is_deepspeed_zero3_enabled():  # it shares weights out as they load, where we load them whole onto each GPU
        problems.append(
            "ZeRO-3 is not supported: launch with recipes/accelerate/zero2.yaml, or with fsdp.yaml for a base that fits no "
            "single GPU"
        )
    if torch.cuda.is_available():
        problems += compiler_problems(Path(sysconfig.get_paths()["include"]))
    if problems:
        raise UserError("training cannot start here:", problems)


def compiler_problems(include: Path) -> list[str]:
    """Why Triton, by which TRL computes its loss on a GPU, could not compile C at the first step."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    missing = [] if compiler else ["a C compiler (gcc or clang)"]
    missing += [] if (include / "Python.h").is_file() else [f"{include / 'Python.h'}"]
    remedy = "install them: apt install gcc python3-dev, or what your system calls them"
    return (
        [f"the loss is compiled for the GPU, and {' and '.join(missing)} cannot be found; {remedy}"] if missing else []
    )


def fit_workers(training: SFTConfig, max_pixels: int, shared_memory: Path = Path("/dev/shm")) -> str | None:
    """Load pictures in the training process where shared memory, which containers often bound to 64 MB, cannot hold the
    batches that workers have ready (two each). Returns what to tell the user."""
    if not training.dataloader_num_workers or not shared_memory.is_dir():
        return None
    batch = training.per_device_train_batch_size
    if training.eval_strategy != "no":
        batch = max(batch, training.per_device_eval_batch_size)
    needed = 2 * training.dataloader_num_workers * batch * max_pixels * BYTES_OF_PIXEL * training.world_size
    free = shutil.disk_usage(shared_memory).free
    if needed <= free:
        return None
    note = (
        f"{training.dataloader_num_workers} workers could need {needed / 1e6:,.0f} MB of shared memory, and {shared_memory} has "
        f"{free / 1e6:,.0f} MB: pictures are loaded without workers. In a container, docker run --shm-size gives more"
    )
    training.dataloader_num_workers = 0
    return note
