"""Sections `teacher` and `teachers` of params.yaml. Light to import: no torch."""

import json
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from stages.data.task import Quoting
from stages.params import (
    Keep,
    MaxTokens,
    Params,
    Pooling,
    Precision,
    ScratchParams,
    Share,
    TrainingParams,
    WatchedPath,
)


class ValuesParams(Params):
    """What a file of soft labels holds, and how it calls it."""

    values: Literal["logits", "log_probabilities", "probabilities", "votes"] | None = None
    """What is given for each class; null: what the column is called."""
    field: str | None = None
    """The column with a list or a mapping by class; or, with ``{class}`` in it, such as ``p_{class}``, one
    column for each class. Null: the column that is called as `values` may be, or else one per class."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """The file's names of the classes, in the order of its lists; null: those of the task."""
    text_fields: Annotated[list[str], Field(min_length=1, max_length=2)] | None = None
    """What the file calls the task's text fields, in their order; null: as the task does."""
    quoting: Quoting | None = None
    """Of CSV and TSV, as in `task.source`."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What separates the fields of CSV; null: a comma, and a tab in TSV."""
    floor: Annotated[float, Field(gt=0, lt=0.1)] = 1e-7
    """The least probability: less, as zero, counts as this. Logits have none."""


def _as_file(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


class SoftLabelsParams(ValuesParams):
    """Section `teachers.<language>.soft_labels`: what somebody else's teacher said."""

    file: WatchedPath | None = None
    """Parquet, JSON, CSV or TSV with the task's text fields, below ``data/``, which DVC watches; null: the
    column `task.source.soft_label_field` of the task's own data."""
    facts: dict[str, str] = {}
    """Who made them, such as name, version and licence; they are shown wherever the teacher is."""

    @model_validator(mode="after")
    def _a_column_is_described_where_it_is(self) -> Self:
        set_here = {"field", "classes", "text_fields", "quoting", "delimiter"} & self.model_fields_set
        if self.file is None and set_here:
            raise ValueError(
                f"{sorted(set_here)[0]} describes a file; name it with file, or say "
                "task.source.soft_label_field"
            )
        if self.file is None and self.values is None:
            raise ValueError("say values: logits, log_probabilities, probabilities or votes; or name a file")
        return self


class EndpointParams(Params):
    """Section `teachers.<language>.endpoint`: a teacher behind HTTP.

    What is left out of the plan, with ``exclude``, changes no soft label: an answer is the same from any
    address, with any key and at any speed.
    """

    url: Annotated[str, Field(exclude=True)]
    """What the shape's path is put behind, such as ``http://localhost:8000/v1``."""
    shape: Literal["chat-logprobs", "classify", "decision"]
    """What is asked and read: log-probabilities of letters in a chat (``/chat/completions``), logits of a
    classifier (``/predict`` or ``/classify``), or probabilities of options (``/systemone``)."""
    dialect: Literal["tei", "vllm"] | None = None
    """Of the shape ``classify``: Text Embeddings Inference or vLLM."""
    model: str | None = None
    """What the server calls the model; only ``tei`` needs none."""
    template: WatchedPath | None = None
    """A text file below ``data/``, which DVC watches. Of ``chat-logprobs`` it is the prompt, with a
    placeholder for each text field, such as ``{text}``, and ``{classes}`` for the list of letters; of
    ``decision`` it is the question, without placeholders."""
    descriptions: dict[str, str] = {}
    """What classes mean, by the names that the teacher is told; they stand beside these."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """Of ``classify``: the classifier's class names, in its order. Only ``vllm`` does not tell them."""
    top_logprobs: PositiveInt = 20
    """How many log-probabilities the server is asked for; most servers give 20 at most."""
    extra: dict[str, Any] = {}
    """Further fields of each request, such as vLLM's ``logprob_token_ids``; null leaves out one that is sent
    otherwise."""
    letter_bias: Literal["contextual"] | None = None
    """Whether what the teacher says of texts without content is taken off its answers when they are read
    (contextual calibration; Zhao et al., 2021); null: answers are read as they are."""
    facts: dict[str, str] = {}
    """Who answers and under which terms, such as name and licence; the card and the report show them."""
    key_variable: Annotated[str | None, Field(exclude=True)] = None
    """Which environment variable holds the API key; null: none is sent."""
    concurrency: Annotated[int, Field(ge=1, le=1000, exclude=True)] = 16
    """Requests at once."""
    retries: Annotated[int, Field(ge=0, exclude=True)] = 5
    """How often a request is sent again after 408, 409, 429, 5xx, a lost connection or a time-out."""
    timeout: Annotated[PositiveFloat, Field(exclude=True)] = 60.0
    """Seconds without a byte from the server until a request counts as lost."""
    tolerance: Annotated[float, Field(gt=0, le=1, exclude=True)] = 0.05
    """By how much the probability of a class may differ when a text is asked about again."""
    max_missing: Annotated[float, Field(ge=0, le=1, exclude=True)] = 0.1
    """The share of letters that may be missing among the log-probabilities; with more, the run stops."""
    max_outside: Annotated[float, Field(ge=0, le=1, exclude=True)] = 0.5
    """The mean share of probability that may go to no letter; with more, the run stops."""

    @field_validator("url")
    @classmethod
    def _the_url_is_an_address_alone(cls, url: str) -> str:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - refuses what is no port
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it begins with http:// or https:// and a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "it may hold no user, password or query; put the key into an environment variable and name "
                "that with key_variable"
            )
        (parts.hostname or "").encode("idna")  # refuses what is no name of a host
        return url.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _requests_are_json(cls, extra: dict[str, Any]) -> dict[str, Any]:
        try:
            as_sent: dict[str, Any] = json.loads(json.dumps(extra, allow_nan=False))  # JSON's keys are texts
        except (TypeError, ValueError) as error:
            raise ValueError(f"it holds what JSON has not ({error}); quote dates and the like") from error
        return as_sent

    @field_validator("key_variable")
    @classmethod
    def _a_variable_is_named_and_no_key(cls, name: str | None) -> str | None:
        if name is not None and not (name.isidentifier() and name == name.upper()):
            raise ValueError(  # which does not repeat what may be a key
                "it is the name of an environment variable, such as OPENAI_API_KEY, and never the key itself"
            )
        return name

    @model_validator(mode="after")
    def _each_shape_has_what_it_needs(self) -> Self:
        is_classifier = self.shape == "classify"
        if is_classifier == (self.dialect is None):
            raise ValueError("the shape classify, and no other, has a dialect: tei or vllm")
        if self.model is None and self.dialect != "tei":
            raise ValueError(f"model is missing; the shape {self.shape} sends it")
        if self.shape == "chat-logprobs" and self.template is None:
            raise ValueError("template is missing; name a text file below data/ with the prompt")
        if self.dialect == "vllm" and self.classes is None:
            raise ValueError("classes is missing; vLLM does not name its classes, so list them in its order")
        for key, is_unused in (
            ("template", is_classifier),
            ("descriptions", is_classifier),
            ("letter_bias", is_classifier),
            ("classes", not is_classifier),
            ("top_logprobs", self.shape != "chat-logprobs"),
        ):
            if is_unused and key in self.model_fields_set and getattr(self, key):
                raise ValueError(f"{key} means nothing to the shape {self.shape}; leave it out")
        made_here = {"model", "messages", "input", "inputs", "state", "questions", "stream", "n"}
        taken = (made_here | {"raw_scores", "use_activation"}) & set(self.extra)
        if taken:
            raise ValueError(f"extra may not hold {sorted(taken)[0]}, which is made here")
        return self


