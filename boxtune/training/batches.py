"""From a recipe: whether micro-batches are padded or packed, which examples each holds, and the learning rate that follows."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker
from trl import ModelConfig, SFTConfig

from boxtune.batching.batch_plan import Limit, PlannedBatches, padding_share, plan, random_batches
from boxtune.common.errors import UserError
from boxtune.data.shards import Shards
from boxtune.families.family import Family
from boxtune.training.arguments import BoxtuneArguments
from boxtune.training.console import say
from boxtune.training.recipe import Recipe
from boxtune.training.sharded import ShardBatches

# `collator: auto` packs if at least this fraction of the padded batches would be padding. With sdpa on a CPU, packed and padded
# batches of eight take equally long at about 37 % (python -m benchmarks.packing): the mask of a long row costs time, too.
PACK_FROM = 0.4
# Attention that transformers tells where a packed example begins: a mask for the first two, sequence lengths for the third.
_KEEPS_APART = re.compile(r"sdpa|eager|.*flash[-_]att(n|ention).*")


@dataclass(frozen=True)
class Batches:
    """packs: whether training batches are packed. sampler: what each holds; None: as many random examples as the recipe says.

    rate_factor: what the recipe's learning rates are multiplied by.
    """

    packs: bool
    sampler: PlannedBatches | ShardBatches | None = None
    rate_factor: float = 1.0


# ---- What cannot be packed -----------------------------------------------------------------------------------------------


def packing_problems(family: Family, training: SFTConfig, model: ModelConfig) -> Iterator[str]:
    """Why packed examples would not be kept apart, or would be trained in another way than padded ones."""
    if family.has_linear_attention:
        yield (
            f"{family.name} has gated delta nets, which carry their state from one packed example into the next. Only the "
            "kernels of flash-linear-attention and causal-conv1d can be told where an example begins, and boxtune does not use "
            "them yet"
        )
    attention = model.attn_implementation
    if attention and not _KEEPS_APART.fullmatch(attention):
        yield f"attn_implementation: {attention} is not known to keep packed examples apart; use sdpa or flash_attention_2"
    if training.neftune_noise_alpha:
        yield "neftune_noise_alpha: its noise depends on the length of a row, and a packed row is longer; omit it"


def require_packing(recipe: Recipe, family: Family) -> None:
    """Raises UserError if the recipe has `collator: packed` and its examples cannot be packed."""
    if recipe.options.collator == "packed" and (
        problems := list(packing_problems(family, recipe.training, recipe.model))
    ):
        raise UserError("collator: packed cannot be used; use padded, with tokens_per_batch against padding:", problems)


# ---- Batches -------------------------------------------------------------------------------------------------------------


def plan_batches(
    recipe: Recipe, arguments: SFTConfig, family: Family, lengths: Sequence[int], shards: Shards | None = None
) -> Batches:
    """The batches of a run. arguments: the trainer's. lengths: the most tokens that each training example may have; with
    `shards`, those of a sample of them."""
    options, size = recipe.options, arguments.per_device_train_batch_size
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    padded = _make_sampler(recipe, arguments, lengths, seed, packed=False)
    share = padding_share(
        plan(lengths, padded.limit, seed, 0) if padded else random_batches(len(lengths), size, seed), lengths
    )
    packs = options.collator == "packed"
    if options.collator == "auto":
        problems = list(packing_problems(family, arguments, recipe.model))
        packs = share >= PACK_FROM and not problems
        reason = problems[0] if problems else f"auto packs from {PACK_FROM:.0%}"
        say(f"collator: {'packed' if packs else 'padded'}; padding would be {share:.1%} of padded batches ({reason})")
    if shards:
        return Batches(packs, ShardBatches(shards, size, seed, arguments.world_size))
    sampler = _make_sampler(recipe, arguments, lengths, seed, packed=True) if packs else padded
    if not options.tokens_per_batch:
        return Batches(packs, sampler)
    if longer := sum(length > options.tokens_per_batch for length in lengths):
        say(
            f"note: {longer} examples are longer than tokens_per_batch, {options.tokens_per_batch}: each is alone in its batch"
        )
    return Batches(packs, sampler, _rate_factor(options, arguments, lengths, len(sampler)))


def _make_sampler(
    recipe: Recipe, arguments: SFTConfig, lengths: Sequence[int], seed: int, packed: bool
) -> PlannedBatches | None:
    if tokens := recipe.options.tokens_per_batch:
        limit = Limit(tokens=tokens, packed=packed)
    elif recipe.training.train_sampling_strategy == "group_by_length":
        limit = Limit(examples=arguments.per_device_train_batch_size)
    else:
        return None
    epochs = math.ceil(arguments.num_train_epochs)
    if arguments.max_steps > 0:
        batches = arguments.max_steps * arguments.gradient_accumulation_steps * arguments.world_size
        epochs = math.ceil(batches / len(plan(lengths, limit, seed, 0)))
    return PlannedBatches(lengths, limit, seed, epochs, arguments.world_size)


def _rate_factor(options: BoxtuneArguments, arguments: SFTConfig, lengths: Sequence[int], count: int) -> float:
    """√(tokens per step ÷ those of batches of per_device_train_batch_size examples); 1 if the recipe turns it off."""
    usual = math.ceil(len(lengths) / arguments.per_device_train_batch_size)
    steps = arguments.gradient_accumulation_steps * arguments.world_size
    tokens, usual_tokens = (sum(lengths) * steps / number for number in (count, usual))
    found = f"tokens per step: {tokens:,.0f}; {usual_tokens:,.0f} with per_device_train_batch_size: "
    found += f"{arguments.per_device_train_batch_size}"
    if not options.scale_lr_for_packing:
        say(found)
        return 1.0
    factor = math.sqrt(tokens / usual_tokens)
    say(
        f"{found}. All learning rates × {factor:.3f}, the square root of the ratio (scale_lr_for_packing: false turns it off)"
    )
    return factor


def make_loader(arguments: SFTConfig, dataset, collator, sampler: PlannedBatches | ShardBatches) -> DataLoader:
    """The trainer's own data loader, with batches of `sampler`: Trainer has no way to pass a batch sampler."""
    workers = arguments.dataloader_num_workers
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=workers,
        pin_memory=arguments.dataloader_pin_memory,
        multiprocessing_context=arguments.dataloader_multiprocessing_context,
        in_order=arguments.dataloader_in_order,
        persistent_workers=arguments.dataloader_persistent_workers,
        prefetch_factor=arguments.dataloader_prefetch_factor,
        worker_init_fn=partial(seed_worker, num_workers=workers, rank=arguments.process_index),
    )
