"""One small module a raw format, all behind `base.RawFormat`."""

from recbole_llm.prepare.formats.amazon import AMAZON_2014, AMAZON_2018, AMAZON_2023
from recbole_llm.prepare.formats.atomic import Atomic
from recbole_llm.prepare.formats.base import RawFormat
from recbole_llm.prepare.formats.llara import LLaRA
from recbole_llm.prepare.formats.llara_rows import LLaRARows
from recbole_llm.prepare.formats.movielens import MOVIELENS_1M, MOVIELENS_20M, MOVIELENS_100K
from recbole_llm.prepare.formats.steam import Steam
from recbole_llm.prepare.formats.table import Table

FORMATS: dict[str, RawFormat] = {
    "amazon-2014": AMAZON_2014,
    "amazon-2018": AMAZON_2018,
    "amazon-2023": AMAZON_2023,
    "movielens-100k": MOVIELENS_100K,
    "movielens-1m": MOVIELENS_1M,
    "movielens-20m": MOVIELENS_20M,
    "steam": Steam(),
    "llara": LLaRA(),
    "llara-rows": LLaRARows(),
    "table": Table(),
    "atomic": Atomic(),
}
"""Name in the settings -> format."""

__all__ = ["FORMATS", "RawFormat"]