class OneTeacher(Params):
    """Where a teacher comes from: one of `base`, `soft_labels`, `producer` and `endpoint`."""

    base: str | None = None
    """Hub id or local folder of an encoder, or ``scratch`` for a small one built here."""
    soft_labels: Annotated[SoftLabelsParams | None, BeforeValidator(_as_file)] = None
    """Soft labels that somebody else made, in a file or a column: there is no model then."""
    producer: str | None = None
    """Whose soft labels are taken out of the store, as it has them: a name, or the beginning of an id."""
    endpoint: EndpointParams | None = None
    """A server that is asked about each text, once."""
    name: Annotated[str, Field(pattern=r"^[^\W_][\w@.:/+-]{0,89}$")] | None = None
    """What people call the teacher, such as ``de@2026.11-large``, in the store and wherever it is shown; it
    decides nothing, but where `task.source.teacher_field` asks for it."""
    weight: PositiveFloat = 1.0
    """How much it counts in the average of several teachers."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id; null takes the newest, whose commit is then pinned. Of an endpoint:
    which version of the model answers, in your words, since HTTP does not tell."""
    finetune: bool = True
    """Whether to fine-tune `base` on the task; false takes it as a teacher that is ready."""
    labels: dict[str, str] | None = None
    """The teacher's class names to the task's, where they differ."""
    branch: str | None = None
    """How a student answers that is a teacher: through the branch of one of its languages, or through their
    ``mixture``; null: as its configuration says."""

    @model_validator(mode="after")
    def _a_branch_is_of_a_student_that_is_ready(self) -> Self:
        if self.branch is not None and (self.base is None or self.is_trained):
            raise ValueError(f"branch is {self.branch}, which a finished student has; set finetune: false")
        return self

    @model_validator(mode="after")
    def _it_comes_from_one_place(self) -> Self:
        places = ("base", "soft_labels", "producer", "endpoint")
        given = [key for key in places if getattr(self, key) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are both given" if given else "none is given"
            raise ValueError(f"a teacher is one of base, soft_labels, producer and endpoint, and {what}")
        return self

    @model_validator(mode="after")
    def _an_endpoint_has_a_revision(self) -> Self:
        if self.endpoint and self.revision is None and self.endpoint.dialect != "tei":
            raise ValueError(
                "revision is missing; say which version of the model answers, such as a date or a commit: a "
                "server does not prove it, and two may call theirs alike"
            )
        return self

    @property
    def is_trained(self) -> bool:
        """Whether it is fine-tuned here."""
        return self.base is not None and self.finetune

    @property
    def title(self) -> str:
        """What the teacher is called for people."""
        return self.name or " at ".join(
            filter(None, (self.base or self.producer or self._model or self._file, self.revision))
        )

    @property
    def _model(self) -> str | None:
        return (self.endpoint.model or "a classifier behind HTTP") if self.endpoint else None

    @property
    def _file(self) -> str:
        return (self.soft_labels and self.soft_labels.file) or "a column of the data"


class TeacherParams(OneTeacher):
    """Section `teachers.<language>`: the language's teacher, and others that are asked as well."""

    more: list[OneTeacher] = []
    """Further teachers; the student learns the average of all teachers' probabilities."""
    combine: Literal["average", "confidence"] = "average"
    """What several teachers say together: the ``average`` of their probabilities, each with its `weight`; or,
    with ``confidence``, also by how sure each is of the text: 1 - H / log C, where H is the entropy of its
    answer."""
    folds: PositiveInt = 1
    """Cross-fitting: above 1, each teacher is so many models, each fine-tuned without one fold of the
    examples, which it then labels; a model's soft labels of what it was trained on say little more than
    the hard label. 1 is the paper's way: one model, trained on everything, labels everything."""

    @model_validator(mode="after")
    def _folds_are_of_teachers_that_are_made_here(self) -> Self:
        if self.folds > 1 and not all(one.is_trained for one in self.all):
            raise ValueError(
                f"folds is {self.folds}, but nobody knows what a teacher has seen that is not fine-tuned "
                "here; set folds: 1, or give it a base and finetune: true"
            )
        return self

    @model_validator(mode="after")
    def _names_are_of_one_teacher(self) -> Self:
        names = [one.name for one in self.all if one.name]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two teachers are called '{name}'")
        return self

    @property
    def all(self) -> list[OneTeacher]:
        """The language's teachers, the first one first."""
        return [self, *self.more]


class LoraParams(Params):
    """Section `teacher.finetune.lora`: an adapter that learns in the place of the encoder."""

    rank: PositiveInt = 8
    """Of the two matrices that an adapted layer gets."""
    alpha: PositiveInt = 16
    """What the adapter adds counts alpha / rank."""
    dropout: Share = 0.0
    """Of what the adapter reads, while it is trained."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the layers that are adapted, such as ``query``; null: all linear ones of the encoder."""


class FinetuneParams(TrainingParams):
    """Section `teacher.finetune`."""

    epochs: PositiveInt = 3
    """Passes over the training split."""
    keep: Keep = "best"
    """Whose weights are kept: those of the epoch with the ``best`` validation accuracy, or the ``last``."""
    label_smoothing: Share = 0.0
    """Share of the hard label that all classes get alike."""
    pooling: Pooling | None = None
    """What represents a text: the state of its ``first`` token or its ``last``, or the ``mean`` of all, which
    most sentence encoders want; null: as the base's family does."""
    lora: LoraParams | None = None
    """Whether an adapter learns, and the encoder stays as it is. Needs PEFT. Null: all weights learn."""
    scratch: ScratchParams | None = None
    """The encoder for teachers whose base is ``scratch``."""


class LabelParams(Params):
    """Section `teacher.label`."""

    max_tokens: MaxTokens = 128
    """Longer inputs are truncated to this many tokens, special tokens included."""
    precision: Precision = "float32"
    """Compute dtype of the teacher."""
    format: Literal["arrow", "zarr"] = "arrow"
    """Of the shards that are written; both are read."""
    logits: Literal["float32", "float16"] = "float32"
    """Type of the logits on disk."""
    top_k: PositiveInt | None = None
    """Keep only this many logits, the largest, and the log-sum-exp of the others; null keeps all. What that
    changes in a student's training is measured and written beside the soft labels."""
    hidden: bool = False
    """Whether to keep the last layer's state of the first token too, as float16; of a decoder such as Llama,
    whose first token has read nothing, the state of the last one; and with `pooling`, what is pooled."""
    batch_tokens: PositiveInt = 16384
    """Token cells, padding included, per forward pass; changes speed and memory, not the logits."""
    compile: bool = False
    """Whether `torch.compile` compiles the teacher: it takes a minute first, and a compiler."""
    shard_examples: PositiveInt = 65536
    """Examples per shard of the store, at most: what a killed run may lose. Texts are sorted by length
    within a shard, so very small ones cost padding."""


class TeacherSection(Params):
    """Section `teacher`."""

    finetune: FinetuneParams = FinetuneParams()
    label: LabelParams = LabelParams()


class CacheParams(Params):
    """Section `cache`."""

    root: str | None = None
    """Folder of the store, or a URL such as ``s3://bucket/soft``; null takes the user's cache folder.
    MBLM_TEACHER_CACHE overrides it."""
