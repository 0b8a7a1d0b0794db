"""What tasks share that start from a pre-trained model: splits, their records, starting weights."""

import shlex
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from soho_fast.common.errors import listed
from soho_fast.common.import_path import is_import_path, load_imported
from soho_fast.common.progress import ProgressLines
from soho_fast.common.shared_arrays import read_once_a_machine
from soho_fast.common.spelling import did_you_mean
from soho_fast.common.tables import Table
from soho_fast.data.images import look_at
from soho_fast.data.overlap import shared_images
from soho_fast.data.processor import SohoProcessor
from soho_fast.data.readers.records import ImageRef, ReadReport
from soho_fast.data.text import load_tokenizer
from soho_fast.model import SohoConfig
from soho_fast.model.downstream import SohoDownstreamModel
from soho_fast.model.pretrained import check_vocabulary
from soho_fast.tasks.base import BaseTask
from soho_fast.tasks.contents import images_identity, records_identity


def refuse_twice(splits: list[str], field: str) -> None:
    """Raises ValueError: a split comes twice in a field, and would count twice."""
    if twice := [split for split in splits if splits.count(split) > 1]:
        raise ValueError(f"{field}: {twice[0]} comes twice; expected each split once")


class FineTuningTask(BaseTask):
    """Splits, and a model that starts from a pre-trained one or from scratch."""

    model_class: ClassVar[type[SohoDownstreamModel]]

    @cached_property
    def _records(self) -> dict[str, list[Any]]:
        """Of the splits that were read."""
        return {}

    @cached_property
    def _missing(self) -> dict[str, int]:
        """Images without a file of the splits that were read and lack some."""
        return {}

    @abstractmethod
    def read(self, source: Any, report: ReadReport) -> list[Any]:
        """The records of a split, of which `data.splits` holds the `source`."""

    @abstractmethod
    def collate(self, samples: list[Any]) -> Mapping[str, Any]:
        """The keywords of the model's forward, with "skipped" and "sample_ids"."""

    @abstractmethod
    def table(self, metrics: Mapping[str, float]) -> Table:
        """Metrics beside their baselines."""

    def config_changes(self) -> dict[str, Any]:
        """Fields of the configuration that follow from the data."""
        return {}

    def label_keywords(self) -> dict[str, Any]:
        """How these are given to the model's `from_pretraining`."""
        return self.config_changes()

    @cached_property
    def processor(self) -> SohoProcessor:
        """Image processor and tokenizer; a pre-trained model brings its own words."""
        given, pretrained = self.data.tokenizer, self.model.pretrained
        if given is None and pretrained is None:
            raise ValueError("data.tokenizer: expected a tokenizer: there is no pre-trained model to take it from")
        try:
            tokenizer = load_tokenizer(pretrained or given)
        except FileNotFoundError as error:
            if pretrained is None:
                raise
            raise FileNotFoundError(
                f"model.pretrained: nothing could be loaded from {pretrained}; expected the folder of a pre-trained "
                f"model, which a run of pre-training leaves as model/, or a hub name this machine can reach ({error})"
            ) from error
        if given is not None and pretrained is not None:
            self.check_words(pretrained)
        return self.load_processor(tokenizer)

    def images_of(self, record: Any) -> tuple[ImageRef, ...]:
        """The record's image, or its two."""
        return (record.image,)

    @property
    def default_split(self) -> str:
        """The split that is evaluated where none is named. Raises ValueError: the recipe validates on none."""
        if not self.data.validate:
            raise ValueError(f"split: data.validate is empty; name one of {', '.join(self.data.splits)}")
        return self.data.validate

    def records(self, split: str, field: str = "split") -> list[Any]:
        """The records of a split, read and reported at the first use.

        Args:
            split: Its name.
            field: What names it, for messages.

        Raises:
            ValueError, FileNotFoundError: there is no such split, or as its reader.
        """
        if split not in self.data.splits:
            splits = ", ".join(self.data.splits) or "(none given)"
            similar = did_you_mean(split, self.data.splits)
            raise ValueError(f"{field}: expected one of {splits}, got {split!r}{similar}")
        if split not in self._records:
            report = ReadReport()
            source = self.data.splits[split]
            own = getattr(source, "format", "")
            read = load_imported(own, f"data.splits.{split}.format") if is_import_path(own) else self.read
            self._records[split] = read(source, report)
            if report.num_missing:
                self._missing[split] = report.num_missing
            for line in report.lines():
                self._say(f"{split}: {line}")
        return self._records[split]

    @cached_property
    def training_records(self) -> list[Any]:
        """The records of all splits to train on.

        The split to validate on is read too: a mistake there is known before the training, not after it.
        """
        if not self.data.train:
            raise ValueError("data.train: no split was given; expected at least one")
        refuse_twice(self.data.train, "data.train")
        training = self._trained_on(self.data)
        if self.data.validate:
            shared = shared_images(
                self._images(training), self._images(self.records(self.data.validate, "data.validate"))
            )
            self.refuse_shared(", ".join(self.data.train), self.data.validate, shared)
        return training

    def _refuse_corrupt(self, split: str) -> None:
        """Raises ValueError: images to validate on can't be read, by which the first evaluation would end."""
        images = list({id(image): image for image in self._images(self.records(split))}.values())
        progress = ProgressLines(self._say, f"{split}: images looked at")

        def corrupt_ones() -> list[str]:
            return [wrong for _, wrong in look_at(images, self.data.shorter_edge, progress) if wrong]

        # Decoding takes minutes: one process of each machine does it for all.
        if corrupt := read_once_a_machine(corrupt_ones, self.processes):
            raise ValueError(
                f"data.validate: {len(corrupt):,} of {len(images):,} images of {split} can't be read, and metrics must "
                f"cover every one: {listed(corrupt, 5)}; replace them, or delete them and give "
                "--data.missing_images skip"
            )

    def num_trained_on(self, split: str, data: Any, seed: int) -> int:
        training = self._trained_on(data)
        return len(shared_images(self._images(training), self._images(self.records(split))))

    def _trained_on(self, data: Any) -> list[Any]:
        """The records that are trained on by these settings."""
        return [record for split in data.train for record in self.records(split, "data.train")]

    def num_missing(self) -> dict[str, int]:
        return dict(self._missing)

    def _images(self, records: Iterable[Any]) -> Iterator[ImageRef]:
        return (image for record in records for image in self.images_of(record))

    def new_model(self) -> SohoDownstreamModel:
        """The model on the CPU in float32, with the starting weights asked for; says what was loaded."""
        settings = self.model
        if settings.pretrained:
            model, report = self.model_class.from_pretraining(
                settings.pretrained,
                use_dictionary_output=settings.use_dictionary_output,
                **self.label_keywords(),
                **settings.changes(),
            )
            self._say_loaded(report)
            check_vocabulary(self.processor.tokenizer, model.config, f"model.pretrained: {settings.pretrained}")
        else:
            changes = {"use_dictionary_output": settings.use_dictionary_output, **self.config_changes()}
            model = self.model_class(SohoConfig.from_dict({**self.preset_config().to_dict(), **changes}))
            self.fill_parts(model)
        self.check_text_length(model.config)
        return model

    def contents(self) -> dict[str, Any]:
        """Contents of the data and of the starting weights.

        Raises:
            ValueError: images to validate on can't be read.
        """
        held_out = self.records(self.data.validate, "data.validate") if self.data.validate else []
        training = records_identity(self.training_records)
        contents = {**super().contents(), "training data": training, "held-out data": records_identity(held_out)}
        if held_out:
            self._refuse_corrupt(self.data.validate)
        for name, records in (("training", self.training_records), ("held-out", held_out)):
            contents[f"{name} images"] = images_identity(list(dict.fromkeys(self._images(records))))
        return contents

    def next_commands(self, folder: Path) -> list[str]:
        """Commands worth trying after the run."""
        run = shlex.quote(str(folder))
        others = [split for split in self.data.splits if split not in (*self.data.train, self.data.validate)]
        return [
            *(f"soho evaluate --run {run} --split {split}" for split in others),
            *super().next_commands(folder),
        ]
