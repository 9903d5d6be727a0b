"""The config: defaults in one place, unknown keys refused with the nearest name, every shipped file valid."""

from pathlib import Path

import pytest

from pipeline.config import SEVEN_PROJECTIONS, Config, Export, Objective
from pipeline.config_file import load_config
from runtime.errors import ConfigError

TASKS = """
[[task]]
name = "cabin"
functions = ["climate_*", "window_*"]
[task.train]
r = 8
[task.gate]
min_exact_call = 0.5
[[task]]
name = "navigation"
[task.data]
train = "navigation/train.jsonl"
test = "navigation/test.jsonl"
"""

CONFIGS = Path(__file__).parent.parent / "configs"

MINIMAL = """
name = "small"
[base]
source = "path"
path = "base"
[data]
tools = "tools.json"
"""


def written(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_config_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCKPIT_DATA_DIR", "/data")
    paths = sorted(CONFIGS.rglob("*.toml"))
    assert len(paths) >= 5
    assert len({load_config(path).name for path in paths}) == len(paths)


def test_the_default_config_carries_the_guides_recommendations() -> None:
    train = load_config(CONFIGS / "smollm2-135m.toml").train
    assert (train.r, train.alpha) == (16, 32.0)
    assert train.target_modules == SEVEN_PROJECTIONS


def test_paths_are_taken_from_the_configs_folder(tmp_path: Path) -> None:
    config = load_config(written(tmp_path))
    assert config.base.path == tmp_path / "base"
    assert config.data.tools == tmp_path / "tools.json"


def test_a_path_may_begin_with_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAR_DATA", str(tmp_path / "car"))
    monkeypatch.setenv("WHERE", "models")
    config = load_config(written(tmp_path), ("data.tools=$CAR_DATA/tools.json", "base.path=${WHERE}/base"))
    assert config.data.tools == tmp_path / "car" / "tools.json"
    assert config.base.path == tmp_path / "models" / "base"


def test_overrides_are_toml_or_bare_strings(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path), ("train.r=32", "export.precision=int4", 'train.target_modules=["q_proj"]')
    )
    assert (config.train.r, config.export.precision, config.train.target_modules) == (32, "int4", ("q_proj",))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            MINIMAL,
            ("train.learning_rat=1",),
            'unknown key "train.learning_rat"; did you mean "learning_rate"',
        ),
        (MINIMAL, ("trian.r=1",), 'unknown key "trian"; did you mean "train"'),
        (MINIMAL, ("validate.zzz=1",), 'unknown key "validate.zzz"; known: conversations'),
        (MINIMAL, ("gate.max_kl_mean=1",), 'unknown key "gate.max_kl_mean"; did you mean "max_mean_kl"'),
        (MINIMAL, ("train.r=0",), '"train.r": Input should be greater than or equal to 1'),
        (MINIMAL, ("train.alpha=-1",), '"train.alpha"'),
        (MINIMAL, ("train.learning_rate=nan",), '"train.learning_rate"'),
        (MINIMAL, ("train.method=lroa",), "'lora', 'qlora', 'dora' or 'adalora'"),
        (MINIMAL, ("train.rank_pattern.q_proj=0",), '"train.rank_pattern.q_proj"'),
        (MINIMAL, ("train.alpha_pattern.q_proj=-1.0",), '"train.alpha_pattern.q_proj"'),
        (MINIMAL, ("train.dropout=1.0",), '"train.dropout"'),
        (MINIMAL, ("train.target_modules=",), "target_modules names no layer: name some"),
        (MINIMAL, ("train.target_modules=[]",), "target_modules names no layer: name some"),
        (MINIMAL, ("train.target_modules='(q_proj'",), '"(q_proj" is no regular expression: missing )'),
        (
            MINIMAL,
            ("train.patience=2",),
            "patience counts measurements of the validation loss: it needs",
        ),
        (
            MINIMAL,
            ("train.adalora_tinit=0.2",),
            'adalora_tinit belongs to method = "adalora", not method',
        ),
        (
            MINIMAL,
            ('train.modules_to_save=["lm_head"]', "train.dtype=bfloat16"),
            'modules_to_save trains weights themselves, and dtype = "bfloat16" would round most of a',
        ),
        (
            MINIMAL,
            ("train.method=adalora", "train.adalora_init_r=16"),
            "adalora_init_r = 16 must be more than r = 16, to which ranks fall",
        ),
        (
            MINIMAL,
            ("train.method=adalora", "train.adalora_tinit=0.5", "train.adalora_tfinal=0.5"),
            "adalora_tinit and adalora_tfinal leave no steps in which ranks fall: together they may be 0.99",
        ),
        (MINIMAL, ("gate.max_mean_kl=-1",), '"gate.max_mean_kl"'),
        (MINIMAL, ("export.precision=int3",), "'fp32', 'fp16', 'int8' or 'int4'"),
        (
            MINIMAL,
            ("export.precision=int4", "export.objective.minimize=bytes"),
            'minimize = "bytes" takes budget_kl, and no budget_bytes',
        ),
        (
            MINIMAL,
            ("export.precision=int4", "export.objective.budget_kl=0.01"),
            'budget_kl belongs to minimize = "bytes"',
        ),
        (
            MINIMAL,
            ("export.precision=fp16", "export.objective.budget_bytes=1000"),
            'objective is of precision = "int8" or "int4" with calibration_conversations',
        ),
        (
            MINIMAL,
            (
                "export.precision=int8",
                "export.calibration_conversations=0",
                "export.objective.budget_bytes=1000",
            ),
            'objective is of precision = "int8" or "int4" with calibration_conversations',
        ),
        (
            MINIMAL,
            (
                "export.precision=int4",
                "export.calibration_conversations=0",
                "export.objective.budget_bytes=1000",
            ),
            'objective is of precision = "int8" or "int4" with calibration_conversations',
        ),
        (
            MINIMAL,
            ("export.precision=fp16", "export.kv_cache=int8"),
            'kv_cache = "int8" rounds, and precision = "fp16" is held to floats',
        ),
        (
            MINIMAL,
            ("export.kv_cache=int8", "export.calibration_conversations=0"),
            'kv_cache = "int8" has its scales from conversations',
        ),
        (MINIMAL, ("train.r",), "--set takes key=value"),
        (MINIMAL, ("name.x=1",), '"name" is a value, not a table'),
        (MINIMAL, ('name="../up"',), '"name"'),
        (MINIMAL.replace('path = "base"', ""), (), 'source = "path" needs "path"'),
        (MINIMAL, ("base.id=x/y",), '"id" belongs to source = "hub"'),
        (MINIMAL, ("data.train=a.jsonl",), "train and test come together"),
        (MINIMAL, ("data.validation=a.jsonl",), "train and test come together"),
        (MINIMAL, ("data.tools=$NOT_SET/a.json",), '"data.tools" is $NOT_SET/a.json, but NOT_SET is not set'),
        (MINIMAL, ("base.path=${NOT_SET}/a",), '"base.path" is ${NOT_SET}/a, but NOT_SET is not set'),
        (MINIMAL.replace("[data]", "[data"), (), "not valid TOML"),
        ('name = "small"', (), '"base" is missing; "data" is missing'),
    ],
)
def test_a_wrong_config_is_one_clear_sentence(
    tmp_path: Path, text: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text), overrides)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_values_out_of_range_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path), ("train.r=0", "train.alpha=-2.0", "train.dropout=1.5"))
    for key in ("train.r", "train.alpha", "train.dropout"):
        assert f'"{key}": Input should be' in str(caught.value)


