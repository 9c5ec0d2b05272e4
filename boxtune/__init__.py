"""boxtune: fine-tune Qwen-VL models to detect your objects.

from boxtune import Detector
detector = Detector.from_pretrained("runs/NAME/final_merged")
detections = detector("photo.jpg")
"""

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxtune.inference.detections import Detections
    from boxtune.inference.detector import Detector

__version__ = "0.1.0"
__all__ = ["Detections", "Detector", "__version__"]

# Imported on first use: a detector needs torch, which takes seconds to import and which most of boxtune does without.
_MODULES = {"Detections": "boxtune.inference.detections", "Detector": "boxtune.inference.detector"}

# On a CPU with AVX512-BF16, bitsandbytes warns at import that it could fetch a faster kernel from the Hub; nothing here needs
# it. The level must be set before anything imports bitsandbytes, as transformers' trainer does.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
