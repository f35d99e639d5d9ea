"""Rows in the order of their times as the file has them.

RecBole sorts after its times have become float32, which holds 24 bits: seconds since 1970 are then equal within 128 of
them, milliseconds within 131,072, and such rows stay as the file has them. Here rows are sorted by float64 before; what
RecBole sorts later, in a stable way by the narrowed times, stays in this order. Rows of equal time keep the file's.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_llm.data.atomic_files import sorts_by_time
from recbole_llm.errors import DataError, SettingError


class TimeOrder(Dataset):
    """Sorts by exact times, and refuses rows without one where their order matters."""

    inter_feat: Any
    _times: np.ndarray | None = None  # float64 [interactions] of the loaded rows, before a scaling

    def _filter_by_field_value(self) -> None:
        super()._filter_by_field_value()
        self._check_times()  # a row without a time may be left out by `val_interval`

    def _check_times(self) -> None:
        if self.time_field not in self.inter_feat or self.inter_feat[self.time_field].dtype != np.float64:
            return
        missing = ~np.isfinite(self.inter_feat[self.time_field].to_numpy())
        count = int(missing.sum())
        if not count:
            return
        path = Path(self.dataset_path) / f"{self.dataset_name}.inter"
        line = int(self.inter_feat.index[missing].min()) + 2
        fault = f"{count} interactions of {path} have no finite number in '{self.time_field}', the first in line {line}"
        if sorts_by_time(self.config) or self.config["rm_dup_inter"] is not None:
            raise DataError(
                f"{fault}: mend them, or leave them out with val_interval={{{self.time_field}: (-inf,inf)}}"
            )
        self.logger.warning("%s: nothing is sorted by it, and RecBole fills it with the mean", fault)

    def _remove_duplication(self) -> None:
        """Keep the first or last of a user's interactions with an item; of equal times, the file's order counts.

        Repairs the unstable sort of `recbole/data/dataset/dataset.py:874`.
        """
        keep = self.config["rm_dup_inter"]
        if keep is None or self.time_field not in self.inter_feat:
            super()._remove_duplication()
            return
        ordered = self.inter_feat.sort_values(self.time_field, kind="stable")
        self.inter_feat = ordered.drop_duplicates([self.uid_field, self.iid_field], keep=keep).copy()

    def _normalize(self) -> None:
        if sorts_by_time(self.config):
            if self.time_field not in self.inter_feat:
                raise SettingError(
                    f"threshold={self.config['threshold']} puts labels in the place of the column '{self.time_field}', "
                    f"by which interactions are sorted: name another column"
                )
            self._times = self.inter_feat[self.time_field].to_numpy(np.float64, copy=True)
        super()._normalize()

    def _change_feat_format(self) -> None:
        if self._times is not None and self.config["eval_args"]["order"] == "TO":
            order = np.argsort(self._times, kind="stable")
            self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)
        super()._change_feat_format()

    def _dataframe_to_interaction(self, data: Any) -> Interaction:
        rows = super()._dataframe_to_interaction(data)
        if data is self.inter_feat and self.time_field in rows and (_splits_by_time(self) or _keeps_times(self)):
            values = np.array(data[self.time_field].tolist(), dtype=np.float64)
            rows.update(Interaction({self.time_field: torch.from_numpy(values)}))
        return rows

    def build(self) -> list[Any]:
        """Split the rows as RecBole does, in the order of their exact times."""
        parts: list[Any] = super().build()
        if _splits_by_time(self) and not _keeps_times(self):
            for part in (self, *parts):
                for columns in (part.inter_feat.interaction, getattr(part, "flat", {})):
                    for name in columns:
                        if name.startswith(self.time_field) and columns[name].dtype == torch.float64:
                            columns[name] = columns[name].float()
        return parts


def _splits_by_time(dataset: Any) -> bool:
    # The boundary between training and test is a time: a narrowed one would lie in the middle of equal times.
    return dataset.config["benchmark_filename"] is None and "TS" in (dataset.config["eval_args"]["split"] or ())


def _keeps_times(dataset: Any) -> bool:
    # General models read ids alone; DiffRec sorts its training part by time once more.
    return bool(dataset.config["MODEL_TYPE"] == ModelType.GENERAL)
