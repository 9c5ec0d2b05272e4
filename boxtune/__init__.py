"""boxtune: fine-tune Qwen-VL models to detect your objects."""

import logging

__version__ = "0.1.0"

# On a CPU with AVX512-BF16 it warns, when imported, of a faster kernel that it would fetch from the hub; nothing here needs it.
# So what imports it, as transformers' trainer does, has to come later.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
