"""report.html: everything is in it, nothing gets out of it, and a browser draws it."""

import re
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import chromium
import pytest
import sample_report

from pipeline.config import Gate
from pipeline.evidence.report import checks
from pipeline.evidence.report.chain import chain
from pipeline.evidence.report.html import draw
from pipeline.evidence.report.words import NAMES, WORDS, reason
from pipeline.evidence.thresholds import Limits
from runtime.report import Check, Culprit, Estimate, Report, Training

SAMPLES: dict[str, Callable[[], Report]] = {
    "admitted": sample_report.admitted,
    "refused": sample_report.refused,
    "undecided": sample_report.undecided,
    "bare": sample_report.bare,
}


class Page(HTMLParser):
    """The text of each language's part, and every element with its attributes."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"en": [], "zh-Hans": []}
        self.language = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "main":
            self.language = dict(attributes)["lang"] or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "main":
            self.language = ""

    def handle_data(self, data: str) -> None:
        if self.language and data.strip():
            self.texts[self.language].append(data.strip())


@pytest.fixture(scope="module", params=SAMPLES)
def page(request: pytest.FixtureRequest) -> Page:
    return Page(draw(SAMPLES[request.param]()))


def test_it_is_well_formed_and_holds_both_languages(page: Page) -> None:
    assert page.open == []
    assert [attributes["lang"] for tag, attributes in page.elements if tag == "main"] == ["en", "zh-Hans"]
    assert len(page.texts["en"]) == len(page.texts["zh-Hans"]) > 50


def test_it_fetches_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "href", "srcset", "action", "style"} & set(attributes)
    policy = next(
        attributes["content"]
        for tag, attributes in page.elements
        if "http-equiv" in attributes and tag == "meta"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


def test_every_chart_says_what_it_shows(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    pictures = [index for index, tag in enumerate(tags) if tag == "svg"]
    assert pictures
    for index in pictures:
        assert page.elements[index][1]["role"] == "img"
        assert tags[index + 1 : index + 3] == ["title", "desc"]


def test_an_utterance_is_text_and_never_markup() -> None:
    html = draw(sample_report.refused())
    assert sample_report.SCRIPT not in html
    assert html.count("<script>") == 1
    escaped = "play &lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt; &amp; “friends”"
    assert html.count(escaped) == 2


def test_adalora_s_ranks_are_drawn_from_the_lowest() -> None:
    report = sample_report.admitted()
    ranks = replace(report.training, method="adalora", layers_of_rank={"14": 61, "0": 9, "24": 140})
    page = Page(draw(replace(report, training=ranks)))
    for language, word in {"en": "rank", "zh-Hans": "秩"}.items():
        texts, labels = page.texts[language], [f"{word} {rank}" for rank in (0, 14, 24)]
        assert [text for text in texts if text in labels] == labels
        assert [texts[texts.index(label) + 1] for label in labels] == ["9", "61", "140"]


def test_qlora_shows_both_merges_and_plain_lora_neither() -> None:
    report = sample_report.admitted()
    chosen = replace(
        report.training, method="qlora", merged_onto="nf4", kl_merged_onto={"base": 0.0213, "nf4": 3e-12}
    )
    texts = Page(draw(replace(report, training=chosen))).texts["en"]
    assert texts[texts.index("W0") + 1] == "0.0213"
    assert texts[texts.index("4-bit weights") + 1] == "3.0×10⁻¹²"
    assert "4-bit weights" not in Page(draw(report)).texts["en"]


def test_names_from_the_report_are_text_too() -> None:
    report = sample_report.admitted()
    evil = '"><img src=x onerror=alert(1)>'
    tainted = replace(
        report,
        name=evil,
        lineage={evil: evil},
        sizes={evil: 3},
        training=Training(evil, {evil: 1.0}, {"3": 1}, evil, {"base": 1.0}),
        parity=replace(
            report.parity,
            hops=tuple(
                replace(
                    hop,
                    step=replace(hop.step, name=evil, against=evil),
                    origin=replace(hop.origin, name=evil, against=evil),
                    weights=evil,
                    sites=tuple(replace(site, site=evil, operator=evil) for site in hop.sites),
                )
                for hop in report.parity.hops
            ),
        ),
        latency=replace(report.latency, machine=replace(report.latency.machine, processor=evil)),
        gate=replace(report.gate, culprit=Culprit(evil, evil, (), None, 0.0)),
        baseline=evil,
    )
    assert "<img" not in draw(tainted)


def test_parts_of_a_call_are_told_by_language_and_sum_to_it() -> None:
    page = Page(draw(sample_report.admitted()))
    for language, spoken, shares in (
        ("en", "English", ["22.3\u00a0%", "69.4\u00a0%", "7.0\u00a0%", "1.2\u00a0%"]),
        ("zh-Hans", "中文", ["9.5\u00a0%", "83.3\u00a0%", "6.2\u00a0%", "1.0\u00a0%"]),
    ):
        texts = page.texts[language]
        row = texts[len(texts) - texts[::-1].index(spoken) - 1 :][:14]
        assert row[-7::2] == shares
    assert "Where the time of a call goes" in page.texts["en"]
    assert "一次调用的时间用在何处" in page.texts["zh-Hans"]
    bare = Page(draw(sample_report.bare())).texts["en"]
    assert "Where the time of a call goes" not in bare


@pytest.mark.parametrize(
    ("name", "word"), [("admitted", "Admitted"), ("refused", "Refused"), ("undecided", "Refused")]
)
def test_the_verdict_is_the_headline(name: str, word: str) -> None:
    assert re.search(rf"<h1>{word}</h1>", draw(SAMPLES[name]()))


def test_what_did_not_pass_is_said_in_sentences() -> None:
    texts = Page(draw(sample_report.refused())).texts["en"]
    assert "Mean KL from the unmerged model: 0.430 (0.370 – 0.494); at most 0.01 is allowed." in texts
    assert (
        "Breaks at “ONNX float32”: layer 3, attention.qkv (MatMul): error 0.310, 1.0×10⁻⁶ just before."
        in texts
    )
    assert "12 of 27 checks failed, and 1 could not be decided." in texts
    assert "and 8 more, in the table below" in texts
    undecided = Page(draw(sample_report.undecided())).texts["en"]
    assert "Time to first token over unmerged, 256 tokens: not measured." in undecided
    assert "The first step in doubt is “as shipped”, measured against “weights only”." in undecided


def test_the_way_goes_red_at_the_culprit_of_the_gate() -> None:
    steps = chain(sample_report.refused(), "en").steps
    assert [step.hop.step.name for step in steps] == ["merged", "onnx", "weights_only", "shipped", "bundle"]
    assert [step.verdict for step in steps] == ["pass", "fail", "pass", "pass", "pass"]
    assert [step.kind for step in steps] == ["verdict", "guilty", "after", "after", "after"]
    assert [step.site for step in steps if step.site] == ["layer 3, attention.qkv (MatMul)"]
    doubted = chain(sample_report.undecided(), "en").steps
    assert [step.kind for step in doubted] == ["verdict", "verdict", "verdict", "guilty", "verdict"]
    assert doubted[3].verdict == "inconclusive"
    assert {step.kind for step in chain(sample_report.admitted(), "en").steps} == {"verdict"}


def test_a_step_that_the_gate_does_not_judge_is_undecided() -> None:
    report = sample_report.admitted()
    unjudged = replace(report, gate=replace(report.gate, checks=()))
    assert {step.verdict for step in chain(unjudged, "en").steps} == {"inconclusive"}


def test_the_operator_that_broke_is_pointed_at_in_the_chart() -> None:
    refused = chain(sample_report.refused(), "en").charts[0].drawing
    assert refused.count("<polyline") == 4
    assert '<circle class="ring"' in refused
    assert ">layer 3, attention.qkv (MatMul)</text>" in refused
    assert "ring" not in chain(sample_report.admitted(), "en").charts[0].drawing


def test_layers_are_listed_with_the_largest_error_of_each_form() -> None:
    found = chain(sample_report.refused(), "en")
    assert found.traced == ("merged", "onnx", "weights_only", "shipped")
    assert [layer.label for layer in found.layers] == [
        "embedding", *map(str, range(30)), "hidden_states", "logits",
    ]  # fmt: skip
    assert found.layers[4].errors[1] == 0.31


def test_a_baseline_is_named() -> None:
    report = sample_report.admitted()
    assert f"Also judged against the release {report.baseline}." in draw(report)
    assert "Also judged" not in draw(sample_report.released())


@pytest.mark.parametrize("sample", SAMPLES.values())
def test_the_english_reasons_are_those_of_the_gate(sample: Callable[[], Report]) -> None:
    gate = sample().gate
    assert [line.reason for line in checks.lines(gate, "en")] == [check.reason for check in gate.checks]


def test_every_reason_of_the_gate_is_said_in_chinese() -> None:
    limits = Limits({"max_mean_kl": 1.0})
    figures = (0.5, 2.0, None, Estimate(0.9, 0.5, 1.5, 40), Estimate(1.0, 0.5, 1.5, 40), Estimate(0, 0, 0, 2))
    said = {limits.at_most("max_mean_kl", "", figure).reason for figure in figures}
    said |= {sample().gate.checks[0].reason for sample in SAMPLES.values()}
    assert len(said) == 9
    for text in said:
        chinese = reason("zh", text)
        assert not re.search("[a-z]{3}", chinese.partition("首条：")[0]), chinese
        assert set(re.findall("[0-9]+", text)) == set(re.findall("[0-9]+", chinese))


def test_every_threshold_of_the_config_has_a_label_in_both_languages() -> None:
    labelled = {key.removeprefix("check.") for key in WORDS if key.startswith("check.")}
    assert labelled == {"rendering", "switching", *Gate.model_fields}
    assert len(labelled) == 26


def test_the_admitted_sample_is_judged_by_every_threshold() -> None:
    judged = {check.name for check in sample_report.admitted().gate.checks}
    assert judged == {"rendering", *Gate.model_fields}


def test_checks_of_one_threshold_are_told_apart() -> None:
    labels = [line.label for line in checks.lines(sample_report.admitted().gate, "en")]
    assert len(set(labels)) == len(labels)
    ours = {
        "Cache, token by token",
        "Cache with float activations, rewound and refilled",
        "Step to ONNX float32: largest logit error, relative",
        "Time per token over the baseline’s, 64 tokens",
        "Time per token over unmerged, 256 tokens",
    }
    assert ours <= set(labels)


def test_a_check_that_has_no_words_yet_is_shown_in_its_own() -> None:
    report = sample_report.admitted()
    new = Check(
        "max_heat",
        "",
        "heat of the <chip>",
        3.0,
        2.0,
        6.0,
        5.0,
        "at most",
        "inconclusive",
        "too warm to tell",
    )
    html = draw(replace(report, gate=replace(report.gate, checks=(*report.gate.checks, new))))
    assert html.count("heat of the &lt;chip&gt;") == 4
    assert html.count("too warm to tell") == 4


@pytest.mark.parametrize("words", [WORDS, NAMES])
def test_every_text_has_both_languages_and_the_same_placeholders(words: dict[str, tuple[str, str]]) -> None:
    for key, (english, chinese) in words.items():
        assert english, key
        assert chinese, key
        assert placeholders(english) == placeholders(chinese), key


def placeholders(text: str) -> set[str]:
    names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    return {name or str(index) for index, name in enumerate(names)}


def test_chinese_texts_are_chinese() -> None:
    for key, (english, chinese) in WORDS.items():
        if re.search("[A-Za-z]{3}", english):
            assert re.search("[\u4e00-\u9fff]", chinese), key
        words = set(re.findall(r"[A-Za-z]{2,}", chinese))
        assert words <= {"KL", "logit", "McNemar", "ONNX", "AdaLoRA", "QLoRA", "BA", "Python"}, (key, words)


def test_no_english_label_is_left_in_the_chinese_part(page: Page) -> None:
    english = {text for text, _ in (*WORDS.values(), *NAMES.values()) if re.search("[a-z]{3}", text)}
    same = {text for text, chinese in (*WORDS.values(), *NAMES.values()) if text == chinese}
    assert not (english - same) & set(page.texts["zh-Hans"])


def test_changed_answers_are_listed_on_both_sides() -> None:
    texts = Page(draw(sample_report.refused())).texts["en"]
    assert "Right before, wrong in the bundle: 16" in texts
    assert "Wrong before, right in the bundle: 1" in texts
    assert all(f"{16 + step} degrees for me" in texts for step in range(12))
    assert (
        "Without a grammar, 21.2\u00a0% (12.2 – 30.2\u00a0%) of 80 greedy answers are the unmerged model’s,"
        " token for token." in " ".join(texts)
    )
    assert "No answer changed from right to wrong or back." in Page(draw(sample_report.bare())).texts["en"]


CHARTS = {"admitted": 13, "refused": 13, "undecided": 13, "bare": 5}
"""The fewest charts a page shows beside its table of checks."""

PROBE = """
const main = [...document.querySelectorAll("main")].filter(one => one.getClientRects().length);
const drawn = [...main[0].querySelectorAll("svg")].filter(one => !one.closest("details"));
const empty = drawn.filter(one => one.getBoundingClientRect().width < 40 || one.getBBox().width < 10
  || one.getBoundingClientRect().height < 8 || !one.querySelector("rect, line, circle"));
