"""Programs are saved with flatbuffers and safetensors, of the extra ``portable``."""

import importlib.util

if not all(map(importlib.util.find_spec, ("flatbuffers", "safetensors"))):
    collect_ignore_glob = ["test_*.py"]
