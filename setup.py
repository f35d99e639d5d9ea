"""The packages of the wheel; everything else stands in setup.cfg.

setup.cfg alone can either find the packages or map a top-level folder into one, not both.
`recbole_llm.utils.paths.shipped` looks for the two mapped folders inside the installed package.
"""

from setuptools import find_packages, setup

DATA = ("properties", "dataset_configs")

setup(
    packages=[*find_packages(include=["recbole_llm", "recbole_llm.*"]), *(f"recbole_llm.{name}" for name in DATA)],
    package_dir={f"recbole_llm.{name}": name for name in DATA},
    package_data={
        "recbole_llm": ["py.typed"],
        "recbole_llm.report": ["page.*"],
        **{f"recbole_llm.{name}": ["**/*"] for name in DATA},
    },
)
