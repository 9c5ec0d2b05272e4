"""Detector: a checkpoint, here or behind a server, that finds objects in images."""

import copy
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedModel

from boxtune.answers.decoding import BOTH, HEAD, TEXT, Decoding
from boxtune.answers.example_images import open_example_or, read_examples
from boxtune.answers.grounding import PRECISIONS, Grounding
from boxtune.answers.predictions import Prediction
from boxtune.answers.stated import Stated
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import UserError, accepting
from boxtune.data.records import Record
from boxtune.families import FAMILIES
from boxtune.inference.address import server_addresses, servers_problem
from boxtune.inference.client import ServerClient, answers_of_servers
from boxtune.inference.detections import Detections
from boxtune.inference.gate import behind_gate
from boxtune.inference.generation import generate_answers
from boxtune.inference.head_answers import both_answers, head_answers
from boxtune.inference.inputs import ImageInput, check_classes, read_images, unlabelled_record
from boxtune.inference.served_model import find_model
from boxtune.models.checkpoint import Checkpoint, base_of, load_checkpoint_model, open_checkpoint
from boxtune.models.shared_weights import share_weights
from boxtune.models.soft_prompt import without_adapter


@dataclass(frozen=True)
class Server:
    """A server that runs the checkpoint. `model` is the checkpoint's entry in the server's list; `trust` skips the checks."""

    url: str
    model: dict[str, Any]
    trust: bool


class DecodeOptions(TypedDict, total=False):
    """Decode settings of one call (boxtune/answers/decoding.py); those left out are the checkpoint's."""

    repetition_penalty: float
    suppress_iou: float
    ask: str
    tiles: int
    verify: bool
    teachers: int
    decoder: str
    gate: float


