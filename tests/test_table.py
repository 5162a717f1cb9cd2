"""A hospital's own file: what is read, and that all that does not fit is said at once, with where and how to fix."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl.errors import ConfigError
from gossipfl.tasks import load
from gossipfl.tasks.schema import Feature, Schema
from gossipfl.tasks.split import split
from gossipfl.tasks.table import TableTask, _scale_hint

SCHEMA: dict[str, Any] = {
    "features": [
        {"name": "age", "unit": "years", "range": [0, 120]},
        {"name": "glucose", "unit": "mmol/L", "range": [1, 50]},
        {"name": "sex", "type": "category", "categories": ["male", "female"]},
        {"name": "smoking", "type": "category", "categories": ["never", "former", "current"]},
        {"name": "diabetes", "type": "boolean"},
    ],
    "label": {"name": "dead", "type": "boolean"},
    "model": "logistic",
}
TASK = TableTask(SCHEMA)


def rows(n: int = 30) -> list[dict[str, str]]:
    smoking = ["never", "former", "current"]
    return [
        {
            "age": str(40 + k),
            "glucose": f"{4 + k / 10:.1f}",
            "sex": ["male", "female"][k % 2],
            "smoking": smoking[k % 3],
            "diabetes": str(k // 2 % 2),
            "dead": str(int(k % 4 == 0)),
        }
        for k in range(n)
    ]


def write(folder: Path, table: list[dict[str, str]], delimiter: str = ",", newline: str = "\n") -> dict[str, Any]:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(table[0]), delimiter=delimiter, lineterminator=newline)
        writer.writeheader()
        writer.writerows(table)
    return {"file": str(path)}


def faults(source: dict[str, Any], task: TableTask = TASK) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        task.data(source)
    return [str(fault) for fault in caught.value.faults]


def test_a_file_that_fits_is_encoded_as_the_schema_says(tmp_path: Path) -> None:
    data = TASK.data(write(tmp_path, rows()))
    names = ("age", "glucose", "sex=female", "smoking=never", "smoking=former", "smoking=current", "diabetes")
    assert data.names == names == TASK.features
    assert data.x[5].tolist() == [45.0, 4.5, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert data.y.tolist()[:5] == [1, 0, 0, 0, 1] and data.y.dtype == np.int64


def test_columns_codes_scale_and_sentinels_are_mapped(tmp_path: Path) -> None:
    table = [
        {"AGE_Y": r["age"], "gluc": str(float(r["glucose"]) * 18), "g": "1" if r["sex"] == "male" else "2"}
        | {k: r[k] for k in ("smoking", "diabetes", "dead")}
        for r in rows()
    ]
    table[3]["AGE_Y"], table[4]["smoking"], table[5]["gluc"] = "-9", "NA", "0"
    data = TASK.data(
        write(tmp_path, table, ";", "\r\n")
        | {"delimiter": ";", "columns": {"age": "AGE_Y", "glucose": "gluc", "sex": "g"}, "scale": {"glucose": 1 / 18}}
        | {"codes": {"sex": {"1": "male", "2": "female"}}, "missing": ["-9"], "missing_in": {"glucose": ["0"]}}
    )
    assert np.isnan(data.x[3, 0]) and np.isnan(data.x[4, 3:6]).all() and np.isnan(data.x[5, 1])
    assert int(np.isnan(data.x).sum()) == 5
    assert data.x[6, 1] == pytest.approx(4.6) and data.x[1, 2] == 1


def test_everything_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    table = rows()
    table[2]["age"] = "forty"
    table[3]["age"] = "41,5"
    table[4]["glucose"] = "500"
    table[7]["smoking"] = "sometimes"
    for row in table:
        row["diabetes"], row["dead"] = "1", "0"
        del row["sex"]
    said = "\n".join(faults(write(tmp_path, table)))
    assert "rows.csv:4: column 'age': 2 rows hold no number: 'forty', '41,5' -- decimal commas?" in said
    assert "rows.csv:6: column 'glucose': 1 values out of 1 to 50 mmol/L: 500" in said
    assert "rows.csv:9: column 'smoking': 1 rows hold an unknown category: 'sometimes'" in said
    assert "column 'sex' is missing -- map it" in said
    assert "column 'diabetes' is constant (1) in 30 rows" in said and "allow_constant" in said
    assert "one class only (0)" in said


def test_a_unit_that_explains_the_range_is_suggested(tmp_path: Path) -> None:
    table = [row | {"glucose": str(float(row["glucose"]) * 18)} for row in rows()]
    (said,) = faults(write(tmp_path, table))
    assert "another unit? (glucose" in said and "scale = {glucose = 0.0554939}" in said


def test_one_column_of_codes_may_be_read_for_two_features_that_map_it(tmp_path: Path) -> None:
    codes = {"sex": {"never": "male", "former": "female", "current": "male"}}
    data = TASK.data(write(tmp_path, rows()) | {"columns": {"sex": "smoking"}, "codes": codes})
    assert data.x[:3, 2].tolist() == [0.0, 1.0, 0.0]


def test_a_number_beyond_measure_is_named_before_its_square_is_infinite(tmp_path: Path) -> None:
    table = rows()
    table[3]["weight"] = "1e200"
    free = TableTask({**SCHEMA, "features": [*SCHEMA["features"], {"name": "weight"}]})
    (said,) = faults(write(tmp_path, [row | {"weight": row.get("weight", row["age"])} for row in table]), free)
    assert "rows.csv:5: column 'weight': 1 values beyond 1e+30: 1e+200" in said


@pytest.mark.parametrize("cell", ["-9", "-9.0", "-9.00", "-0.9e1"])
def test_a_sentinel_number_is_missing_however_a_cell_writes_it(tmp_path: Path, cell: str) -> None:
    table = rows()
    table[3]["glucose"] = cell
    assert np.isnan(TASK.data(write(tmp_path, table) | {"missing": ["-9"]}).x[3, 1])
    assert np.isnan(TASK.data(write(tmp_path, table) | {"missing_in": {"glucose": ["-9.0"]}}).x[3, 1])


def test_a_column_that_is_called_alike_but_for_its_case_is_proposed(tmp_path: Path) -> None:
    table = [{name.upper() if name == "age" else name: cell for name, cell in row.items()} for row in rows()]
    (said,) = faults(write(tmp_path, table))
    assert 'columns = {age = "AGE"}' in said


@pytest.mark.parametrize("n, enough", [(19, False), (20, True)])
def test_fewer_than_twenty_rows_are_too_few(tmp_path: Path, n: int, enough: bool) -> None:
    source = write(tmp_path, rows(n))
    if enough:
        assert len(TASK.data(source)) == 20
    else:
        assert any("at least 20" in said for said in faults(source))


def test_rows_without_a_label_are_left_out_only_when_told_so(tmp_path: Path) -> None:
    table = rows()
    table[1]["dead"] = ""
    source = write(tmp_path, table)
    assert "rows.csv:3: label 'dead': 1 rows have none" in faults(source)[0]
    assert len(TASK.data(source | {"drop_unlabelled": True})) == 29


def test_coding_one_two_of_a_boolean_is_answered_with_the_map_to_write(tmp_path: Path) -> None:
    table = [row | {"diabetes": str(int(row["diabetes"]) + 1)} for row in rows()]
    assert any("coded 1/2?" in said and "codes = {diabetes" in said for said in faults(write(tmp_path, table)))


def test_a_constant_column_passes_where_the_operator_says_it_is_so(tmp_path: Path) -> None:
    source = write(tmp_path, [row | {"diabetes": "0"} for row in rows()])
    assert len(TASK.data(source | {"allow_constant": ["diabetes"]})) == 30


@pytest.mark.parametrize("cell", ["inf", "nan(1)", "1_000", "0x10", "1e999", "١"])
def test_what_only_python_calls_a_number_is_none(tmp_path: Path, cell: str) -> None:
    table = rows()
    table[0]["age"] = cell
    assert any("no number" in said for said in faults(write(tmp_path, table)))


@pytest.mark.parametrize(
    "extra, says",
    [
        ({"colums": {}}, "did you mean 'columns'?"),
        ({"delimiter": 3}, "one character"),
        ({"columns": {"agee": "x"}}, "names 'agee', which the study does not have"),
        ({"id": "patient"}, "id column 'patient' is missing"),
        ({"drop_unlabelled": 1}, "drop_unlabelled"),
        ({"site": 0}, "the key 'site' is for tasks that ship with their rows"),
        ({"hospital": "va"}, "is for tasks on public data sets"),
        ({"delimiter": '"'}, "one character, no quote"),
        ({"scale": {"sex": 2.0}}, "only a number has a scale"),
        ({"scale": {"glucose": 1e308}}, "column 'glucose': 30 values beyond 1e+30: inf"),
        ({"columns": {"glucose": "dead"}}, "column 'dead' is read for both 'dead' and 'glucose'"),
        ({"columns": {"glucose": "age"}}, "column 'age' is read for both 'age' and 'glucose'"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, extra: dict[str, Any], says: str) -> None:
    assert any(says in said for said in faults(write(tmp_path, rows()) | extra))


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b"a,a\n1,2\n", "occurs twice"),
        (b"a,b\n1\n", "do not have the header's 2 cells"),
        (b"a\n\xff\n", "no UTF-8"),
        (b'a\n1\n"x', "rows.csv:3: is no CSV file"),
        (b"age,glucose,sex,smoking,diabetes,dead\n", "a header and no rows"),
        (b"age;sex;dead\n50;m;1\n", 'write delimiter = ";"'),
        (b"age\tsex\n50\tm\n", 'write delimiter = "\\t"'),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    assert says in faults({"file": str(path)})[0]
    assert "cannot be read" in faults({"file": str(tmp_path / "absent.csv")})[0]


def test_the_order_of_rows_does_not_move_the_hold_out_even_without_ids(tmp_path: Path) -> None:
    first = split("a", TASK.data(write(tmp_path, rows())), b"key")
    again = split("a", TASK.data(write(tmp_path, rows()[::-1])), b"key")
    assert len(first.holdout) > 0
    assert sorted(map(tuple, first.holdout.x)) == sorted(map(tuple, again.holdout.x))


def test_an_id_column_names_the_patient(tmp_path: Path) -> None:
    table = [row | {"pid": f"p{k // 2}"} for k, row in enumerate(rows())]
    data = TASK.data(write(tmp_path, table) | {"id": "pid"})
    assert data.ids[:3] == ("p0", "p0", "p1") and "pid" not in data.names


def test_rows_to_predict_need_no_label(tmp_path: Path) -> None:
    table = [{k: v for k, v in row.items() if k != "dead"} for row in rows(3)]
    assert TASK.features_of(write(tmp_path, table)).x.shape == (3, 7)


def test_parquet_reads_as_csv_does_or_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        assert "gossipfl[parquet]" in faults({"file": str(path)})[0]
        return
    parquet.write_table(pyarrow.Table.from_pylist(rows()), path)
    assert TASK.data({"file": str(path)}).x.tolist() == TASK.data(write(tmp_path, rows())).x.tolist()


# ---- the schema ----------------------------------------------------------------------------------------------------


def test_a_schema_survives_the_federation_file() -> None:
    schema = Schema.of(SCHEMA)
    assert Schema.of(schema.as_dict()) == schema
    assert load("table", {"schema": schema.as_dict()}).features == TASK.features


def test_a_label_of_three_categories_makes_three_classes(tmp_path: Path) -> None:
    label = {"name": "smoking", "type": "category", "categories": ["never", "former", "current"]}
    task = TableTask({"features": SCHEMA["features"][:2], "label": label, "model": "mlp", "hidden": [4]})
    assert task.classes == 3 and task.metric == "accuracy" and task.hidden == (4,)
    assert task.data(write(tmp_path, rows())).y.tolist()[:4] == [0, 1, 2, 0]


def test_everything_wrong_with_a_schema_is_said_at_once() -> None:
    raw = {
        "features": [
            {"name": "age", "typ": "number"},
            {"name": "sex", "type": "category", "categories": ["m"]},
            {"name": "bmi", "range": [50, 10]},
            {"name": "x", "type": "text"},
            "y",
        ],
        "label": {"name": "dead", "type": "number"},
        "model": "mlp",
    }
    with pytest.raises(ConfigError) as caught:
        Schema.of(raw, "federation.toml")
    said = str(caught.value)
    for part in ("did you mean 'type'", "two or more", "[lowest, highest]", "'text'", "is no table", "label", "hidden"):
        assert part in said, part
    assert len(caught.value.faults) == 7


def test_the_factor_of_another_analyte_is_never_suggested() -> None:
    """Glucose's 18.02 would bring many a creatinine into its range."""
    measured = np.array([1.2, 1.5, 1.9])
    creatinine = Feature("creatinine", unit="umol/L", range=(20.0, 1500.0))
    assert "creatinine = 88.4" in _scale_hint(creatinine, measured)
    urea = Feature("urea", unit="umol/L", range=(20.0, 1500.0))
    assert "ask the laboratory for the factor to umol/L" in _scale_hint(urea, measured)


