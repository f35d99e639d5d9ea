"""The benchmarks that need no GPU, each in its small case and in a process of its own.

    python benchmarks/on_cpu.py [NAME ...]

Ends with 1 if one of them fails, after all have run.
"""

import os
import subprocess
import sys
from pathlib import Path

CASES: dict[str, tuple[str, ...]] = {
    "cpu_allocator": (),
    "catalogue_size": (),
    "constrained_decoding": (),
    "id_model_epoch": ("--dataset=ml-100k", "--models=GRU4Rec", "--steps=5", "--batch_size=64"),
    "ilp_cache": (),
    "item_losses": (),
    "large_catalogue": (),
    "million_items": ("--items=50000", "--users=2000", "--memory=64", "--check=50"),
    "one_pass_epoch": (
        *("--dataset=ml-100k", "--longest=50", "--width=16", "--batch_size=64", "--rows=256"),
        *("--epochs=1", "--steps=3", "--workers=0"),
    ),
    "cpu_scenario_swap": (),
    "several_devices": ("--shape=tiny", "--steps=3"),
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all, and return how many failed."""
    unknown = sorted({*names} - {*CASES})
    if unknown:
        sys.exit(f"error: there is no benchmark {unknown[0]} on the CPU, but {', '.join(CASES)}")
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    without_gpu.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # RecBole's, of pandas
    failed = 0
    for name in names or CASES:
        print(f"== {name}", flush=True)
        script = Path(__file__).with_name(f"{name}.py")
        failed += bool(subprocess.call([sys.executable, str(script), *CASES[name]], env=without_gpu))
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
