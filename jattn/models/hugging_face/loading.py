"""The model of a folder, whatever its family."""

from pathlib import Path
from typing import Any

from jattn.models.hugging_face.bart import BART
from jattn.models.hugging_face.bert import TextEncoder
from jattn.models.hugging_face.bloom import Bloom
from jattn.models.hugging_face.family import PretrainedModel, read_json
from jattn.models.hugging_face.gemma import Gemma, Gemma2, Gemma3
from jattn.models.hugging_face.gpt2 import GPT2
from jattn.models.hugging_face.gpt_neox import GPTNeoX
from jattn.models.hugging_face.gpt_oss import GptOss
from jattn.models.hugging_face.granite import Granite
from jattn.models.hugging_face.llama import Llama
from jattn.models.hugging_face.mistral import Mistral
from jattn.models.hugging_face.mixtral import Mixtral
from jattn.models.hugging_face.olmo2 import OLMo2
from jattn.models.hugging_face.opt import OPT
from jattn.models.hugging_face.phi3 import Phi3
from jattn.models.hugging_face.qwen import Qwen2, Qwen3
from jattn.models.hugging_face.t5 import T5
from jattn.models.hugging_face.whisper import Whisper

__all__ = ["FAMILIES", "load"]

_CLASSES: tuple[type[PretrainedModel], ...] = (
    BART,
    T5,
    Bloom,
    GPT2,
    GPTNeoX,
    Gemma,
    Gemma2,
    Gemma3,
    GptOss,
    Granite,
    Llama,
    Mistral,
    Mixtral,
    OLMo2,
    OPT,
    Phi3,
    Qwen2,
    Qwen3,
    TextEncoder,
    Whisper,
)
# By the ``model_type`` of a configuration.
FAMILIES = {name: cls for cls in _CLASSES for name in cls.hugging_face.implemented["model_type"]}


def load(path: str | Path, *, param_dtype: Any = None) -> PretrainedModel:
    """The model of a Hugging Face folder, of the class that its ``config.json`` asks for.

    Args:
        path: the folder, with ``config.json``, and ``model.safetensors`` or its shards.
        param_dtype: of the parameters; the file's own by default.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: if the family is not one of those here, and as ``from_folder`` does.
    """
    kind = read_json(Path(path), "config.json").get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{path} must be a model with a model_type among {', '.join(sorted(FAMILIES))}. Got {kind!r}. For another "
            "one write a subclass of jattn.models.TextDecoder with a jattn.models.Family."
        )
    return FAMILIES[kind].from_folder(path, param_dtype=param_dtype)
