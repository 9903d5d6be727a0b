"""How the adapter came about, where a method has more to say than figures."""

from __future__ import annotations

from pipeline.evidence.report import charts
from pipeline.evidence.report.charts import Bar, Chart
from pipeline.evidence.report.figures import number
from pipeline.evidence.report.words import Language, say
from runtime.report import Report


def training(report: Report, language: Language) -> list[Chart]:
    """AdaLoRA's ranks, and what a QLoRA adapter was merged onto; nothing for other methods."""
    trained = report.training
    drawn = []
    if trained.layers_of_rank:
        ranks = sorted(trained.layers_of_rank.items(), key=lambda found: int(found[0]))
        rows = [
            Bar("unmerged", say(language, "rank", rank), float(layers), str(layers)) for rank, layers in ranks
        ]
        drawn.append(_chart(language, "chart.ranks", rows))
    if trained.kl_merged_onto:
        rows = [
            Bar(
                "merged" if onto == trained.merged_onto else "",
                say(language, f"onto.{onto}"),
                far,
                number(far),
            )
            for onto, far in trained.kl_merged_onto.items()
        ]
        drawn.append(_chart(language, "chart.onto", rows))
    return drawn


def _chart(language: Language, key: str, rows: list[Bar]) -> Chart:
    title, note = say(language, key), say(language, f"{key}.note")
    return Chart(title, note, charts.bars(rows, title))
