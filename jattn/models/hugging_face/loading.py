"""The model of a folder, whatever its family."""

from pathlib import Path
from typing import Any

from jattn.models.hugging_face.bart import BART
from jattn.models.hugging_face.bert import Bert
from jattn.models.hugging_face.bloom import Bloom
from jattn.models.hugging_face.clip import CLIP
from jattn.models.hugging_face.clip_towers import CLIPText, CLIPVision
from jattn.models.hugging_face.distilbert import DistilBert
from jattn.models.hugging_face.electra import Electra
from jattn.models.hugging_face.encoder_heads import EncoderFamily, EncoderWithHead
from jattn.models.hugging_face.family import FAMILIES, PretrainedModel, family_of, folder_of, read_json
from jattn.models.hugging_face.gemma import Gemma, Gemma2, Gemma3
from jattn.models.hugging_face.gpt2 import GPT2
from jattn.models.hugging_face.gpt_neox import GPTNeoX
from jattn.models.hugging_face.gpt_oss import GptOss
from jattn.models.hugging_face.granite import Granite
from jattn.models.hugging_face.llama import Llama
from jattn.models.hugging_face.mistral import Mistral
from jattn.models.hugging_face.mixtral import Mixtral
from jattn.models.hugging_face.modernbert import ModernBert
from jattn.models.hugging_face.mpnet import MPNet
from jattn.models.hugging_face.olmo2 import OLMo2
from jattn.models.hugging_face.opt import OPT
from jattn.models.hugging_face.phi3 import Phi3
from jattn.models.hugging_face.qwen import Qwen2, Qwen3
from jattn.models.hugging_face.roberta import Camembert, Roberta, XLMRoberta
from jattn.models.hugging_face.t5 import T5
from jattn.models.hugging_face.vit import DeiT, ViT
from jattn.models.hugging_face.whisper import Whisper
from jattn.weights import files

__all__ = ["load"]

_CLASSES: tuple[type[PretrainedModel], ...] = (
    BART,
    Bert,
    Bloom,
    Camembert,
    CLIP,
    CLIPText,
    CLIPVision,
    DeiT,
    DistilBert,
    Electra,
    Gemma,
    Gemma2,
    Gemma3,
    GPT2,
    GPTNeoX,
    GptOss,
    Granite,
    Llama,
    Mistral,
    Mixtral,
    ModernBert,
    MPNet,
    OLMo2,
    OPT,
    Phi3,
    Qwen2,
    Qwen3,
    Roberta,
    T5,
    ViT,
    Whisper,
    XLMRoberta,
)
FAMILIES.update({name: cls for cls in _CLASSES for name in cls.hugging_face.implemented["model_type"]})


def load(path: str | Path, *, param_dtype: Any = None) -> PretrainedModel:
    """The model of a Hugging Face folder, of the class that its ``config.json`` asks for.

    A text encoder with the head of a task is an `EncoderWithHead`.

    Args:
        path: the folder, with ``config.json``, and ``model.safetensors`` or its shards.
        param_dtype: of the parameters; the file's own by default.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: if the family is not one of those here, and as ``from_folder`` does.
    """
    config = read_json(folder_of(path), "config.json")
    cls: type[PretrainedModel] = family_of(config)
    family = cls.hugging_face
    if not isinstance(family, EncoderFamily):
        return cls.from_folder(path, param_dtype=param_dtype)
    if family.head_of(config) is not None:
        return EncoderWithHead.from_folder(path, param_dtype=param_dtype)
    state_dict = files.load(path)
    if heads := family.of_heads(state_dict):
        raise ValueError(
            "config must have architectures that say what the weights beside the encoder's are for. Got "
            f"{config.get('architectures')}, and {', '.join(heads[:3])}. jattn.models.TextEncoder.from_folder gives "
            "the encoder without a head."
        )
    return cls.from_hugging_face(config, state_dict, param_dtype=param_dtype)
