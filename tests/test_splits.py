import pytest

from pipeline.data.records import Record
from pipeline.data.splits import Leakage, assign, check_leakage, hold_out, leakage, masked
from runtime.calls import Call
from runtime.errors import DataError


def _record(
    utterance: str, family: str | None = None, template: str | None = None, **arguments: str
) -> Record:
    return Record("x", utterance, (Call("f", dict(arguments)),), "en", family, template)


@pytest.mark.parametrize("families", [3, 4, 5, 8, 12, 50])
def test_every_split_gets_families_and_most_are_for_training(families: int) -> None:
    for seed in range(20):
        splits = assign(families, seed, "en/f")
        assert len(splits) == families
        assert splits.count("validation") == max(1, round(families / 10))
        assert splits.count("test") == max(1, round(families / 5))
        assert splits == assign(families, seed, "en/f")


def test_the_seed_and_the_group_decide() -> None:
    assert len({assign(10, seed, "en/f") for seed in range(20)}) > 10
    assert len({assign(10, 0, group) for group in "abcdefghijklmnopqrst"}) > 10


def test_two_families_are_too_few() -> None:
    with pytest.raises(ValueError, match="en/f has 2"):
        assign(2, 0, "en/f")


def test_disjoint_sets_share_nothing() -> None:
    train = [_record("play Yellow", "en/f/0", "play {song}", title="Yellow")]
    test = [_record("put on Yellow", "en/f/1", "put on {song}", title="Yellow")]
    assert check_leakage(train, test, "test") == Leakage(0, 0, 0.0)


def test_each_kind_of_leak_is_measured_and_refused() -> None:
    train = [_record("play Yellow", "en/f/0", "play {song}")]
    leaks = {
        "utterance": ([_record("Play  yellow.", "en/f/1", "other")], Leakage(1, 0, 0.0)),
        "family": ([_record("x", "en/f/0+en/g/1", "other"), _record("y")], Leakage(0, 1, 0.0)),
        "template": ([_record("x", "en/f/1", "play {song}"), _record("y")], Leakage(0, 0, 0.5)),
    }
    for held_out, figures in leaks.values():
        assert leakage(train, held_out) == figures
        with pytest.raises(DataError, match="shares"):
            check_leakage(train, held_out, "test")


def test_collected_data_is_masked_by_its_argument_values() -> None:
    assert masked(_record("Call Anna at 7.30", contact="anna")) == masked(
        _record("call Bob at 9!", contact="Bob")
    )
    assert masked(_record("go to Oak Street", place="Oak Street", kind="Street")) == "go to {place}"


def test_what_is_held_out_has_forms_of_its_own() -> None:
    forms = ["open {x}", "shut {x}", "turn {x} up", "what is {x}", "never mind {x}"]
    records = [_record(form.format(x=value), x=value) for value in "abcd" for form in forms]
    left, held = hold_out(records, 9, seed=1)
    assert len(held) == 8
    assert len(left) == 12
    assert sorted(map(id, left + held)) == sorted(map(id, records))
    assert leakage(left, held) == Leakage(0, 0, 0.0)
    assert hold_out(records, 9, seed=1) == (left, held)
    assert len({str(hold_out(records, 9, seed)[1]) for seed in range(9)}) > 1


def test_records_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 validation records cannot be held out of 3; lower"):
        hold_out([_record(text) for text in "abc"], 2, seed=0)
    with pytest.raises(DataError, match="no sentence form of the 9 training records is rare enough"):
        hold_out([_record(f"open {value}x", x=f"{value}x") for value in "abcdefghi"], 4, seed=0)
