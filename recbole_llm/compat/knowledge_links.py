"""Which links between items and entities of a knowledge graph RecBole may read.

Repairs `recbole/data/dataset/kg_dataset.py:343` (`KnowledgeBasedDataset._merge_item_and_entity`), which gives items and
their entities the same ids and takes for granted that each line of the `.link` file joins a known item and a known
entity, one to one. :168 (`_filter_link`) sees to the first where RecBole filters, which it does not where files give
the split (`benchmark_filename`): a link of an item without an interaction was then a KeyError, or moved the ids of
others. Nothing sees to the second. It happens when this module is imported.
"""

import functools
from collections.abc import Callable, Collection
from logging import getLogger
from typing import Any

from recbole.data.dataset import KnowledgeBasedDataset


def one_to_one(
    item2entity: dict[str, str], entity2item: dict[str, str], items: Collection[str], entities: Collection[str]
) -> dict[str, str]:
    """Return the links of known items to known entities, each of both once; the first in the file counts.

    Args:
        item2entity: the entity of each item (the last that the file names).
        entity2item: the item of each entity (the last that the file names).
        items: the known ones.
        entities: the known ones.
    """
    kept: dict[str, str] = {}
    taken = set()
    for item, entity in [*item2entity.items(), *((item, entity) for entity, item in entity2item.items())]:
        if item in items and entity in entities and item not in kept and entity not in taken:
            kept[item] = entity
            taken.add(entity)
    return kept


def _keep_links(dataset: Any, items: Collection[str], entities: Collection[str]) -> None:
    kept = one_to_one(dataset.item2entity, dataset.entity2item, items, entities)
    known = {item for item, entity in dataset.item2entity.items() if item in items and entity in entities}
    if known - kept.keys():
        getLogger().warning(
            "%d items of %s share their entity with another item: they are not linked",
            len(known - kept.keys()),
            dataset.dataset_name,
        )
    dataset.item2entity, dataset.entity2item = kept, {entity: item for item, entity in kept.items()}


def _filtering(own: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(own)
    def filter_link(self: Any) -> None:
        _keep_links(self, self._get_rec_item_token(), self._get_entity_token())
        own(self)

    return filter_link


def _merging(own: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(own)
    def merge_item_and_entity(self: Any) -> None:
        known = (self.field2token_id[field] for field in (self.iid_field, self.head_entity_field))
        _keep_links(self, *known)
        own(self)

    return merge_item_and_entity


KnowledgeBasedDataset._filter_link = _filtering(KnowledgeBasedDataset._filter_link)
KnowledgeBasedDataset._merge_item_and_entity = _merging(KnowledgeBasedDataset._merge_item_and_entity)
