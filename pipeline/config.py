"""The config: one frozen model per stage, and the only place where a default lives.

A key this file does not know is an error that offers the nearest known name, because a misspelt
`learning_rate` that trains with the default is the worst kind of success.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config_problems import validated
from runtime.errors import ConfigError

DEFAULT_SYSTEM = "Turn the request into vehicle function calls."
SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MOST_WITHOUT_ALLOCATION = 0.99
"""Largest share of AdaLoRA's steps in which ranks do not fall."""

Precision = Literal["fp32", "fp16", "int8", "int4"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Rank = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

FILES = ("train", "validation", "test")
_WITHOUT_BRANCH = ("embed_tokens", "lm_head")


class Section(BaseModel):
    """What every table of the file shares: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Base(Section):
    """Where the base model comes from: a registry package, the Hugging Face hub, or a local folder."""

    source: Literal["pypi", "hub", "path"]
    package: str | None = None
    """pypi: an exact requirement, `name==version`."""
    file: str | None = None
    """pypi: the GGUF inside the package's wheel."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """pypi: digest of that file; a mismatch stops the build."""
    id: str | None = None
    """hub: `owner/name`."""
    revision: str | None = None
    """hub: a commit, so that the base cannot change under the config."""
    path: Path | None = None
    """path: a standard checkpoint folder, relative to the config file."""

    @model_validator(mode="after")
    def _each_source_has_its_keys(self) -> Base:
        wanted = {"pypi": ("package", "file", "sha256"), "hub": ("id", "revision"), "path": ("path",)}
        for source, keys in wanted.items():
            for key in keys:
                present = getattr(self, key) is not None
                if present and source != self.source:
                    raise ValueError(f'"{key}" belongs to source = "{source}", not "{self.source}"')
                if not present and source == self.source:
                    raise ValueError(f'source = "{source}" needs "{key}"')
        return self


class Data(Section):
    """The conversations: generated from a grammar, or read from files."""

    tools: Path
    """JSON Schema of the callable functions. This and the paths below are relative to the config file, and
    may name environment variables: `$COCKPIT_DATA_DIR/…`."""
    system: str = DEFAULT_SYSTEM
    """System prompt of every conversation; it ships in the bundle."""
    functions: tuple[str, ...] = ()
    """Names of functions, or patterns such as "climate_*": records that call others are left out. Unset: none
    is. What may be called is `tools` in either case."""
    train: Path | None = None
    """JSON Lines of records or of OpenAI messages; `test` comes with it. Unset: records are generated."""
    validation: Path | None = None
    """Unset beside the other two: some sentence forms of `train` are held out and not trained on."""
    test: Path | None = None
    train_examples: Annotated[int, Field(ge=1)] = 2000
    """Generated training records over all languages."""
    validation_examples: Annotated[int, Field(ge=1)] = 100
    """Generated, or held out of `train`."""
    test_examples: Annotated[int, Field(ge=1)] = 400
    chinese: Share = 0.2
    """Share of generated records in Chinese; the rest is English."""

    @model_validator(mode="after")
    def _files_come_together(self) -> Data:
        if (self.train is None) != (self.test is None) or (self.validation and not self.train):
            raise ValueError(
                "train and test come together, with or without validation; name none to generate records"
            )
        return self


class Train(Section):
    """LoRA training (arXiv 2106.09685). The defaults are the reference guide's recommendations."""

    method: Literal["lora", "qlora", "dora", "adalora"] = "lora"
    """qlora: LoRA beside weights held in 4-bit NF4 (arXiv 2305.14314); dora: direction and magnitude apart
    (arXiv 2402.09353); adalora: rank moves to the layers that need it (arXiv 2303.10512)."""
    r: Rank = 16
    """Rank of an update; with adalora the average that is left over all layers."""
    alpha: Positive = 32.0
    """Scale numerator: the update is (alpha / r) · B A, or (alpha / √r) · B A with rslora; with adalora
    (alpha / adalora_init_r) · B E A."""
    rslora: bool = False
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: tuple[str, ...] | str = SEVEN_PROJECTIONS
    """Names of linear layers or ends of them; or one text: "all-linear", or a regular expression that the
    whole name of a layer matches."""
    rank_pattern: dict[str, Rank] = {}
    """Name, end of a name, or regular expression for one → r of the layers that it matches."""
    alpha_pattern: dict[str, Positive] = {}
    """The same for alpha."""
    modules_to_save: tuple[str, ...] = ()
    """Layers trained whole, in float32, and saved with the adapter: norms, the embedding, the head."""
    adalora_init_r: Rank | None = None
    """Rank that every layer starts with; unset: 1.5 r."""
    adalora_tinit: Share = 0.1
    """Share of the steps before ranks begin to fall."""
    adalora_tfinal: Share = 0.3
    """Share of the steps after the ranks are settled."""
    adalora_delta_t: Annotated[int, Field(ge=1)] = 1
    """Steps from one allocation of ranks to the next."""
    adalora_beta1: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    """Memory of an entry's sensitivity |weight · gradient|."""
    adalora_beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    """Memory of that sensitivity's spread."""
    adalora_orth_reg_weight: Annotated[float, Field(ge=0.0)] = 0.5
    """Weight in the loss of how far A and B are from orthogonal."""
    learning_rate: Positive = 2e-4
    loraplus_ratio: Annotated[float, Field(ge=1.0)] = 1.0
    """Learning rate of B over that of A (LoRA+, arXiv 2402.12354); 1 is plain LoRA."""
    epochs: Positive = 3.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever the epochs say."""
    tokens_per_step: Annotated[int, Field(ge=16)] = 256
    """Of one packed row, behind the prefix that its conversations share: as many of them as fit."""
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    warmup_share: Share = 0.03
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    adam_beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """Memory of the squared gradient; a run of some hundred steps wants a shorter one."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Positive = 1.0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the processor multiplies it natively, float32 elsewhere."""
    save_steps: Annotated[int, Field(ge=1)] = 100
    """Steps between resumable checkpoints."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between measurements of the validation loss on the way; unset: before and after alone."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop when so many measurements running were no better than the best; its weights are kept."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass instead of keeping them."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; unset uses every core."""

    @property
    def initial_rank(self) -> int:
        """AdaLoRA's `adalora_init_r`, or its default."""
        return self.adalora_init_r or -(-3 * self.r // 2)

    @property
    def highest_rank(self) -> int:
        """The largest rank that a layer may end with."""
        if self.method == "adalora":
            return self.initial_rank
        return max([self.r, *self.rank_pattern.values()])

    @model_validator(mode="after")
    def _keys_go_together(self) -> Train:
        problems = [*self._unread_keys(), *self._contradictions(), *self._broken_patterns()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unread_keys(self) -> Iterator[str]:
        """Keys that this method would pass over without a word."""
        if self.method != "adalora":
            for key, field in type(self).model_fields.items():
                if key.startswith("adalora_") and getattr(self, key) != field.default:
                    yield f'{key} belongs to method = "adalora", not method = "{self.method}"'
            return
        if self.rslora:
            yield 'rslora has no effect with method = "adalora", whose scale is alpha / adalora_init_r'
        for key in ("rank_pattern", "alpha_pattern"):
            if getattr(self, key):
                yield f'{key} has no effect with method = "adalora", which finds the ranks itself'

    def _contradictions(self) -> Iterator[str]:
        if not self.target_modules:
            yield 'target_modules names no layer: name some, or take "all-linear"'
        if self.patience is not None and self.eval_steps is None:
            yield "patience counts measurements of the validation loss: it needs eval_steps"
        if self.modules_to_save and self.dtype == "bfloat16":
            yield (
                'modules_to_save trains weights themselves, and dtype = "bfloat16" would round most of a '
                'step away: take dtype = "float32" or "auto"'
            )
        if self.method != "adalora":
            return
        if self.initial_rank <= self.r:
            yield f"adalora_init_r = {self.initial_rank} must be more than r = {self.r}, to which ranks fall"
        if self.adalora_tinit + self.adalora_tfinal > MOST_WITHOUT_ALLOCATION:
            yield (
                "adalora_tinit and adalora_tfinal leave no steps in which ranks fall: together they may be "
                f"{MOST_WITHOUT_ALLOCATION} at most"
            )
        if self.patience is not None:
            yield (
                'patience could stop method = "adalora" before its ranks have fallen to r; eval_steps alone '
                "measures without stopping"
            )

    def _broken_patterns(self) -> Iterator[str]:
        whole = [self.target_modules] if isinstance(self.target_modules, str) else []
        for pattern in (*whole, *self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                yield f'"{pattern}" is no regular expression: {error}'


class Objective(Section):
    """What the bits of the model's matrices are spent on (docs/decisions/0015): of int4, or of an int8 that
    is to be as close as its bytes allow, and not as fast (docs/decisions/0020)."""

    minimize: Literal["kl", "bytes"] = "kl"
    budget_bytes: Annotated[int, Field(ge=1)] | None = None
    """minimize = "kl": most bytes of all matrices as a token reads them, scales in float32: decoding takes as
    long as they are many, and files are smaller, with two bytes a scale. Unset: as many as blocks of
    `block_size` take with 4 bits, and with 8 at the model's ends. int8 has to name it."""
    budget_kl: Positive | None = None
    """minimize = "bytes": most divergence that rounding weights may be expected to add, in nats per
    position."""

    @model_validator(mode="after")
    def _one_budget(self) -> Objective:
        if self.minimize == "bytes" and (self.budget_kl is None or self.budget_bytes is not None):
            raise ValueError('minimize = "bytes" takes budget_kl, and no budget_bytes')
        if self.minimize == "kl" and self.budget_kl is not None:
            raise ValueError('budget_kl belongs to minimize = "bytes"; minimize = "kl" takes budget_bytes')
        return self


class Export(Section):
    """Merged checkpoint → ONNX."""

    precision: Precision = "int8"
    block_size: Literal[16, 32, 64, 128] | None = None
    """Most weights that share one scale, along the input dimension; a matrix whose rows are not whole blocks
    has smaller ones. Unset: 32 for int8, 64 for int4."""
    calibration_conversations: Annotated[int, Field(ge=0)] | None = None
    """Training conversations on which activations are measured. int8: so that the products that take half of
    the time can round them as a whole (docs/decisions/0009); 0 rounds activations in blocks everywhere.
    int4, and int8 with an objective: so that weights are rounded with a view to them (docs/decisions/0015); 0
    rounds them to nearest. Unset: 32 for int8 without an objective, 256 otherwise."""
    kv_cache: Literal["float", "int8"] = "float"
    """What int8 and int4 keep keys and values in. int8 takes a quarter of the memory, and longer to read a
    prompt (docs/decisions/0019); only ONNX Runtime 1.32 or later runs it, on a CPU."""
    objective: Objective = Objective()
    context: Annotated[int, Field(ge=16)] = 2048
    """Longest prompt plus answer in tokens; at most what the base was trained for."""
    exporter: Literal["graph", "optimum"] = "graph"
    """graph: our own builder; optimum: for architectures it does not know (needs the optimum extra)."""
    most_rank: Rank = 32
    """Of a switchable graph: the largest rank of an adapter that it will ever take."""

    @property
    def weights_per_scale(self) -> int:
        """`block_size`, or the precision's own."""
        return self.block_size or (64 if self.precision == "int4" else 32)

    @property
    def calibrated(self) -> bool:
        """Whether the export reads a calibration."""
        reads = (self.precision == "int8" and not self._with_objective) or self.kv_cache == "int8"
        return self.exporter == "graph" and reads and self.conversations > 0

    @property
    def rounded(self) -> bool:
        """Whether the export reads matrices that were rounded on conversations."""
        return self.exporter == "graph" and self._with_objective and self.conversations > 0

    @property
    def conversations(self) -> int:
        """`calibration_conversations`, or the precision's own."""
        if self.calibration_conversations is not None:
            return self.calibration_conversations
        return 256 if self._with_objective else 32

    @property
    def _with_objective(self) -> bool:
        named = self.objective != Objective()
        return self.precision == "int4" or (self.precision == "int8" and named)

    @model_validator(mode="after")
    def _optimum_only_traces(self) -> Export:
        if self.exporter == "optimum" and self.precision != "fp32":
            raise ValueError('exporter = "optimum" writes precision = "fp32" only')
        return self

    @model_validator(mode="after")
    def _cache_is_rounded_with_the_rest(self) -> Export:
        if self.kv_cache == "int8" and self.precision not in ("int8", "int4"):
            raise ValueError(
                f'kv_cache = "int8" rounds, and precision = "{self.precision}" is held to floats: '
                'take precision = "int8" or "int4"'
            )
        if self.kv_cache == "int8" and not self.conversations:
            raise ValueError(
                'kv_cache = "int8" has its scales from conversations: leave calibration_conversations = 0 out'
            )
        return self

    @model_validator(mode="after")
    def _objective_is_read(self) -> Export:
        if self.objective != Objective() and not self.rounded:
            raise ValueError(
                'objective is of precision = "int8" or "int4" with calibration_conversations; '
                "leave it out elsewhere"
            )
        return self


class Validate(Section):
    """How much evidence to gather."""

    conversations: Annotated[int, Field(ge=1)] = 58
    """Test conversations whose logits are compared position by position."""
    decode_conversations: Annotated[int, Field(ge=1)] = 5
    """Of those, how many are also fed token by token through the cache."""
    reference: Literal["float32", "float64"] = "float32"
    """What the unmerged model computes in; float64 takes twice the memory and several times as long."""
    task_examples: Annotated[int, Field(ge=1)] = 150
    """Test utterances answered by the base, the unmerged model and the bundle."""
    generations: Annotated[int, Field(ge=1)] = 20
    """Of those, how many the bundle also answers without a grammar, to be compared token for token."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 96
    prompt_tokens: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 256)
    """Prompt lengths at which latency is measured."""
    new_tokens: Annotated[int, Field(ge=2)] = 8
    """Tokens decoded behind each prompt when latency is measured."""
    latency_runs: Annotated[int, Field(ge=3)] = 4
    """Interleaved pairs of runs per prompt length."""
    timed_calls: Annotated[int, Field(ge=1)] = 4
    """Utterances whose whole answer is timed, once by each contender."""
    own_calls: Annotated[int, Field(ge=1)] = 20
    """Utterances of each language that the bundle then answers alone, to tell where a call's time goes."""
    threads: Annotated[int, Field(ge=1)] = 2
    near_tie: Positive = 1e-3
    """A top-1 flip whose reference margin (in logits) is below this is counted apart."""


class Gate(Section):
    """Thresholds. Unset ones take the default of the bundle's precision (`pipeline.evidence.gate`)."""

    max_hop_error: Positive | None = None
    """Largest |logit difference| over the largest |logit|, one form of the model against the one before,
    wherever the two are the same function: merging, drawing the graph, shipping floats, the runtime."""
    max_weights_kl: Positive | None = None
    """Mean KL divergence that rounding the weights adds, in nats per position (int8, int4)."""
    max_activations_kl: Positive | None = None
    """Mean KL divergence that rounding the activations adds (int8, int4)."""
    max_relative_error: Positive | None = None
    """Largest |logit difference| over the largest |logit| of the reference."""
    max_mean_kl: Positive | None = None
    """Mean KL divergence from the unmerged model, in nats per position."""
    max_p99_kl: Positive | None = None
    min_top1: Share | None = None
    """Share of positions with the same most probable token, near ties not counted."""
    min_identical_answers: Share | None = None
    """Share of greedy answers without grammar that are the unmerged model's, token for token."""
    max_cache_error: Positive | None = None
    """Largest relative logit difference between one prefill and other ways through the cache."""
    max_float_cache_error: Positive | None = None
    """The same with float activations, where all ways are one function."""
    min_exact_call: Share | None = None
    """Exact-call accuracy of the bundle on the test split."""
    max_exact_call_drop: Share | None = None
    """How much lower than the unmerged model's the bundle's exact-call accuracy may be."""
    min_valid: Share | None = None
    """Share of the bundle's answers that parse and satisfy the tools' schemas."""
    max_ttft_ratio: Positive | None = None
    """Time to first token over the unmerged model's, median of pairs, at every prompt length."""
    max_token_ratio: Positive | None = None
    """Time per decoded token over the unmerged model's, median of pairs."""
    max_call_ratio: Positive | None = None
    """Time from utterance to whole answer over the unmerged model's, median over utterances."""
    max_peak_ratio: Positive | None = None
    """Peak memory of the bundle's process over the unmerged model's."""
    max_load_ms: Positive | None = None
    """Time to verify and open the bundle."""
    max_kl_growth: Positive | None = None
    """Mean KL over the baseline's. This and what follows count only where there is a baseline."""
    max_exact_call_loss: Share | None = None
    """Baseline's exact-call accuracy minus the bundle's, paired by utterance."""
    max_ttft_growth: Positive | None = None
    """Time to first token, over the unmerged model's, over the baseline's same figure."""
    max_token_growth: Positive | None = None
    """Time per token, likewise."""
    max_call_growth: Positive | None = None
    """Time of a whole answer, likewise."""
    max_peak_growth: Positive | None = None
    """Peak memory over the baseline's."""


class TaskData(Section):
    """What a task's records have of their own; unset keys are those of `[data]`."""

    train: Path | None = None
    """With `test`, and perhaps `validation`, in place of the files of `[data]`."""
    validation: Path | None = None
    test: Path | None = None
    train_examples: Annotated[int, Field(ge=1)] | None = None
    validation_examples: Annotated[int, Field(ge=1)] | None = None
    test_examples: Annotated[int, Field(ge=1)] | None = None
    chinese: Share | None = None


class Task(Section):
    """One of several tasks that share base, system prompt and tools, each with an adapter of its own."""

    name: Name
    """What the car calls it by: `assistant.use("navigation")`."""
    functions: tuple[str, ...] = ()
    """Names of functions, or patterns such as "climate_*": records that call only these, or none, are the
    task's. Unset: all records of its own files are."""
    data: TaskData = TaskData()
    train: dict[str, Any] = {}
    """Keys of `[train]` that are other ones here."""
    gate: dict[str, Any] = {}
    """Keys of `[gate]` that are other ones here."""

    @model_validator(mode="after")
    def _has_records(self) -> Task:
        if not self.functions and self.data.train is None:
            raise ValueError(
                f'the task "{self.name}" has no records: name its functions, as in ["climate_*"], or files '
                "of its own in [task.data]"
            )
        return self


class Config(Section):
    """A whole config file."""

    name: Name
    """Names the run directory and the bundle."""
    mode: Literal["switchable", "merged"] = "switchable"
    """What becomes of several tasks. switchable: one bundle, in which each has its adapter beside one base;
    merged: a bundle for each."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    base: Base
    data: Data
    train: Train = Train()
    export: Export = Export()
    validate_: Validate = Field(default=Validate(), alias="validate")
    gate: Gate = Gate()
    tasks: tuple[Task, ...] = Field(default=(), alias="task")

    @property
    def switchable(self) -> bool:
        """Whether one graph is built that takes each task's adapter."""
        return bool(self.tasks) and self.mode == "switchable"

    def of_task(self, task: Task) -> Config:
        """The config of a build of this task alone."""
        return self.model_copy(
            update={
                "name": f"{self.name}-{task.name}",
                "data": self._data_of(task),
                "train": self._train_of(task),
                "gate": self._gate_of(task),
                "tasks": (),
            }
        )

    @model_validator(mode="after")
    def _tasks_can_be_built(self) -> Config:
        problems = [*self._without_tasks(), *self._of_tasks()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _without_tasks(self) -> Iterator[str]:
        """Keys that would be passed over without a word."""
        if "mode" in self.model_fields_set and not self.tasks:
            yield "mode is of several tasks, and there is no [[task]]: add some, or leave mode out"
        if "most_rank" in self.export.model_fields_set and not self.switchable:
            yield (
                'export.most_rank is of a switchable graph: add [[task]] tables in mode = "switchable", '
                "or leave it out"
            )

    def _of_tasks(self) -> Iterator[str]:
        names = [task.name for task in self.tasks]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            yield f'two tasks are named "{name}"; give each a name of its own'
        if self.switchable and self.export.exporter == "optimum":
            yield 'exporter = "optimum" writes no switchable graph: take "graph", or mode = "merged"'
        for task in self.tasks:
            try:
                self._gate_of(task)
                self._data_of(task)
                train = self._train_of(task)
            except ConfigError as error:
                yield str(error)
            else:
                if self.switchable:
                    yield from (f'task "{task.name}": {problem}' for problem in self._unswitchable(train))

    def _unswitchable(self, train: Train) -> Iterator[str]:
        """What an adapter of this training has no place for in a switchable graph (docs/decisions/0011)."""
        otherwise = 'or mode = "merged"'
        if train.method == "dora":
            yield f'method = "dora" scales whole products and cannot stay unmerged: take "lora", {otherwise}'
        if train.method == "qlora":
            yield (
                'method = "qlora" trains beside weights in 4 bits, which are not the base that tasks share: '
                f'take "lora", {otherwise}'
            )
        if train.modules_to_save:
            yield f"modules_to_save takes the place of the base's layers: leave it out, {otherwise}"
        if isinstance(train.target_modules, tuple):
            ends = (name.rpartition(".")[2] for name in train.target_modules)
            for name in dict.fromkeys(end for end in ends if end in _WITHOUT_BRANCH):
                yield f'target_modules: beside "{name}" no adapter fits: leave it out, {otherwise}'
        if train.highest_rank > self.export.most_rank:
            yield (
                f"its ranks go up to {train.highest_rank}, and export.most_rank is {self.export.most_rank}: "
                "raise that or lower the rank"
            )

    def _data_of(self, task: Task) -> Data:
        own = task.data.model_dump(exclude_none=True)
        files = set(FILES) if task.data.train else set()
        shared = self.data.model_dump(exclude_unset=True, exclude=files)
        functions = {"functions": task.functions} if task.functions else {}
        return validated(Data, {**shared, **own, **functions}, f'task "{task.name}", [task.data]')

    def _train_of(self, task: Task) -> Train:
        table = {**self.train.model_dump(exclude_unset=True), **task.train}
        return validated(Train, table, f'task "{task.name}", [task.train]')

    def _gate_of(self, task: Task) -> Gate:
        table = {**self.gate.model_dump(exclude_unset=True), **task.gate}
        return validated(Gate, table, f'task "{task.name}", [task.gate]')