def test_keys_that_adalora_would_pass_over_are_all_named(tmp_path: Path) -> None:
    overrides = ("method=adalora", "rslora=true", "rank_pattern.q_proj=4", "alpha_pattern.q_proj=4.0")
    more = ("eval_steps=2", "patience=2")
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path), tuple(f"train.{override}" for override in (*overrides, *more)))
    said = str(caught.value)
    for clause in (
        'rslora has no effect with method = "adalora"',
        'rank_pattern has no effect with method = "adalora"',
        'alpha_pattern has no effect with method = "adalora"',
        'patience could stop method = "adalora" before its ranks have fallen to r',
    ):
        assert clause in said


@pytest.mark.parametrize("method", ["lora", "qlora", "dora"])
def test_rslora_and_loraplus_go_with_every_other_method(tmp_path: Path, method: str) -> None:
    overrides = (f"train.method={method}", "train.rslora=true", "train.loraplus_ratio=4.0")
    assert load_config(written(tmp_path), overrides).train.method == method


def test_adalora_starts_at_one_and_a_half_times_the_rank_unless_told(tmp_path: Path) -> None:
    def initial(*overrides: str) -> int:
        return load_config(written(tmp_path), ("train.method=adalora", *overrides)).train.initial_rank

    assert (initial(), initial("train.r=5"), initial("train.adalora_init_r=40")) == (24, 8, 40)


def test_a_missing_config_says_where_to_find_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file at .*configs/"):
        load_config(tmp_path / "absent.toml")


def of_tasks(folder: Path, *overrides: str, tasks: str = TASKS) -> Config:
    return load_config(written(folder, MINIMAL + "[train]\nlearning_rate = 1e-3\n" + tasks), overrides)


