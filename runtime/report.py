"""The evidence a bundle is admitted on, as frozen records that survive a trip through JSON.

`to_json` and `from_json` are exact inverses. Reading is strict: an unknown, missing or ill-typed
field is an error, because a report that is half understood is no evidence. Standard library only, so
that a device, a CI job and the build host read the same file with the same code.

Units: times in milliseconds, sizes in bytes, KL divergence in nats per position, errors in logits
unless called relative, shares between 0 and 1.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from runtime.errors import DataError
from runtime.strict import parse_json, read_record

SCHEMA_VERSION = 4

Verdict = Literal["pass", "fail", "inconclusive"]
Record = TypeVar("Record")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over conversations, utterances or pairs."""

    value: float
    low: float
    high: float
    units: int
    """How many conversations, utterances or pairs were resampled."""


@dataclass(frozen=True)
class Histogram:
    """Counts between neighbouring edges, of which there is one more."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise DataError(f"a histogram of {len(self.counts)} counts has {len(self.edges)} edges")


@dataclass(frozen=True)
class Comparison:
    """One form of the model against another, on the same positions of the same conversations."""

    name: str
    """The form measured, such as `bundle`."""
    against: str
    """The form it is compared with, such as `unmerged`."""
    conversations: int
    positions: int
    max_absolute_error: Estimate
    rms_absolute_error: Estimate
    relative_error: Estimate
    """Largest |difference| over the largest |logit| of the reference."""
    rms_relative_error: Estimate
    """Root mean square of the differences over that of the reference's logits."""
    kl_mean: Estimate
    kl_p99: Estimate
    kl_max: Estimate
    kl_histogram: Histogram
    top1: Estimate
    """Share of positions with the same most probable token, near ties counted as equal."""
    top5: Estimate
    """Mean overlap of the five most probable tokens."""
    flips: int
    """Positions whose most probable token differs although the reference's margin is no near tie."""
    near_tie_flips: int
    near_tie: float
    """Margin in logits below which the reference's first and second choice count as tied."""
    reference_perplexity: float
    """Of the conversations' own next tokens."""
    perplexity_difference: Estimate
    """The form's perplexity minus the reference's."""


@dataclass(frozen=True)
class SiteError:
    """How far what one operator puts out is from the same output in the form before."""

    layer: int | None
    """None for what lies before or behind the layers: embedding, last norm, head."""
    site: str
    """Such as `attention.qkv`."""
    operator: str
    """What computes it in the later form: an ONNX operator, or a class of torch module."""
    error: float
    """Root mean square of the differences over that of the form before; over everything, when that is
    zero."""


@dataclass(frozen=True)
class Hop:
    """One step of the chain from the unmerged model to the bundle.

    The forms are, in order: `unmerged`, `merged`, `onnx` (float32, of the merged checkpoint; or of the base
    with the adapter beside it, where that stays unmerged and there is no `merged`), for a quantized model
    `weights_only` (the shipped graph with float activations), `shipped` (the shipped graph, run directly),
    `bundle` (through the runtime).
    """

    step: Comparison
    """Against the form before."""
    origin: Comparison
    """Against the unmerged model."""
    weights: str
    """Number format of the form's weights, such as `float32`, `bfloat16` or `int8`."""
    sites: tuple[SiteError, ...]
    """In the order they are computed; none where a form shows no intermediate output."""


@dataclass(frozen=True)
class CacheCheck:
    """The same conversations run another way through the runtime's cache, against one prefill."""

    form: Literal["weights_only", "bundle"]
    """Which graph: with float activations every way is the same function, to rounding."""
    way: Literal["decode", "chunks", "rewind"]
    conversations: int
    positions: int
    relative_error: float
    """Largest |difference| over the largest |logit| of the prefill."""
    flips: int


@dataclass(frozen=True)
class RenderingCheck:
    """Prompt token ids of the device against those of the training side."""

    prompts: int
    different: int
    first_difference: str
    """The first utterance whose ids differ, or an empty string."""


@dataclass(frozen=True)
class Generations:
    """Greedy answers of the bundle, without a grammar, against the unmerged model's."""

    prompts: int
    identical: Estimate
    """Share of answers that are the same, token for token."""
    first_difference: float | None
    """Tokens before the first that differs, median over the answers that differ; None when none does."""