def test_words_for_yes_and_no_are_answered_with_the_map_to_write(tmp_path: Path) -> None:
    table = [row | {"dead": "ja" if row["dead"] == "1" else "nein"} for row in rows()]
    (said,) = faults(write(tmp_path, table))
    assert '"ja" = "1"' in said and '"nein" = "0"' in said and "..." not in said
    proposed = {"dead": {"ja": "1", "nein": "0"}}
    assert TASK.data(write(tmp_path, table) | {"codes": proposed}).y.tolist() == TASK.data(write(tmp_path, rows())).y.tolist()


def test_what_no_word_explains_is_left_to_the_operator(tmp_path: Path) -> None:
    table = [row | {"sex": {"male": "M", "female": "9"}[row["sex"]]} for row in rows()]
    (said,) = faults(write(tmp_path, table))
    assert '"M" = "male"' in said and '"9" = "..."' in said and "replace ..." in said


def test_an_id_column_that_names_one_patient_is_refused_and_empty_ids_are_rows_of_their_own(tmp_path: Path) -> None:
    same = write(tmp_path, [row | {"pid": "x"} for row in rows()]) | {"id": "pid"}
    assert any("30 of 30 rows are of one patient" in said for said in faults(same))
    empty = write(tmp_path, [row | {"pid": ""} for row in rows()]) | {"id": "pid"}
    assert len(set(TASK.data(empty).ids)) > 15
