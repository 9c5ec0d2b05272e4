"""From a recipe: how examples are written, varied and asked, and the settings saved with a checkpoint."""

from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, ProcessorMixin

from boxtune.answers.candidates import candidate_sentence
from boxtune.answers.codecs import with_captions
from boxtune.answers.conversation import format_sentence
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.answers.irrelevant import agreed_answer, irrelevant_rule, is_irrelevant
from boxtune.answers.noise import NOISE_LABEL, require_free_label
from boxtune.batching.encoder import Encoder
from boxtune.batching.hard_negatives import read_confused
from boxtune.batching.teachers import Teachers
from boxtune.batching.variation import Variation
from boxtune.common.errors import UserError
from boxtune.data.questions import NO_DESCRIPTIONS, Descriptions, first_question, is_standard
from boxtune.data.records import Record
from boxtune.data.tiles import tile_of
from boxtune.models.config import codec_for
from boxtune.models.hub import commit_of
from boxtune.models.soft_prompt import add_virtual_tokens
from boxtune.training.arguments import CLASSES, BoxtuneArguments
from boxtune.training.console import say
from boxtune.training.recipe import Recipe


def make_encoder(recipe: Recipe, config: PretrainedConfig, processor: ProcessorMixin, classes: list[str]) -> Encoder:
    """Adds the virtual tokens of a soft prompt to the tokenizer. Raises UserError if the model has no rows for them, if a class
    could be mistaken for the noise label, or if the model's answers cannot hold captions."""
    options = recipe.options
    if options.noise_objects:
        require_free_label(classes)
    codec = codec_for(config, options.answer, options.codec)
    if options.captions:
        codec = with_captions(codec)
    noise_label = NOISE_LABEL if options.noise_objects else ""
    vocab_size = config.get_text_config().vocab_size
    virtual_tokens = add_virtual_tokens(processor.tokenizer, options.num_virtual_tokens, vocab_size)
    system_prompt = options.system_prompt
    if candidates := choose_candidates(options, classes):
        system_prompt = f"{system_prompt} {candidate_sentence(candidates)}".strip()
    if options.irrelevant_images:
        rule = irrelevant_rule(agreed_answer(options.irrelevant_answer, codec))
        system_prompt = f"{system_prompt} {rule}".strip()
    return Encoder(processor, codec, "".join(virtual_tokens) + system_prompt, format_sentence(codec), noise_label)


def choose_candidates(options: BoxtuneArguments, classes: list[str]) -> list[str]:
    """The candidate phrases of the recipe; empty if it has none. Raises UserError if they lack a class of the data."""
    candidates = list(dict.fromkeys(options.candidates or []))
    if candidates == [CLASSES]:
        return classes
    if candidates and (missing := [name for name in classes if name not in candidates]):
        raise UserError(
            "candidates: classes of the data are not among them. Add them, or use `candidates: true`:", missing
        )
    return candidates


def make_variation(
    recipe: Recipe,
    records: list[Record],
    classes: list[str],
    max_pixels: int,
    descriptions: Descriptions = NO_DESCRIPTIONS,
) -> Variation | None:
    """How training examples vary from epoch to epoch; None if the recipe does not vary them."""
    options = recipe.options
    varies_questions = options.negative_questions or options.prompt_variety or options.noise_objects
    if not options.augment and not varies_questions:
        return None
    if options.negative_questions and len(classes) < 2:
        say("note: negative_questions has no effect on data with one class")
    if varies_questions:
        _check_standard_questions(records)
    return Variation(
        operations=options.augment or [],
        negative_questions=options.negative_questions,
        prompt_variety=options.prompt_variety,
        noise_objects=options.noise_objects,
        object_order=options.object_order,
        classes=classes,
        max_pixels=max_pixels,
        max_length=recipe.training.max_length,
        seed=recipe.training.seed,
        descriptions=dict(descriptions),
        confused=read_confused(Path(options.negative_from), classes) if options.negative_from else None,
    )


def make_teachers(recipe: Recipe, records: list[Record]) -> Teachers | None:
    """Draws the examples that precede others, from the training `records`; None if the recipe has none.

    Raises UserError if there are too few.
    """
    options = recipe.options
    if not options.teacher_ratio:
        return None
    pool = [record for record in records if not tile_of(record) and not is_irrelevant(record)]
    if len(pool) <= options.num_teacher_samples:
        raise UserError(
            f"num_teacher_samples: {options.num_teacher_samples} other training images must precede an example, but there are "
            f"{len(pool)} training images in all. Lower it, or set teacher_ratio: 0."
        )
    return Teachers(pool, options.teacher_ratio, options.num_teacher_samples, recipe.training.seed)


def _check_standard_questions(records: list[Record]) -> None:
    """Raises UserError if no example with objects asks one question about all classes. Only such examples can be varied."""
    standard = [record for record in records if is_standard(record)]
    if len(standard) == len(records):
        return
    if not any(record["objects"]["bbox"] for record in standard):
        consequence = (
            "none of these examples contains an object, so the model would learn that other wordings mean an empty image"
            if standard
            else "this dataset has no such example, so they would have no effect"
        )
        raise UserError(
            "negative_questions, prompt_variety and noise_objects change only examples that ask one question about all classes; "
            f"{consequence}. Omit them, or prepare the data with --questions all."
        )
    say(
        f"note: {len(records) - len(standard)} of {len(records)} examples do not ask one question about all classes; "
        "negative_questions, prompt_variety and noise_objects leave these unchanged"
    )


def make_grounding(
    recipe: Recipe,
    encoder: Encoder,
    records: list[Record],
    classes: list[str],
    variation: Variation | None,
    max_new_tokens: int,
    descriptions: Descriptions = NO_DESCRIPTIONS,
) -> Grounding:
    """The settings saved with each checkpoint. `records`: the training records. `max_new_tokens`: from their lengths."""
    model, options = recipe.model, recipe.options
    size = encoder.processor.image_processor.size
    sides = np.array([(record["width"], record["height"]) for record in records], dtype=float)
    own_questions = sorted({first_question(record) for record in records})
    return Grounding(
        codec=encoder.codec.name,
        system_prompt=encoder.system_prompt,
        format_sentence=encoder.format_sentence,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=max_new_tokens,
        base_model=model.model_name_or_path,
        base_revision=commit_of(model.model_name_or_path, model.model_revision),
        base_precision="nf4" if model.load_in_4bit else model.dtype,
        quantized_vision=options.quantize_vision,
        compute_dtype=model.dtype,
        classes=classes,
        descriptions=dict(descriptions),
        questions=variation.questions(records) if variation else own_questions,
        data_dir=options.data_dir,
        seen_pixels=np.percentile(sides[:, 0] * sides[:, 1], (5, 95)).tolist(),
        seen_aspects=np.percentile(sides[:, 0] / sides[:, 1], (5, 95)).tolist(),
        noise_label=encoder.noise_label,
        irrelevant_answer=options.irrelevant_answer,
        candidates=choose_candidates(options, classes),
        think_prefix=encoder.think_prefix,
        decoding=Decoding(tiles=options.tiles),
    )