@dataclass(frozen=True)
class ParityReport:
    """Whether the bundle computes what was trained."""

    hops: tuple[Hop, ...]
    cache: tuple[CacheCheck, ...]
    rendering: RenderingCheck
    generations: Generations

    @property
    def bundle(self) -> Comparison | None:
        """The bundle against the unmerged model; None where the chain does not reach it."""
        return next((hop.origin for hop in self.hops if hop.step.name == "bundle"), None)


@dataclass(frozen=True)
class Score:
    """Task accuracy over a set of utterances."""

    utterances: int
    exact_call: Estimate
    """All calls equal, in order, names and arguments."""
    function_name: Estimate
    """The sequence of function names equal."""
    argument_f1: Estimate
    """F1 of (function, argument, value) triples over the set."""
    refusal: Estimate | None
    """Of the utterances no function fits, the share answered by no call; None when there are none."""
    valid: Estimate
    """Share of answers that parse and satisfy the tools' schemas."""


@dataclass(frozen=True)
class ContenderScore:
    """One contender's scores: over everything, by language, by domain."""

    name: str
    overall: Score
    by_language: dict[str, Score]
    by_domain: dict[str, Score]


@dataclass(frozen=True)
class Answer:
    """What each contender answered to one utterance."""

    id: str
    utterance: str
    expected: str
    """Canonical text of the expected calls."""
    answers: dict[str, str]
    """Contender → its answer's text."""
    exact: dict[str, bool]
    """Contender → whether the calls are exactly the expected ones."""


@dataclass(frozen=True)
class TaskReport:
    """Whether the bundle still does the job, beside the base and the unmerged model."""

    contenders: tuple[ContenderScore, ...]
    exact_call_drop: Estimate
    """Unmerged minus bundle, paired by utterance."""
    mcnemar_p: float
    """Exact two-sided McNemar test of bundle against unmerged (binomial on discordant pairs)."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Distribution:
    """Percentiles of repeated measurements, in milliseconds."""

    samples: int
    p50: float
    p95: float
    p99: float
    ventiles: tuple[float, ...]
    """The 21 quantiles 0 %, 5 %, … 100 %: the shape of the distribution."""


def distribution(values: Sequence[float]) -> Distribution:
    """Percentiles of at least one measurement, interpolated linearly; one alone is all of them."""
    if len(values) == 1:
        return Distribution(1, values[0], values[0], values[0], (values[0],) * 21)
    percentiles = statistics.quantiles(values, n=100, method="inclusive")
    ventiles = (min(values), *statistics.quantiles(values, n=20, method="inclusive"), max(values))
    return Distribution(len(values), percentiles[49], percentiles[94], percentiles[98], ventiles)


@dataclass(frozen=True)
class LatencyPoint:
    """Contenders at one prompt length, run in turn, and the ratios pair by pair."""

    prompt_tokens: int
    new_tokens: int
    ttft: dict[str, Distribution]
    """Contender → time from prompt to the first token's logits."""
    token: dict[str, Distribution]
    """Contender → time per decoded token behind the prompt."""
    ttft_ratio: dict[str, Estimate]
    """Contender → its time over the unmerged model's, median of pairs."""
    token_ratio: dict[str, Estimate]


@dataclass(frozen=True)
class CallLatency:
    """From an utterance to its whole answer, contenders in turn on the same utterances.

    The bundle answers under the tools' grammar and its calls are checked, as in a car; torch decodes greedily
    to the end of the turn.
    """

    utterances: int
    times: dict[str, Distribution]
    """Contender → milliseconds of one answer."""
    ratio: dict[str, Estimate]
    """Contender → its time over the unmerged model's, median over utterances."""


@dataclass(frozen=True)
class OwnCalls:
    """The bundle's calls by itself, from an utterance to calls that were checked, and where their time goes.

    The four parts are means over the calls, in milliseconds; their sum is the mean time of a call.
    """

    times: Distribution
    runs: float
    """Runs of the model behind the prompt's, mean over the calls."""
    new_tokens: float
    """Tokens of the answer, mean over the calls."""
    prefill_ms: float
    """In the model, for the prompt and what is forced before a token is chosen."""
    decode_ms: float
    """In the model, behind that."""
    grammar_ms: float
    """What may come next, what must, and how it is spelt."""
    python_ms: float
    """The rest: template, tokenizer, choosing tokens, their text, reading and checking the calls."""


