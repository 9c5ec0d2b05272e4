"""The LoRA parts, precision and batch size with which a model fits a GPU, by an estimate of its memory."""

from dataclasses import dataclass

from boxtune.common.errors import UserError
from boxtune.families.family import Family
from data_prep.tools.model_size import Memory, ModelSize, estimate_memory, size_of

LORA_R = 32
_BATCH_SIZES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Fit:
    """precision: "float32", "bf16" or "NF4". tokens: those of a micro-batch. memory: None if the model's size is unknown, or if
    it trains on a CPU."""

    lora_parts: list[str]
    precision: str
    batch_size: int
    tokens: int
    size: ModelSize | None = None
    memory: Memory | None = None

    @property
    def in_4_bits(self) -> bool:
        return self.precision == "NF4"


def language_parts(family: Family) -> list[str]:
    """The LoRA parts of the language model that the family has."""
    return [part for part in family.lora_parts if part.startswith("language_")]


def on_cpu(family: Family, max_length: int) -> Fit:
    """For the embedded models, which need neither quantization nor large batches."""
    return Fit(language_parts(family), "float32", batch_size=1, tokens=max_length)


def fit_gpu(model: str, family: Family, gpu_gb: float, max_length: int, examples_per_step: int) -> Fit:
    """16 bits if they fit, else NF4 if the family allows it; then the largest batch size that divides the examples of a step.

    Raises UserError if the model does not fit.
    """
    parts = language_parts(family)
    size = size_of(model, family, parts)
    precisions = ["bf16"] if family.experts or family.prefers_16_bits else ["bf16", "NF4"]
    if size is None:
        return Fit(parts, precisions[-1], batch_size=1, tokens=max_length)
    for precision in precisions:
        for batch_size in _BATCH_SIZES:
            memory = estimate_memory(size, precision == "NF4", LORA_R, batch_size * max_length)
            if examples_per_step % batch_size == 0 and memory.fits(gpu_gb):
                return Fit(parts, precision, batch_size, batch_size * max_length, size, memory)
    raise UserError(_too_large(model, family, size, gpu_gb, max_length))


def _too_large(model: str, family: Family, size: ModelSize, gpu_gb: float, max_length: int) -> str:
    in_16_bits, in_4_bits = (estimate_memory(size, nf4, LORA_R, max_length).total / 1e9 for nf4 in (False, True))
    if family.experts:
        reason = "A mixture of experts is not quantized to 4 bits, because its experts are not linear layers."
    elif family.prefers_16_bits:
        reason = (
            f"NF4 (load_in_4bit: true, about {in_4_bits:.0f} GB) is not suggested: it is reported to cost this family more "
            "quality than others."
        )
    else:
        reason = f"NF4 would take about {in_4_bits:.0f} GB, too."
    return (
        f"training {model} with LoRA takes about {in_16_bits:.0f} GB in 16 bits, too much for a GPU of {gpu_gb:g} GB. {reason} "
        "Use a smaller model, or state a larger GPU (--gpu-gb N; make: GPU_GB=N)."
    )
