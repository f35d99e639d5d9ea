"""A `HistoryDataset` whose histories have labels, too, where the interactions have any (RecBole's `threshold`)."""

from recbole_llm.data.dataset import HistoryDataset


class RatedDataset(HistoryDataset):
    """Histories of items and, where the dataset has labels, of what their user thought of each: 1 liked, 0 not."""

    @property
    def has_labels(self) -> bool:
        """Whether interactions have labels."""
        return self.label_field in self.inter_feat

    def _history_fields(self) -> list[str]:
        return [self.iid_field, *([self.label_field] if self.label_field in self.inter_feat else [])]
