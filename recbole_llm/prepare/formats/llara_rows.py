"""LLaRA's validation and test rows (Liao et al. 2024) on a dataset that is there as atomic files.

Two tab-separated tables hold ``user_id``, ``item_id_list`` (the history, item ids with spaces between) and ``item_id``
(the target). Each row is one user's whole validation or test data; users without a row are the training side.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from recbole_llm.errors import DataError
from recbole_llm.prepare.formats.atomic import Atomic
from recbole_llm.prepare.formats.base import ITEM, PART, TIME, USER, Files
from recbole_llm.prepare.raw import RawFile, Tally

_COLUMNS = ("user_id", "item_id_list", "item_id")
_ATOMIC = Atomic()
_PARTS = ("valid", "test")


class LLaRARows:
    """See the module's text and `RawFormat`. `interactions` and `items` are those of the format `atomic`."""

    roles = ("interactions", "items", *_PARTS)
    optional_roles: frozenset[str] = frozenset()
    fields = _ATOMIC.fields
    list_fields = _ATOMIC.list_fields
    html = _ATOMIC.html
    options = _ATOMIC.options

    def interactions(self, files: Files, options: Mapping[str, Any], tally: Tally) -> Iterator[pl.DataFrame]:
        """See `RawFormat`; times of the rows are places in them."""
        tables = {part: _rows(files[part], tally, part) for part in _PARTS}
        users = pl.concat([table["user_id"] for table in tables.values()])
        if users.is_duplicated().any():
            twice = users.filter(users.is_duplicated())[0]
            raise DataError(
                f"user {twice} has two rows in {files['valid'].name} and {files['test'].name}: only one is taken"
            )
        known: set[str] = set()
        for block in _ATOMIC.interactions(files, options, tally):
            known.update(block[ITEM].drop_nulls())
            rest = block.filter(~pl.col(USER).is_in(users.to_list()))
            tally.skip("interactions: of users with a row", block.height - rest.height)
            yield rest.select(USER, ITEM, TIME).with_columns(pl.lit("train").alias(PART))
        for part, table in tables.items():
            whole = (table["item_id_list"] + " " + table["item_id"]).str.extract_all(r"\S+").alias(ITEM)
            flat = pl.DataFrame({USER: table["user_id"], ITEM: whole})
            flat = flat.with_columns(pl.int_ranges(pl.col(ITEM).list.len()).alias(TIME)).explode(ITEM, TIME)
            if foreign := sorted(set(flat[ITEM]) - known):
                raise DataError(
                    f"{files[part].name} has the item {foreign[0]}, which {files['interactions'].name} has not: the "
                    f"two files do not belong together"
                )
            yield flat.select(USER, ITEM, pl.col(TIME).cast(pl.String)).with_columns(pl.lit(part).alias(PART))

    def items(
        self, files: Files, fields: tuple[str, ...], options: Mapping[str, Any], tally: Tally
    ) -> Iterator[pl.DataFrame]:
        """See `RawFormat`."""
        return _ATOMIC.items(files, fields, options, tally)


def _rows(raw: RawFile, tally: Tally, part: str) -> pl.DataFrame:
    with raw.open() as stream:
        lines = stream.read().decode("utf-8", "replace").splitlines()
    header = tuple(lines[0].split("\t")) if lines else ()
    if header != _COLUMNS:
        raise DataError(
            f"{raw.name} must have the columns {', '.join(_COLUMNS)} with tabs between: check which file it is"
        )
    rows = [line.split("\t") for line in lines[1:] if line]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(_COLUMNS) or not all(cell.strip() for cell in row):
            raise DataError(f"{raw.name}: line {number} has not a user, a history and a target with tabs between")
    tally.count(f"rows of {part}", len(rows))
    return pl.DataFrame(rows, schema=dict.fromkeys(_COLUMNS, pl.String), orient="row")
