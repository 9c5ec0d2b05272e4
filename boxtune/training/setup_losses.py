"""From a recipe: the losses, the detection head and the learning rates of the model's parts."""

from transformers import PreTrainedModel

from boxtune.common.errors import UserError
from boxtune.models.detection_head import HeadShape
from boxtune.models.loading import uses_deepspeed, uses_fsdp
from boxtune.training.arguments import BoxtuneArguments
from boxtune.training.detection_loss import DetectionLoss
from boxtune.training.losses import BoxLosses
from boxtune.training.phases import PARTS, PEFT, LearningRates, read_phases
from boxtune.training.policy import PolicyLoss
from boxtune.training.recipe import Recipe


def choose_losses(recipe: Recipe) -> tuple[BoxLosses | None, PolicyLoss | None]:
    """(teacher-forced losses, policy loss), each None if the recipe does not use it; SFTTrainer's own loss is always used.

    Raises UserError if they are used under FSDP, which shards the model, because they need the whole LM head in each process.
    """
    options = recipe.options
    weights = BoxLosses(
        options.iou_loss_weight,
        options.fp_loss_weight,
        options.fn_loss_weight,
        options.box_loss,
        options.end_token_weight,
    )
    sampled = PolicyLoss(weights, options.grounding_samples, options.grounding_every)
    if options.grounding_mode == "policy":
        weights = BoxLosses(0, 0, 0, end_token=options.end_token_weight)
    chosen = weights or None, None if options.grounding_mode == "teacher_forced" else sampled
    if any(chosen) and uses_fsdp():
        raise UserError(
            "iou_loss_weight, fp_loss_weight, fn_loss_weight and end_token_weight need the whole LM head in each process, but "
            "FSDP shards it. Launch with recipes/accelerate/ddp.yaml or zero2.yaml, or omit these weights."
        )
    return chosen


def head_shape(recipe: Recipe, model: PreTrainedModel) -> HeadShape | None:
    """The detection head that the recipe asks for; None if it asks for none. Raises UserError under FSDP."""
    options = recipe.options
    if not options.detection_head:
        return None
    if uses_fsdp():
        raise UserError(
            "detection_head needs the last hidden states of whole layers, but FSDP shards the model. Launch with "
            "recipes/accelerate/ddp.yaml, or omit it."
        )
    size = model.get_input_embeddings().embedding_dim
    return HeadShape(
        llm_hidden_size=size,
        hidden_size=options.detection_hidden_size,
        queries=options.detection_queries,
        decoder_layers=options.detection_decoder_layers,
        caption_layers=options.detection_caption_layers if options.detection_caption_weight else 0,
    )


def make_detection_loss(options: BoxtuneArguments) -> DetectionLoss | None:
    """The loss of the detection head; None if the recipe asks for none."""
    if not options.detection_head:
        return None
    return DetectionLoss(
        bbox=options.detection_bbox_weight,
        giou=options.detection_giou_weight,
        objectness=options.detection_objectness_weight,
        caption=options.detection_caption_weight,
        trains_model=options.detection_trains_model,
    )


def choose_rates(recipe: Recipe) -> LearningRates:
    """The learning rates of the model's parts. Raises UserError if the recipe has any under FSDP or DeepSpeed.

    FSDP replaces the weights, and DeepSpeed makes its step before the rates of the parts could be set.
    """
    options = recipe.options
    stated = {name: getattr(options, f"{name}_lr") for name in (*PARTS, PEFT)}
    rates = LearningRates(
        recipe.training.learning_rate,
        {name: rate for name, rate in stated.items() if rate is not None},
        read_phases(options.phases),
        options.detection_freeze_epochs,
        options.vision_warmup_steps,
        options.llm_lr_tail,
    )
    if rates and (uses_fsdp() or uses_deepspeed() or recipe.training.deepspeed):
        raise UserError(
            "learning rates by part (keys ending in _lr, phases, detection_freeze_epochs, vision_warmup_steps and llm_lr_tail) "
            "work in one process or under DDP. Launch with recipes/accelerate/ddp.yaml, or omit these keys."
        )
    return rates