@dataclass(frozen=True)
class Footprint:
    """What a contender's own process took."""

    load_ms: float
    peak_bytes: int


@dataclass(frozen=True)
class Machine:
    """Where latency was measured; figures of different machines are not comparable."""

    processor: str
    cores: int
    features: tuple[str, ...]
    system: str
    memory_bytes: int
    versions: dict[str, str]


@dataclass(frozen=True)
class LatencyReport:
    """How fast the bundle is beside the unmerged model on one machine."""

    machine: Machine
    threads: int
    points: tuple[LatencyPoint, ...]
    call: CallLatency
    own_calls: dict[str, OwnCalls]
    """Language of the utterances → the bundle's calls, in its process of the rounds while all others wait."""
    footprints: dict[str, Footprint]
    """Contender → its process; the contenders are `unmerged`, `merged` where the adapter is, `bundle` and any
    added bundle."""


@dataclass(frozen=True)
class Check:
    """One gate: a figure against its threshold."""

    name: str
    """The threshold's name in the config's `[gate]` table."""
    at: str
    """What tells checks of one name apart: a hop, a way through the cache, a prompt length; or nothing."""
    subject: str
    """What was measured, for a person."""
    value: float | None
    """None when nothing was measured."""
    low: float | None
    high: float | None
    threshold: float
    direction: Literal["at most", "at least"]
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Culprit:
    """The first hop that is beyond its budget, and where in it the error jumps."""

    hop: str
    against: str
    checks: tuple[str, ...]
    """Names of the hop's checks that did not pass."""
    site: SiteError | None
    """The first operator whose error is out of proportion to the one before; None where no intermediate
    output was compared, or none stands out."""
    before: float
    """Error of the site before."""


@dataclass(frozen=True)
class GateReport:
    """Every check and the verdict: pass only when each check passes."""

    precision: str
    checks: tuple[Check, ...]
    verdict: Verdict
    culprit: Culprit | None


@dataclass(frozen=True)
class Training:
    """How the adapter was trained and merged; everything is empty for an adapter trained elsewhere."""

    method: str
    """`lora`, `qlora`, `dora` or `adalora`."""
    figures: dict[str, float]
    """Steps, tokens, parameters and the like."""
    layers_of_rank: dict[str, int]
    """Rank that AdaLoRA left → how many layers have it; empty for other methods."""
    merged_onto: str
    """`base` or `nf4`, whichever is closer to the unmerged QLoRA model; empty for other methods."""
    kl_merged_onto: dict[str, float]
    """Of both, mean KL from the unmerged model in nats per position; empty for other methods."""


@dataclass(frozen=True)
class Report:
    """report.json: everything a bundle was judged by."""

    schema_version: int
    name: str
    parity: ParityReport
    task: TaskReport
    latency: LatencyReport
    gate: GateReport
    lineage: dict[str, str]
    """Stage → digest of its outputs."""
    sizes: dict[str, int]
    """Artifact → bytes."""
    training: Training
    baseline: str
    """Name and bundle digest of the release it was also judged against; empty when there was none."""


def to_json(record: object) -> str:
    """The record as JSON: UTF-8, indented, keys in field order.

    Raises:
        DataError: a figure is NaN or infinite, which JSON cannot say and a gate cannot judge.
    """
    value = dataclasses.asdict(record)  # type: ignore[call-overload]  # any of the records above
    try:
        return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise DataError(f"a {type(record).__name__} holds a figure that is not finite: {error}") from error


def from_json(kind: type[Record], text: str) -> Record:
    """Read back what `to_json` wrote.

    Raises:
        DataError: the text is not JSON, or a field is unknown, missing or of another type.
    """
    try:
        record, problems = read_record(kind, parse_json(text))
    except ValueError as error:
        raise DataError(f"a {kind.__name__} is not valid JSON: {error}") from error
    if record is None:
        raise DataError(f"a {kind.__name__} is malformed: {'; '.join(problems)}")
    return record


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        DataError: the file is missing, of another schema version, or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = parse_json(text)
    except FileNotFoundError:
        raise DataError(f"no report at {path}; run validate or build first") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the report {path}: {error}") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path} has schema version {version}; this version reads {SCHEMA_VERSION} only")
    return from_json(Report, text)
