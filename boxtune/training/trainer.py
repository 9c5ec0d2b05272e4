"""DetectionTrainer: TRL's SFTTrainer with fp32 adapters, whole checkpoints and an early stop on nonsense."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import Prediction
from boxtune.batching.box_targets import target_counts
from boxtune.batching.collator import IGNORE_INDEX
from boxtune.common.errors import UserError, accepting, is_out_of_space, reading
from boxtune.training.box_validation import BoxValidation
from boxtune.training.losses import BoxLosses
from boxtune.training.policy import PolicyLoss
from boxtune.training.tracked_images import log_images

RESUME_REMEDY = (
    "Resume from an earlier checkpoint (--resume_from_checkpoint DIR) with the model and LoRA settings it was trained with, "
    "or start over with --overwrite_output_dir true."
)


# How many of the answered pictures go to the trackers.
TRACKED_IMAGES = 8


@contextmanager
def last_hidden_states(backbone: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The one (N, T, H) of the last forward pass within: TRL's fused LM head keeps it to itself."""
    found: list[torch.Tensor] = []

    def keep(module, args, output) -> None:
        found[:] = [output.last_hidden_state]  # generating, a pass for each token, would pile them up

    hook = backbone.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


class DetectionTrainer(SFTTrainer):
    """Saves grounding.json with every checkpoint, answers `box_validation` at every evaluation, and adds `box_losses` to the
    loss of batches that hold `targets`. All other arguments are SFTTrainer's."""

    def __init__(
        self,
        *args,
        grounding: Grounding,
        adapter_dtype: torch.dtype = torch.float32,
        box_validation: BoxValidation | None = None,
        box_losses: BoxLosses | None = None,
        policy_loss: PolicyLoss | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        # SFTTrainer's loss divides by the tokens of a whole step, if it is told their number. Trainer tells it by a word of the
        # model's class, which only Qwen2-VL has; without, a short answer would weigh as much as a long one wherever a step
        # has several micro-batches or processes.
        self.model_accepts_loss_kwargs = True
        self.grounding = grounding
        self.box_losses = box_losses
        self.policy_loss = policy_loss
        # Of each weighted term, the squared norm of its gradient on the last hidden states, since the last line of the log.
        self.gradient_squares: dict[str, torch.Tensor] = {}
        self.digit_ids = self.processing_class.tokenizer.convert_tokens_to_ids(list("0123456789"))
        self.box_validation = box_validation
        self.adapter_dtype = adapter_dtype
        self._cast_adapters()
        visual = self._base().base_model.visual
        if not any(parameter.requires_grad for parameter in visual.blocks.parameters()):
            # With gradient checkpointing transformers has the pictures of Qwen2-VL and Qwen2.5-VL ask for gradients, and a frozen
            # tower would be run a second time, and backwards, for what nobody reads.
            visual.blocks[0].register_forward_pre_hook(lambda module, args: (args[0].detach(), *args[1:]))

    def _cast_adapters(self) -> None:
        """TRL casts the adapters of a 4-bit model to bf16, where small updates round to nothing, and which a GradScaler
        refuses. FSDP needs one dtype throughout, so there they stay as TRL left them."""
        if self.is_fsdp_enabled:
            return
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.adapter_dtype)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Counts, beside the tokens of a step, the boxes and decisions of all its micro-batches: for each process, over which
        DDP averages, its part of those of all."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "targets" in batches[0]:
            counts = sum(target_counts(batch["targets"]) for batch in batches).to(device)
            if self._processes > 1:
                counts = self.accelerator.reduce(counts, "sum")
            self.step_counts = counts.clamp(min=1) / self._processes
        return batches, tokens

    @property
    def _processes(self) -> int:
        """How many processes share the tokens, boxes and decisions that a step's means are of."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets, asked = inputs.pop("targets", None), inputs.pop("asked", None)
        if targets is None and asked is None:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            with last_hidden_states(self._base().base_model) as hidden:
                result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = result[0] if return_outputs else result
            in_step = num_items_in_batch is not None and model.training
            steps = self.current_gradient_accumulation_steps if in_step else 1
            terms = {}
            if targets is not None:
                loss = self._reweigh_ends(loss, hidden[0], inputs["labels"], targets, num_items_in_batch)
                terms = self._box_terms(hidden[0], targets, in_step)
            self._note({f"{name}_loss": term * steps for name, term in {"lm": loss, **terms}.items()})
            if model.training:  # the loss of an evaluation stays the LM's, so that runs can be compared
                weighted = {"lm": loss, **(self.box_losses.weigh(terms) if terms else {})}
                self._note_gradients(weighted, hidden[0])
                loss = sum(weighted.values())
                if asked is not None and self._samples():
                    loss = loss + self._sampled_loss(model, inputs, asked, steps)
            result = (loss, result[1]) if return_outputs else loss
        loss = result[0] if return_outputs else result
        if self.state.global_step == 0 and not torch.isfinite(loss):
            raise UserError(
                f"the first loss is {loss.item()}: this model overflows in {self.args.mixed_precision or 'this precision'}. "
                "Train in bf16 (a GPU of compute capability 8.0 or later) or float32: --dtype float32 --bf16 false --fp16 false."
            )
        return result

    def _base(self) -> torch.nn.Module:
        """The model below its adapters: backbone and LM head."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def _box_terms(self, hidden, targets: dict, in_step: bool) -> dict[str, torch.Tensor]:
        """A micro-batch's part of each unweighted term: as of the LM's loss it has a share by its tokens, so of what is a mean of
        a step's boxes or decisions by theirs."""
        counts = target_counts(targets)
        shares = counts / (self.step_counts if in_step else counts.clamp(min=1))
        terms = self.box_losses.terms(hidden, self._base().get_output_embeddings(), self.digit_ids, targets)
        return {name: share * term for share, (name, term) in zip(shares, terms.items(), strict=True)}

    def _samples(self) -> bool:
        """Whether this step samples answers."""
        return self.state.global_step % self.policy_loss.every == 0

    def _sampled_loss(self, model, inputs: dict, asked: dict, steps: int) -> torch.Tensor:
        """A micro-batch's part of the loss of a step of `steps` of them."""
        with last_hidden_states(self._base().base_model) as hidden:
            unwrapped = self.accelerator.unwrap_model(model)
            loss, found = self.policy_loss(model, unwrapped, self.data_collator, inputs, asked)
        self._note({"policy_loss": loss, **{name: loss.new_tensor(value) for name, value in found.items()}})
        self._note_gradients({"policy": loss / steps}, hidden[0])
        return loss / steps

    def _reweigh_ends(self, lm_loss, hidden, labels, targets: dict, num_items_in_batch) -> torch.Tensor:
        """The LM's loss in training with end tokens at their weight; divided, and shared out, as SFTTrainer does it."""
        if self.box_losses.end_token == 1 or not self.model.training:
            return lm_loss
        extra = self.box_losses.reweigh_ends(hidden, self._base().get_output_embeddings(), targets)
        if num_items_in_batch is None:
            return lm_loss + extra / (labels[:, 1:] != IGNORE_INDEX).sum()
        return lm_loss + extra * self._processes / num_items_in_batch

    def _note_gradients(self, losses: dict[str, torch.Tensor], hidden: torch.Tensor) -> None:
        """What each loss weighs in this step, by its gradient on the last hidden states: there all terms meet, and no layer has
        to be run backwards once for each of them. Micro-batches and processes have states of their own, so squares add up.

        Looked at in steps that are logged, and where answers are sampled in those.
        """
        looks = self._samples() if self.policy_loss else (self.state.global_step + 1) % self.state.logging_steps == 0
        # Activations that were offloaded come back for one pass backwards, and this would be another.
        if looks and not self.args.activation_offloading:
            for name, loss in losses.items():
                square = torch.autograd.grad(loss, hidden, retain_graph=True)[0].float().square().sum()
                self.gradient_squares[name] = self.gradient_squares.get(name, 0.0) + square

    def _note(self, values: dict[str, torch.Tensor]) -> None:
        """Into the next line of the log, each as its mean over the processes; all of them must come here."""
        means = self.accelerator.reduce(torch.stack([value.detach().float() for value in values.values()]), "mean")
        log = self._metrics["train" if self.model.training else "eval"]
        for name, mean in zip(values, means.tolist(), strict=True):
            log[name].append(mean)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self.gradient_squares:
            norms = self.accelerator.reduce(torch.stack(list(self.gradient_squares.values())), "sum").sqrt()
            shares = norms / norms.sum().clamp(min=1e-30)
            logs |= {
                f"grad_share/{name}": share for name, share in zip(self.gradient_squares, shares.tolist(), strict=True)
            }
            self.gradient_squares = {}
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, and what `box_validation` finds; here rather than in a callback, so that the best checkpoint, early
        stopping and the trackers see both."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.box_validation:
            values, predictions = self.box_validation.answer(self.model)
            output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in values.items()})
            if self.is_world_process_zero():
                self._track_images(predictions[:TRACKED_IMAGES])
        return output

    def _track_images(self, predictions: list[Prediction]) -> None:
        validation = self.box_validation
        records = validation.records[: len(predictions)]
        images = map(validation.collator.load, records)
        answered = list(zip(images, records, predictions, strict=True))
        log_images(self.callback_handler.callbacks, answered, self.grounding.classes, self.state.global_step)

    def create_optimizer(self, *args, **kwargs):
        with accepting("the optimizer cannot be made from these values"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        with accepting("the learning rate schedule cannot be made from these values"):
            return super().create_scheduler(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with reading(resume_from_checkpoint, RESUME_REMEDY):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._cast_adapters()  # PEFT reads them as fp32, whatever they were

    def _load_callback_state(self) -> None:
        """What the callbacks had counted; the values they work by are the recipe's, which may have changed since."""
        for callback in self.callback_handler.callbacks:
            stored = self.state.stateful_callbacks.get(type(callback).__name__)
            if stored and isinstance(callback, EarlyStoppingCallback):
                stored["args"] = callback.state()["args"]
        super()._load_callback_state()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(str(checkpoint), RESUME_REMEDY):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(str(checkpoint), RESUME_REMEDY):
            super()._load_rng_state(checkpoint)

    def require_finite(self) -> None:
        """Raises UserError where training has diverged; such weights are worth no checkpoint."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        lost = sum(not torch.isfinite(parameter).all() for parameter in trained)
        if lost:
            raise UserError(
                f"training diverged: {lost} of {len(trained)} trained tensors hold values that are not finite at step "
                f"{self.state.global_step}. Nothing of it was saved; lower learning_rate or raise warmup_steps."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # every process comes here, and one of them writes
            self.grounding.save(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint is whole or absent: a full disk must not leave one that resuming would pick up."""
        self.require_finite()
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # whatever it was, half a checkpoint must not stay
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            if not is_out_of_space(error):
                raise
            raise UserError(
                f"{folder} could not be saved ({error}). Free some space and go on with --resume_from_checkpoint true; "
                "earlier checkpoints are untouched."
            ) from error
