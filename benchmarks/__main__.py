"""jattn and its peers side by side in one run: python -m benchmarks NAME [--help]."""

import importlib
import sys

NAMES = (
    "attention",
    "kernel_regression",
    "additive",
    "memory",
    "training",
    "models",
    "decoding",
    "serving",
    "scale",
    "targets",
    "gpu",
)

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"{__doc__}\nNAME must be one of: {', '.join(NAMES)}. Got {' '.join(sys.argv[1:]) or 'none'}.")
    importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
