"""Times of every kind that publishers write, against Python's own datetime."""

import datetime
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.errors import DataError, SettingError
from recbole_llm.prepare import prepare
from recbole_llm.prepare.raw import RawFile, Tally
from recbole_llm.prepare.times import as_numbers, from_texts

UTC = datetime.UTC


def table_settings(settings_file, **changes):
    sources = {"interactions": {"file": changes.pop("file", "x.csv")}}
    return settings_file(format="table", sources=sources, item_fields=[], filters=[], **changes)


def times_of(settings, tmp_path):
    done = prepare(settings, raw=tmp_path / "raw", out=tmp_path / "out")
    lines = (done.folder / "toy.inter").read_text().splitlines()[1:]
    return [line.split("\t")[2] for line in lines], json.loads((done.folder / "manifest.json").read_text())


def write_csv(tmp_path, times, name="x.csv"):
    (tmp_path / "raw").mkdir()
    lines = ["user,item,timestamp", *(f"u,i{n},{time}" for n, time in enumerate(times))]
    (tmp_path / "raw" / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("texts", "right", "found"),
    [
        (["2014-01-02", "2014-12-31"], [1388620800, 1419984000], "%Y-%m-%d"),
        (["27-04-2015", "05-06-2015"], [1430092800, 1433462400], "%d-%m-%Y"),
        (["04/27/2015", "05/06/2015"], [1430092800, 1430870400], "%m/%d/%Y"),
        (["2015-04-27 10:00:00", "2015-04-27 10:00:20"], [1430128800, 1430128820], "%Y-%m-%d %H:%M:%S%.f"),
        (["2015-04-27T10:00:00+02:00", "2015-04-27T10:00:00Z"], [1430121600, 1430128800], "%Y-%m-%dT%H:%M:%S%.f%#z"),
        (["2015-04-27 10:00:00.25", "2015-04-27 10:00:01"], [1430128800.25, 1430128801.0], "%Y-%m-%d %H:%M:%S%.f"),
    ],
)
def test_dates_become_seconds(settings_file, tmp_path, texts, right, found):
    write_csv(tmp_path, texts)
    times, manifest = times_of(table_settings(settings_file), tmp_path)
    assert [float(time) for time in times] == right
    assert manifest["time_format"] == found


def test_numbers_are_left_as_they_are(settings_file, tmp_path):
    write_csv(tmp_path, [1430128800000, 1430128800001])
    times, manifest = times_of(table_settings(settings_file), tmp_path)
    assert times == ["1430128800000", "1430128800001"]
    assert "time_format" not in manifest


def test_a_day_that_may_be_a_month_asks_for_the_format(settings_file, tmp_path):
    write_csv(tmp_path, ["05-06-2015", "01-02-2015"])
    with pytest.raises(DataError, match=r"'05-06-2015' may be read as %d-%m-%Y and as %m-%d-%Y.*'time_format'"):
        prepare(table_settings(settings_file), raw=tmp_path / "raw", out=tmp_path / "out")
    times, _ = times_of(table_settings(settings_file, time_format="%m-%d-%Y"), tmp_path)
    assert [datetime.datetime.fromtimestamp(int(time), UTC).strftime("%m-%d") for time in times] == ["01-02", "05-06"]


def test_a_day_and_a_month_that_are_equal_need_no_format(settings_file, tmp_path):
    write_csv(tmp_path, ["05-05-2015", "01-01-2015"])
    assert times_of(table_settings(settings_file), tmp_path)[0] == ["1420070400", "1430784000"]


@pytest.mark.parametrize(
    ("times", "settings", "message"),
    [
        (["2014-01-02", "never"], {}, "'never' of user u and item i1 is neither a number nor a date"),
        (["1", "2", "soon"], {}, "'soon' of user u and item i2 is not a number"),
        (
            ["2014-01-02"],
            {"time_format": "%d.%m.%Y"},
            "'2014-01-02' of .* does not have the time_format",
        ),
    ],
)
def test_a_time_that_cannot_be_read_is_named(settings_file, tmp_path, times, settings, message):
    write_csv(tmp_path, times)
    with pytest.raises(DataError, match=message):
        prepare(table_settings(settings_file, **settings), raw=tmp_path / "raw", out=tmp_path / "out")


def test_a_time_format_that_is_none(settings_file, tmp_path):
    with pytest.raises(SettingError, match="time_format=yyyy must be written in the letters of strftime"):
        prepare(table_settings(settings_file, time_format="yyyy"), raw=tmp_path, out=tmp_path / "out")


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet_times(settings_file, tmp_path, unit):
    (tmp_path / "raw").mkdir()
    when = [datetime.datetime(2015, 4, 27, 10, 0, second) for second in (20, 0)]
    column = pl.Series(when).cast(pl.Datetime(unit))
    pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": column}).write_parquet(
        tmp_path / "raw/x.parquet"
    )
    assert times_of(table_settings(settings_file, file="x.parquet"), tmp_path)[0] == ["1430128800", "1430128820"]


def test_parquet_dates(settings_file, tmp_path):
    (tmp_path / "raw").mkdir()
    days = [datetime.date(2015, 4, 28), datetime.date(2015, 4, 27)]
    pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": days}).write_parquet(tmp_path / "raw/x.parquet")
    assert times_of(table_settings(settings_file, file="x.parquet"), tmp_path)[0] == ["1430092800", "1430179200"]


@given(st.lists(st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2100, 1, 1)), min_size=1, max_size=5))
def test_iso_times_are_pythons(moments):
    part = pl.DataFrame({"user": ["u"], "(item)": ["i"]}).join(
        pl.DataFrame({"time": [moment.isoformat(sep=" ", timespec="seconds") for moment in moments]}), how="cross"
    )
    assert as_numbers(part, RawFile(None)).dtype == pl.String
    right = [int(moment.replace(microsecond=0, tzinfo=UTC).timestamp()) for moment in moments]
    assert from_texts(part, None, RawFile(None), Tally()).to_list() == right