class Detector:
    """Finds objects in images.

        detector = Detector.from_pretrained("runs/NAME/final_merged")
        detections = detector("photo.jpg")

    Generation is greedy, so the same image gives the same detections.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        model: PreTrainedModel | PeftModel | None = None,
        servers: Sequence[Server] = (),
        precision: str | None = None,
    ):
        """Use `from_pretrained`, which loads the weights. Here, pass either `model`, with the weights loaded, or `servers`.

        `precision` is the one that the user asked for; None means that of training.
        """
        if (model is None) == (not servers):
            raise ValueError("a detector needs either a model or servers")
        self.checkpoint = checkpoint
        self.model = model
        self.servers = list(servers)
        self._calls = itertools.count()
        self.precision = precision

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        server: str | None = None,
        served_model: str | None = None,
        trust_server: bool = False,
        max_new_tokens: int | None = None,
        family: str | None = None,
        system_prompt: str | None = None,
        format_sentence: str | None = None,
        max_pixels: int | None = None,
        base_model: str | None = None,
        adapted: bool = True,
    ) -> "Detector":
        """Open a checkpoint: the folder of an adapter or of a merged model, or a Hub id.

        device: where the model runs, such as "cuda:1" or "cpu"; by default the GPU if there is one.
        precision: "nf4", "bfloat16", "float16" or "float32"; by default that of training.
        server: address of an OpenAI-compatible server that serves the checkpoint, or several addresses, comma-separated, which
        share the images; no weights are loaded here then.
        served_model: the checkpoint's name on the server, needed if it serves several. trust_server: skip the checks that
        the server runs this checkpoint.
        max_new_tokens: limit of a response's length.
        family, system_prompt, format_sentence, max_pixels, base_model: only for models that boxtune did not train; see Stated
        in boxtune/answers/stated.py. A folder without grounding.json needs them.
        adapted: False opens the base of an adapter instead, in the adapter's precision and asked in the same way; to switch
        between the two, see `without_adapter`.
        Raises UserError if the checkpoint cannot be used, or if the server is not reachable or serves another model.
        """
        stated = Stated(family, system_prompt, format_sentence, max_pixels, base_model)
        _check_options(device, precision, server, served_model, trust_server, max_new_tokens, stated)
        if server is not None and not adapted:
            raise UserError("adapted=False has no effect with server; name the base with served_model instead.")
        checkpoint = open_checkpoint(os.fspath(path), stated, max_new_tokens)
        checkpoint = checkpoint if adapted else base_of(checkpoint)
        if server is not None:
            return cls.from_server(checkpoint, os.fspath(path), server, served_model, trust_server)
        return cls.from_checkpoint(checkpoint, precision, device)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, precision: str | None = None, device: str | torch.device | None = None
    ) -> "Detector":
        """Load the weights of an open checkpoint."""
        model = load_checkpoint_model(checkpoint, precision, None if device is None else str(device))
        return cls(checkpoint, model=model, precision=precision)

    @classmethod
    def from_server(
        cls, checkpoint: Checkpoint, name: str, urls: str, served_model: str | None = None, trust: bool = False
    ) -> "Detector":
        """Find an open checkpoint on a server, or on several. `name` is the checkpoint as the user named it, for messages."""
        servers = [
            Server(url, find_model(url, served_model, name, checkpoint, trust), trust) for url in server_addresses(urls)
        ]
        return cls(checkpoint, servers=servers)

    @property
    def classes(self) -> list[str]:
        """The classes that the checkpoint was trained on; empty for a model that boxtune did not train."""
        return list(self.checkpoint.grounding.classes)

    # A str is a Sequence of str too, but it is one path: the first signature holds for it.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        images: ImageInput,
        *,
        classes: Sequence[str] | None = None,
        threshold: float | None = None,
        batch_size: int = 16,
        **options: Unpack[DecodeOptions],
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageInput],
        *,
        classes: Sequence[str] | None = None,
        threshold: float | None = None,
        batch_size: int = 16,
        **options: Unpack[DecodeOptions],
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        classes: Sequence[str] | None = None,
        threshold: float | None = None,
        batch_size: int = 16,
        **options: Unpack[DecodeOptions],
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in every image of a list; a list gives a list in the same order.

        images: a path, a PIL image, or a uint8 array of shape (H, W), (H, W, 3) in RGB or (H, W, 4) in RGBA. EXIF rotation is
        applied, 16-bit gray is scaled, and transparent parts become white.
        classes: names to ask for instead of the trained classes. Class ids are positions in the trained classes, followed by
        those of `classes` that are new.
        threshold: least score of an object, from 0 to 1; by default that of the checkpoint, which is 0 unless it was tuned.
        batch_size: questions per batch; with a server, images asked about at the same time.
        repetition_penalty, suppress_iou, ask, tiles, verify, teachers, decoder, gate: decode settings; by default those of the
        checkpoint.
        Raises UserError that lists every image that cannot be used.
        """
        if isinstance(images, Sequence) and not isinstance(images, str):
            return self._detect(images, classes, threshold, batch_size, options)
        return self._detect([images], classes, threshold, batch_size, options)[0]

    def _detect(
        self,
        images: Sequence[ImageInput],
        classes: Sequence[str] | None,
        threshold: float | None,
        batch_size: int,
        options: DecodeOptions,
    ) -> list[Detections]:
        check_classes(self.classes if classes is None else classes)
        asked = list(dict.fromkeys(self.classes if classes is None else classes))  # each name once
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"threshold must be from 0 to 1, got {threshold!r}.")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size!r}.")
        decoding = replace(self.checkpoint.grounding.decoding, **options)
        if threshold is not None:
            decoding = replace(decoding, score_threshold=threshold)

        inputs = read_images(images)
        digits = len(str(len(inputs)))  # ids of equal length sort in the order of the images
        by_id = {f"images[{i:0{digits}}]": image for i, image in enumerate(inputs)}
        described = self.checkpoint.grounding.descriptions
        records = [unlabelled_record(name, image.path, image.size, asked, described) for name, image in by_id.items()]

        predictions = self.answer(
            records, batch_size, open_image=lambda record: by_id[record["id"]].open(), classes=asked, decoding=decoding
        )
        prediction_of = {prediction["id"]: prediction for prediction in predictions}
        known_classes = list(dict.fromkeys([*self.classes, *asked]))
        return [Detections.from_prediction(prediction_of[name], known_classes) for name in by_id]

    def answer(
        self,
        records: list[Record],
        batch_size: int = 16,
        data_dir: Path = Path(),
        open_image: Callable[[Record], Image.Image] | None = None,
        classes: list[str] | None = None,
        decoding: Decoding | None = None,
    ) -> Iterator[Prediction]:
        """Ask each record's own first question; the predictions come in any order.

        Images are read from the records' paths, relative to `data_dir`, unless `open_image` returns them. `classes` are
        those that the questions name, by default those of the checkpoint, as is `decoding`. Raises UserError if a decode
        setting cannot be used.
        """
        grounding = self.grounding(decoding)
        if classes is not None:
            grounding = replace(grounding, classes=classes)
        if grounding.decoding.teachers:
            examples = read_examples(self.checkpoint.folder, grounding.decoding.teachers)
            records = [record | {"taught_by": examples} for record in records]
            open_image = open_image and partial(open_example_or, open_image)
        collator = DetectionCollator(self.checkpoint.processor, grounding, data_dir, open_image=open_image)
        if self.model is not None:
            yield from decoded_answers(self.model, collator, records, batch_size)
        if self.servers and records:
            first = next(self._calls) % len(self.servers)  # calls with one image each go to the servers in turn
            servers = [*self.servers[first:], *self.servers[:first]]
            clients = [ServerClient(server.url, server.model, collator, server.trust) for server in servers]
            yield from answers_of_servers(clients, records, requests=batch_size)
            # Without its base, the "parent", an adapter is not compared again at the next call.
            checked = {client.url for client in clients if client.adapter_has_effect}
            self.servers = [
                replace(server, model=server.model | {"parent": None}) if server.url in checked else server
                for server in self.servers
            ]

    def grounding(self, decoding: Decoding | None = None) -> Grounding:
        """The checkpoint's grounding, with other decode settings if they are given. Raises UserError if those cannot be used."""
        grounding = self.checkpoint.grounding
        if decoding is not None:
            grounding = replace(grounding, decoding=decoding)
        if problems := [*grounding.decoding_problems(), *self._decoder_problems(grounding.decoding)]:
            raise UserError("these decode settings cannot be used:", problems)
        return grounding

    def _decoder_problems(self, decoding: Decoding) -> list[str]:
        if decoding.gate and self.servers:
            return [f"gate: {decoding.gate!r} needs the weights here, because a server only generates text"]
        if decoding.decoder == TEXT:
            return []
        if self.servers:
            return [f"decoder: {decoding.decoder!r} needs the weights here, because a server only generates text"]
        if self.checkpoint.head is None:
            return [f"decoder: {decoding.decoder!r} needs a detection head, and {self.checkpoint.path} has none"]
        return []

    def with_shared_weights(self) -> "Detector":
        """Another detector with the same weights in memory. Each thread needs one, because model and processor keep state."""
        checkpoint = replace(self.checkpoint, processor=copy.deepcopy(self.checkpoint.processor))
        model = None if self.model is None else share_weights(self.model)
        return Detector(checkpoint, model=model, servers=self.servers, precision=self.precision)

    @contextmanager
    def without_adapter(self) -> Iterator["Detector"]:
        """The adapter's base, asked in the same way. Soft prompt, calibration, noise label, the threshold of scores and the
        detection head belong to the adapter and are left out. This detector responds as before once the `with` block ends."""
        if not isinstance(self.model, PeftModel):
            raise UserError(
                f"{self.checkpoint.path} is not an adapter whose weights were loaded here, so it has no base."
            )
        if any(config.bias != "none" for config in self.model.peft_config.values()):
            raise UserError(
                f"{self.checkpoint.path} was trained with lora_bias, so its base has other biases. Open the base by itself: "
                f"{self.checkpoint.grounding.base_model}."
            )
        with without_adapter(self.model):
            yield Detector(base_of(self.checkpoint), model=self.model, precision=self.precision)