return {
  languages: main.map(one => one.lang), empty: empty.length,
  charts: drawn.filter(one => !one.closest(".gates")).length,
  page: document.documentElement.scrollWidth, window: innerWidth, title: document.title,
  said: document.documentElement.lang,
  background: getComputedStyle(document.body).backgroundColor,
};
"""


@pytest.fixture(scope="module", params=[("en-US", 390, False), ("zh-CN", 390, True), ("en-US", 1280, True)])
def browser(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[chromium.Chromium, str]]:
    """A window, and the language its reader prefers."""
    if reason := chromium.missing():
        pytest.skip(f"no browser to look with: {reason}")
    language, width, dark = request.param
    with chromium.Chromium(tmp_path_factory.mktemp("profile"), width, 844, language, dark) as window:
        yield window, "zh-Hans" if language == "zh-CN" else "en"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_browser_draws_every_chart_without_complaint_or_overflow(
    browser: tuple[chromium.Chromium, str], name: str, tmp_path: Path
) -> None:
    window, preferred = browser
    page = tmp_path / "report.html"
    page.write_text(draw(SAMPLES[name]()), encoding="utf-8")
    window.open(page)
    first = window.run(PROBE)
    window.run("document.querySelector('input[name=language]:not(:checked)').click()")
    second = window.run(PROBE)
    assert first["languages"] == [preferred]
    assert sorted(first["languages"] + second["languages"]) == ["en", "zh-Hans"]
    for seen in (first, second):
        assert seen["languages"] == [seen["said"]]
        assert seen["charts"] >= CHARTS[name]
        assert seen["empty"] == 0
        assert seen["page"] <= seen["window"]
        assert "owned" not in seen["title"]
    window.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert window.run(PROBE)["page"] <= first["window"]
    assert window.console() == []


def test_light_and_dark_have_their_own_colours(
    browser: tuple[chromium.Chromium, str], tmp_path: Path
) -> None:
    window, _ = browser
    page = tmp_path / "report.html"
    page.write_text(draw(sample_report.admitted()), encoding="utf-8")
    window.open(page)
    seen = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        window.command("Emulation.setEmulatedMedia", {"features": features})
        seen.append(window.run(PROBE)["background"])
    assert seen == ["rgb(251, 250, 247)", "rgb(21, 21, 22)"]


def test_without_script_the_page_is_english_and_the_switch_still_works(
    browser: tuple[chromium.Chromium, str], tmp_path: Path
) -> None:
    window, _ = browser
    page = tmp_path / "report.html"
    page.write_text(
        re.sub("<script>.*</script>", "", draw(sample_report.admitted()), flags=re.S), encoding="utf-8"
    )
    window.open(page)
    assert window.run(PROBE)["languages"] == ["en"]
    window.run("document.querySelector('label[for=zh]').click()")
    assert window.run(PROBE)["languages"] == ["zh-Hans"]