def test_a_task_is_the_config_with_its_own_keys(tmp_path: Path) -> None:
    config = of_tasks(tmp_path, "data.train=all.jsonl", "data.test=t.jsonl", "data.validation=v.jsonl")
    cabin, navigation = (config.of_task(task) for task in config.tasks)
    assert (cabin.name, navigation.name) == ("small-cabin", "small-navigation")
    assert (cabin.train.r, navigation.train.r) == (8, 16)
    assert cabin.train.learning_rate == navigation.train.learning_rate == 1e-3
    assert (cabin.gate.min_exact_call, navigation.gate.min_exact_call) == (0.5, None)
    assert (cabin.data.functions, navigation.data.functions) == (("climate_*", "window_*"), ())
    assert (cabin.data.train, cabin.data.validation) == (tmp_path / "all.jsonl", tmp_path / "v.jsonl")
    # The shared validation file belongs to the shared training file.
    assert navigation.data.train == tmp_path / "navigation" / "train.jsonl"
    assert navigation.data.validation is None
    assert cabin.data.tools == navigation.data.tools == tmp_path / "tools.json"
    assert cabin.base == navigation.base == config.base
    assert not cabin.tasks


def test_several_tasks_are_switchable_unless_told(tmp_path: Path) -> None:
    assert of_tasks(tmp_path).switchable
    assert not of_tasks(tmp_path, "mode=merged").switchable
    assert not load_config(written(tmp_path)).switchable


@pytest.mark.parametrize("method", ["dora", "qlora"])
def test_what_cannot_stay_unmerged_can_be_merged(tmp_path: Path, method: str) -> None:
    config = of_tasks(tmp_path, "mode=merged", f"train.method={method}")
    assert [config.of_task(task).train.method for task in config.tasks] == [method, method]


@pytest.mark.parametrize(
    ("tasks", "overrides", "message"),
    [
        ("", ("mode=merged",), "mode is of several tasks, and there is no [[task]]"),
        ("", ("export.most_rank=8",), "export.most_rank is of a switchable graph"),
        (TASKS, ("mode=merged", "export.most_rank=8"), "export.most_rank is of a switchable graph"),
        (TASKS, ("mode=both",), "'switchable' or 'merged'"),
        (TASKS + TASKS, (), 'two tasks are named "cabin"; give each a name of its own; two tasks are named'),
        (TASKS + '[[task]]\nname = "idle"', (), 'the task "idle" has no records: name its functions'),
        (TASKS.replace("[task.gate]", "[task.gates]"), (), '"task.0.gates"; did you mean "gate"'),
        (TASKS.replace("r = 8", "rr = 8"), (), 'task "cabin", [task.train]: unknown key "rr"'),
        (TASKS.replace("r = 8", "r = 0"), (), 'task "cabin", [task.train]: "r": Input should be'),
        (TASKS.replace("min_exact_call", "min_exact"), (), 'task "cabin", [task.gate]: unknown key'),
        (TASKS.replace('test = "n', 'validation = "n'), (), "train and test come together"),
        (TASKS, ("train.method=dora",), 'task "navigation": method = "dora" scales whole products'),
        (TASKS, ("train.method=qlora",), 'task "cabin": method = "qlora" trains beside weights in 4 bits'),
        (TASKS, ('train.modules_to_save=["model.norm"]',), "modules_to_save takes the place of the base's"),
        (TASKS, ('train.target_modules=["lm_head"]',), 'beside "lm_head" no adapter fits'),
        (TASKS, ("train.r=64",), 'task "navigation": its ranks go up to 64, and export.most_rank is 32'),
        (TASKS, ("train.rank_pattern.q_proj=40",), "its ranks go up to 40"),
        (TASKS, ("train.method=adalora", "export.most_rank=16"), "its ranks go up to 24"),
        (TASKS, ("export.exporter=optimum", "export.precision=fp32"), "writes no switchable graph"),
        (TASKS.replace('"navigation/train', '"$NOT_SET/train'), (), '"navigation.data.train" is $NOT_SET'),
    ],
)
def test_wrong_tasks_are_one_clear_sentence(
    tmp_path: Path, tasks: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        of_tasks(tmp_path, *overrides, tasks=tasks)
    assert message in str(caught.value)


def test_the_problems_of_all_tasks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        of_tasks(tmp_path, "train.method=dora", "train.r=64")
    said = str(caught.value)
    assert said.count('method = "dora"') == 2
    assert said.count("its ranks go up to 64") == 1


def test_int8_rounds_as_a_whole_or_as_an_objective_asks() -> None:
    objective = Objective(budget_bytes=143_000_000)
    fast, close = Export(precision="int8"), Export(precision="int8", objective=objective)
    assert (fast.calibrated, fast.rounded, fast.conversations) == (True, False, 32)
    assert (close.calibrated, close.rounded, close.conversations) == (False, True, 256)
    cached = Export(precision="int8", objective=objective, kv_cache="int8")
    assert (cached.calibrated, cached.rounded) == (True, True)
    assert Export(precision="int4").rounded
    assert not Export(precision="int4", calibration_conversations=0).rounded
