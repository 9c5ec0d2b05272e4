"""boxtune: fine-tune Qwen-VL models to detect your objects."""

__version__ = "0.1.0"