def decoded_answers(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """A prediction for each record, by the decoder of the decode settings."""
    ask = {TEXT: generate_answers, HEAD: head_answers, BOTH: both_answers}[collator.grounding.decoding.decoder]
    if collator.grounding.decoding.gate:
        yield from behind_gate(ask, model, collator, records, batch_size)
    else:
        yield from ask(model, collator, records, batch_size)


def _check_options(
    device: str | torch.device | None,
    precision: str | None,
    server: str | None,
    served_model: str | None,
    trust_server: bool,
    max_new_tokens: int | None,
    stated: Stated,
) -> None:
    """Raises UserError that lists every option that cannot be used."""
    problems = []
    if precision not in (None, *PRECISIONS):
        problems.append(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if server is None:
        needs_server = {"served_model": served_model is not None, "trust_server": trust_server}
        problems += [f"{name} needs server" for name, given in needs_server.items() if given]
    else:
        not_with_server = {"device": device is not None, "precision": precision is not None}
        problems += [f"{name} has no effect with server" for name, given in not_with_server.items() if given]
        if problem := servers_problem(server):
            problems.append(f"server {problem}")
    if stated.family not in (None, *FAMILIES):
        problems.append(f"family must be one of {', '.join(FAMILIES)}, got {stated.family!r}")
    counts = {"max_pixels": stated.max_pixels, "max_new_tokens": max_new_tokens}
    problems += [f"{name} must be at least 1, got {n}" for name, n in counts.items() if n is not None and n < 1]
    if problems:
        raise UserError("these options cannot be used:", problems)
    if device is not None:
        _check_device(device)


def _check_device(device: str | torch.device) -> None:
    """Raises UserError if this machine has no such device."""
    with accepting(f"device {device} cannot be used"):
        kind = torch.device(device).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA device")
        torch.empty(0, device=device)
