"""DetectionTrainer: TRL's SFTTrainer with box losses, learning rates by part, and box metrics at every evaluation."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from boxtune.answers.predictions import Prediction
from boxtune.batching.batch_plan import PlannedBatches
from boxtune.batching.box_targets import target_counts
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.batching.packed import is_packed
from boxtune.common.errors import UserError, accepting
from boxtune.families import FAMILIES
from boxtune.models.cached_tower import cache_tower
from boxtune.models.head_files import is_of_head
from boxtune.models.language_states import language_states
from boxtune.models.whole_modules import cast_whole_modules
from boxtune.training.batches import make_loader
from boxtune.training.box_validation import BoxValidation
from boxtune.training.checkpoint_trainer import CheckpointTrainer
from boxtune.training.console import say
from boxtune.training.detection_loss import DetectionLoss
from boxtune.training.gradient_shares import GradientShares
from boxtune.training.guardrails import Guardrails
from boxtune.training.head_terms import head_terms
from boxtune.training.kept_state import keeping_state
from boxtune.training.losses import BoxLosses
from boxtune.training.memory import memory_gb
from boxtune.training.padding import PaddingCount
from boxtune.training.parameter_groups import GroupRates, describe_rates, freeze, split_groups
from boxtune.training.phases import LearningRates
from boxtune.training.policy import PolicyLoss
from boxtune.training.sharded import ShardBatches
from boxtune.training.skipped_steps import OTHER_PRECISION, SkippedSteps
from boxtune.training.teacher_loss import count_tokens, split_lm_loss, token_log_probs
from boxtune.training.tracked_images import log_images

# Number of validation images that are sent to the trackers at each evaluation.
TRACKED_IMAGES = 8


class DetectionTrainer(CheckpointTrainer):
    """CheckpointTrainer that evaluates boxes and adds the losses of boxes and of the detection head.

    `box_validation` generates boxes at every evaluation. `box_losses` are added for batches that hold `targets`, `policy_loss`
    for batches that hold `asked`, `detection_loss` for those that hold `head_targets` (see DetectionCollator.for_losses).
    `learning_rates`: of the model's parts. `skipped_steps`: decides which steps are skipped. `guardrails`: stop the run, and
    decide which checkpoint may be the best. `sampler`: the micro-batches, if they are planned. `vision_cache`: the folder for
    the outputs of the frozen vision tower, and how many GB it may hold. Other arguments are CheckpointTrainer's.
    """

    def __init__(
        self,
        *args,
        learning_rates: LearningRates,
        skipped_steps: SkippedSteps,
        box_validation: BoxValidation | None = None,
        box_losses: BoxLosses | None = None,
        policy_loss: PolicyLoss | None = None,
        detection_loss: DetectionLoss | None = None,
        guardrails: Guardrails | None = None,
        sampler: PlannedBatches | ShardBatches | None = None,
        vision_cache: tuple[Path, float] | None = None,
        **kwargs,
    ):
        super().__init__(*args, skipped_steps=skipped_steps, **kwargs)
        # SFTTrainer divides its loss by the number of tokens in the whole step only if this is set. Trainer sets it from the
        # signature of the model class, and only that of Qwen2-VL qualifies. Without it, a short response would weigh as much as
        # a long one whenever a step has several micro-batches or processes.
        self.model_accepts_loss_kwargs = True
        self.box_losses = box_losses
        self.policy_loss = policy_loss
        self.detection_loss = detection_loss
        self.gradient_shares = GradientShares()
        self.digit_ids = self.processing_class.tokenizer.convert_tokens_to_ids(list("0123456789"))
        self.box_validation = box_validation
        self.sampler = sampler
        self.padding = PaddingCount()
        self.learning_rates = learning_rates
        self.group_rates = GroupRates(learning_rates, skipped_steps)
        self.head_grad_norm: Tensor | float = 0.0  # of the detection head, which is clipped by itself
        self.add_callback(skipped_steps)
        self.add_callback(self.group_rates)
        self.guardrails = guardrails
        if guardrails:
            self.add_callback(guardrails)
        if learning_rates:
            say(describe_rates(self.model, learning_rates))
            freeze(self.model, learning_rates)
        self._cast_adapters()
        cast_whole_modules(self.model, self.adapter_dtype)
        self._detach_frozen_tower()
        self.cached_tower = cache_tower(self._base(), *vision_cache) if vision_cache else None

    def _detach_frozen_tower(self) -> None:
        """Cut the gradient at the input of a frozen vision tower.

        With gradient checkpointing, transformers makes the image inputs of Qwen2-VL and Qwen2.5-VL require gradients. A frozen
        tower would then run a second forward pass and a backward pass whose results are not used.
        """
        family = FAMILIES[self.model.config.model_type]
        blocks = self._base().base_model.get_submodule(family.vision_blocks)
        if not any(parameter.requires_grad for parameter in blocks.parameters()):
            blocks[0].register_forward_pre_hook(lambda module, args: (args[0].detach(), *args[1:]))

    # ---- Step ----------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self):
        if self.sampler is None:
            return super().get_train_dataloader()
        loader = make_loader(self.args, self.train_dataset, self.data_collator, self.sampler)
        return self.accelerator.prepare(loader)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.padding.add(inputs)
        if is_packed(inputs):
            self._count_packed(inputs)
        self.skipped_steps.add_loss(loss, inputs["ids"])
        if self.guardrails and self.guardrails.unfreezing and self.accelerator.sync_gradients:
            self.guardrails.unfreezing.clear_waiting(model, self.state)
        if self.learning_rates and self.accelerator.sync_gradients:  # the gradients of the step are complete
            self.group_rates.clear_frozen(self.optimizer, self.state)
            if self._logs_this_step:
                scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
                self._log_mean(self.group_rates.measure(self.optimizer, self.state, scale))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm of a step's gradients. Also clears them if the step must be skipped: without gradients, the optimizer changes
        neither weights nor moments. DeepSpeed has already made its step."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.is_deepspeed_enabled and self.skipped_steps.must_skip(
            norm + self.head_grad_norm, self.accelerator, self.state, self.args.output_dir
        ):
            model.zero_grad()
        return norm

    def _count_packed(self, inputs) -> None:
        """Complete TRL's number of tokens: it reads the second size of `position_ids`, which is 1 in a packed batch."""
        self._total_train_tokens += self.summed(torch.tensor(inputs["input_ids"].numel() - 1)).item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    @property
    def _logs_this_step(self) -> bool:
        return (self.state.global_step + 1) % self.state.logging_steps == 0

    # ---- Loss ----------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Also counts the boxes and decisions of the step's micro-batches, and the tokens of teachers and of students."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "targets" in batches[0]:
            counts = sum(target_counts(batch["targets"]) for batch in batches).to(device)
            self.step_counts = self._share_of_processes(counts).clamp(min=1 / self._processes)
        if batches and "head_targets" in batches[0]:
            counts = [sum(len(batch["head_targets"][key]) for batch in batches) for key in ("boxes", "image")]
            shares = self._share_of_processes(torch.tensor(counts, device=device))
            self.step_boxes, self.step_examples = shares.clamp(min=1 / self._processes)
        if batches and "teacher_tokens" in batches[0]:
            self.step_tokens = self._share_of_processes(sum(map(count_tokens, batches)).to(device))
        return batches, tokens

    def _share_of_processes(self, counts: Tensor) -> Tensor:
        """The counts of all processes together, divided by their number, because DDP averages gradients over them."""
        return (self.accelerator.reduce(counts, "sum") if self._processes > 1 else counts) / self._processes

    @property
    def _processes(self) -> int:
        """Number of processes whose tokens, boxes and decisions share the means of a step."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The LM loss. Training adds the weighted box terms, the loss of the detection head and, in steps that sample responses,
        the policy loss."""
        targets, asked, head_targets, _ = (inputs.pop(key, None) for key in ("targets", "asked", "head_targets", "ids"))
        has_teachers = "teacher_tokens" in inputs and model.training
        if targets is None and asked is None and head_targets is None:
            result = self._lm_loss(model, inputs, return_outputs, num_items_in_batch)
            self._require_usable(result[0] if return_outputs else result)
            return result

        with language_states(self._base()) as states:
            # SFTTrainer runs a second forward pass to return outputs, so they are requested only if needed.
            result = self._lm_loss(model, inputs, return_outputs, num_items_in_batch)
        lm_loss, outputs = result if return_outputs else (result, None)
        hidden = states[0].last
        in_step = num_items_in_batch is not None and model.training
        micro_batches = self.current_gradient_accumulation_steps if in_step else 1

        terms = {"lm": lm_loss}
        if targets is not None:
            if has_teachers:  # only students' responses have targets
                num_items_in_batch = self.step_tokens[1] * self._processes
            terms["lm"] = self._reweight_end_tokens(lm_loss, hidden, inputs["labels"], targets, num_items_in_batch)
            terms |= self._box_terms(hidden, targets, in_step)
        found = {}
        if head_targets is not None:
            boxes = self.step_boxes if in_step else max(1, len(head_targets["boxes"]))
            examples = self.step_examples if in_step else len(head_targets["image"])
            found = head_terms(
                self._base(), self.data_collator, self.detection_loss, states[0], inputs, head_targets, boxes, examples
            )
        logged = terms | {f"detection_{name}": term for name, term in found.items()}
        self._log_mean({f"{name}_loss": term * micro_batches for name, term in logged.items()})

        loss = terms["lm"]  # evaluation returns only this, so that runs with different weights can be compared
        if model.training:
            loss = self._weighted_total(terms, found, hidden)
            if asked is not None and self._samples():
                loss = loss + self._sampled_loss(model, inputs, asked, micro_batches)
        self._require_usable(loss)
        return (loss, outputs) if return_outputs else loss

    def _lm_loss(self, model, inputs, return_outputs, num_items_in_batch):
        if self.cached_tower is None:
            return self._split_lm_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.cached_tower.naming(inputs.pop("image_keys")):
            return self._split_lm_loss(model, inputs, return_outputs, num_items_in_batch)

    def _split_lm_loss(self, model, inputs, return_outputs, num_items_in_batch):
        """SFTTrainer's loss. In training steps with teachers, the sum of the means over teachers' and over students' tokens."""
        teacher_tokens = inputs.pop("teacher_tokens", None)
        if teacher_tokens is None or not model.training or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with token_log_probs(self._base()) as log_probs:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        parts = split_lm_loss(log_probs[0], teacher_tokens, self.step_tokens)
        if self.step_tokens[0] == 0:
            parts = {"student_lm": loss}
        else:
            # A difference, because a mixture of experts adds its own loss to this one.
            loss = loss + sum(parts.values()) + log_probs[0].float().sum() / self.step_tokens.sum()
        micro_batches = self.current_gradient_accumulation_steps
        self._log_mean({f"{name}_loss": part * micro_batches for name, part in parts.items()})
        return loss

    def _reweight_end_tokens(
        self, lm_loss: Tensor, hidden: Tensor, labels: Tensor, targets: dict[str, Tensor], num_items_in_batch
    ) -> Tensor:
        """The LM loss with end tokens weighted by `end_token_weight`, normalized as SFTTrainer normalizes it."""
        if self.box_losses.end_token == 1 or not self.model.training:
            return lm_loss
        extra = self.box_losses.reweigh_ends(hidden, self._base().get_output_embeddings(), targets)
        if num_items_in_batch is None:
            return lm_loss + extra / (labels[:, 1:] != IGNORE_INDEX).sum()
        return lm_loss + extra * self._processes / num_items_in_batch

    def _box_terms(self, hidden: Tensor, targets: dict[str, Tensor], in_step: bool) -> dict[str, Tensor]:
        """{"iou", "fp", "fn"}: this micro-batch's share of each unweighted term.

        The LM loss of a step is a mean over its tokens, so a micro-batch contributes in proportion to its tokens. Likewise a
        box term is a mean over the step's boxes or decisions, and a micro-batch contributes in proportion to those.
        """
        counts = target_counts(targets)
        shares = counts / (self.step_counts if in_step else counts.clamp(min=1))
        terms = self.box_losses.terms(hidden, self._base().get_output_embeddings(), self.digit_ids, targets)
        return {name: share * term for share, (name, term) in zip(shares, terms.items(), strict=True)}

    def _weighted_total(self, terms: dict[str, Tensor], head_terms: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """The LM loss plus the weighted terms of the box losses and the detection head. Records the gradient of each."""
        box_terms = {name: term for name, term in terms.items() if name != "lm"}
        weighted = {"lm": terms["lm"], **(self.box_losses.weigh(box_terms) if box_terms else {})}
        if head_terms:
            found = self.detection_loss.weigh(head_terms)
            weighted |= {f"detection_{name}": term for name, term in found.items()}
        reaching = weighted
        if self.detection_loss and not self.detection_loss.trains_model:
            reaching = {name: term for name, term in weighted.items() if not name.startswith("detection_")}
        self._record_gradients(reaching, hidden)
        return sum(weighted.values())

    def _samples(self) -> bool:
        """Whether this step samples responses."""
        return self.state.global_step % self.policy_loss.every == 0

    def _sampled_loss(self, model, inputs: dict[str, Tensor], asked: dict, micro_batches: int) -> Tensor:
        """This micro-batch's share of the step's policy loss. `micro_batches`: their number in the step."""
        with language_states(self._base()) as states:
            unwrapped = self.accelerator.unwrap_model(model)
            loss, statistics = self.policy_loss(model, unwrapped, self.data_collator, inputs, asked)
        self._log_mean({"policy_loss": loss, **{name: loss.new_tensor(value) for name, value in statistics.items()}})
        self._record_gradients({"policy": loss / micro_batches}, states[0].last)
        return loss / micro_batches

    def _require_usable(self, loss: Tensor) -> None:
        """Raises UserError if the first loss is not finite or, under DeepSpeed, which cannot skip a step, any loss."""
        if torch.isfinite(loss):
            return
        if self.state.global_step == 0:
            raise UserError(
                f"the first loss is {loss.item()}: this model overflows in {self.args.mixed_precision or 'this precision'}. "
                f"{OTHER_PRECISION}."
            )
        if self.is_deepspeed_enabled and self.model.training:
            raise UserError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}, and steps cannot be skipped under DeepSpeed. "
                f"Launch with recipes/accelerate/ddp.yaml, or lower learning_rate. {OTHER_PRECISION}."
            )

    # ---- Logging -------------------------------------------------------------------------------------------------------

    def _record_gradients(self, losses: dict[str, Tensor], hidden: Tensor) -> None:
        """Measure how much each loss contributes to this step. Only in steps that log or, with a policy loss, that sample."""
        is_measured = self._samples() if self.policy_loss else self._logs_this_step
        # Offloaded activations can be fetched for only one backward pass, and this would be a second one. DeepSpeed's hooks take
        # any backward pass for that of the step. With only the detection head trained, no gradient reaches the states.
        is_possible = hidden.requires_grad and not self.args.activation_offloading and not self.is_deepspeed_enabled
        if is_measured and is_possible:
            self.gradient_shares.record(losses, hidden)

    def summed(self, counts: Tensor) -> Tensor:
        """Counts of all processes together."""
        return self.accelerator.reduce(counts.to(self.args.device), "sum")

    def _log_mean(self, values: dict[str, Tensor]) -> None:
        """Add values to the next log entry, each as its mean over the processes. Every process must call this."""
        means = self.accelerator.reduce(torch.stack([value.detach().float() for value in values.values()]), "mean")
        log = self._metrics["train" if self.model.training else "eval"]
        for name, mean in zip(values, means.tolist(), strict=True):
            log[name].append(mean)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds `grad_share/NAME`, each loss's share of the summed gradient norms since the last entry, and the memory."""
        if "loss" in logs:  # an entry of training steps
            logs |= self.padding.take(self.summed) | {"memory_gb": memory_gb()}
        logs |= self.gradient_shares.take(self.accelerator.reduce)
        super().log(logs, *args, **kwargs)

    # ---- Evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, *args, **kwargs):
        with keeping_state(self.model):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, the metrics of `box_validation` and the guardrails.

        Not a callback, because best-checkpoint selection, early stopping and the trackers must see them.
        """
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.box_validation:
            values, predictions = self.box_validation.answer(self.model)
            output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in values.items()})
            if self.is_world_process_zero():
                self._track_images(predictions[:TRACKED_IMAGES])
        if self.guardrails:
            output.metrics.update(self.guardrails.measure(self.model, self.state, metric_key_prefix))
        return output

    def _determine_best_metric(self, metrics, trial):
        """Only the model of an evaluation whose guardrails hold can be the best."""
        if self.guardrails and (problems := self.guardrails.selection_problems(metrics, self.state)):
            say(f"step {self.state.global_step} cannot be the best checkpoint: {'; '.join(problems)}")
            return False
        return super()._determine_best_metric(metrics, trial)

    def _track_images(self, predictions: list[Prediction]) -> None:
        records = self.box_validation.records[: len(predictions)]
        images = map(self.box_validation.collator.load, records)
        rows = list(zip(images, records, predictions, strict=True))
        log_images(self.callback_handler.callbacks, rows, self.grounding.classes, self.state.global_step)

    # ---- Optimizer -----------------------------------------------------------------------------------------------------

    def create_optimizer(self, *args, **kwargs):
        if self.learning_rates:
            freeze(self.model, self.learning_rates)  # PEFT makes weights trainable again when it loads a checkpoint
        with accepting("the optimizer cannot be created with these values"):
            optimizer = super().create_optimizer(*args, **kwargs)
        if self.learning_rates:
            split_groups(optimizer, self.model)
        return optimizer

    def create_scheduler(self, *args, **kwargs):
        with accepting("the learning rate schedule cannot be created with these values"):
            return super().create_scheduler(*args, **kwargs)

    def _clip_grad_norm(self, model) -> Tensor:
        """Clip the detection head by itself, and return the norm of all other gradients.

        The gradients of a new head are ten times as large as those of the adapters. Clipped together, the head would scale down
        every step of the adapters.
        """
        if not self.detection_loss or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        parts: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for path, parameter in model.named_parameters():
            parts[is_of_head(path)].append(parameter)
        self.accelerator.unscale_gradients()  # of fp16; once for both
        self.head_grad_norm = clip_grad_norm_(parts[True], self.args.max_grad_norm)
        return clip_grad_norm_(parts[False], self.args.max_grad_norm)
