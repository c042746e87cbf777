"""Rotary positions as Hugging Face's configurations have them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from jattn.models.hugging_face.settings import head_features_of, real_setting
from jattn.nn.rotary_positions import Rotary
from jattn.nn.rotary_scaling import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    RotaryScaling,
    YaRNScaling,
)

__all__ = ["rotary_by_kind", "rotary_of"]

_SHARE = "partial_rotary_factor"
_LONGEST = "max_position_embeddings"
_ORIGINAL = "original_max_position_embeddings"


def rotary_of(
    config: Mapping[str, Any], *, partial: bool = False, interleaved: bool = False, base: float = 10000.0
) -> Rotary:
    """The rotary positions of a model; newer files have them in ``rope_parameters``, older ones in ``rope_scaling``.

    Where both say something, ``rope_scaling`` alone counts, as in transformers.
    The kinds are those of transformers: default, linear, dynamic, yarn, llama3 and longrope. Only in some families may
    a part of the features turn (``partial``), or neighbours be paired (``interleaved``); ``base`` is that of a model
    whose settings name none.

    Example:

        >>> rotary_of({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
        Rotary(base=500000.0, features=None, interleaved=False, scaling=LinearScaling(factor=2.0))
    """
    settings: dict[str, Any] = {"rope_theta": config.get("rope_theta", base)}
    if partial and config.get(_SHARE) is not None:
        settings[_SHARE] = config[_SHARE]
    older_given, newer_given = config.get("rope_scaling"), config.get("rope_parameters")
    place, given = ("rope_scaling", older_given) if older_given else ("rope_parameters", newer_given or {})
    if not isinstance(given, Mapping):
        raise ValueError(f"config's {place} must be a dict. Got {given!r:.80}.")
    settings.update({key: value for key, value in given.items() if value is not None})
    older = settings.pop("type", "default")
    kind = settings.pop("rope_type", older)
    if kind not in _KINDS:
        raise ValueError(f"config's {place} must have a rope_type among {', '.join(_KINDS)}. Got {kind!r:.80}.")
    make, needed, optional = _KINDS[kind]
    base = real_setting(settings, "rope_theta", "(0, inf)")
    share = real_setting(settings, _SHARE, "(0, 1]", 1.0)
    if partial or share == 1:
        settings.pop(_SHARE, None)
    if unknown := sorted(settings.keys() - {"rope_theta", _ORIGINAL} - {*needed, *optional}):
        raise ValueError(f"config's {place} must have settings of {kind!r} positions alone. Got {', '.join(unknown)}.")
    # Lengths may stand outside of it, and there go before those inside.
    longest = config.get(_LONGEST)
    outside = config.get(_ORIGINAL)
    settings[_LONGEST], settings[_ORIGINAL] = longest, settings.get(_ORIGINAL, longest) if outside is None else outside
    if kind in ("yarn", "longrope") and longest is not None:
        lengths = [real_setting(settings, name, "[1, inf)") for name in (_LONGEST, _ORIGINAL)]
        settings.setdefault("factor", lengths[0] / lengths[1])
    if missing := [name for name in needed if settings.get(name) is None]:
        raise ValueError(
            f"config's {place} must have {', '.join(missing)} for {kind!r} positions. "
            f"Got {dict(config.get(place) or {})!r:.200}."
        )
    given = {here: settings[name] for name, here in {**needed, **optional}.items() if name in settings}
    given = {here: tuple(value) if isinstance(value, list) else value for here, value in given.items()}
    turning = None if share == 1 else int(head_features_of(config) * share)
    return Rotary(base, features=turning, interleaved=interleaved, scaling=make(**given))


def rotary_by_kind(
    config: Mapping[str, Any], bases: Mapping[str, tuple[str, float]], *, scaled: Collection[str]
) -> dict[str, Rotary]:
    """The rotary positions of each kind of layer, of which newer files have settings each in ``rope_parameters``.

    Args:
        config: the settings.
        bases: of each kind, the name that older files have for the base, and what it is where they have none.
        scaled: the kinds that are scaled as older files' settings for all say.
    """
    given, of_all = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    for name, settings in (("rope_parameters", given), ("rope_scaling", of_all)):
        if not isinstance(settings, Mapping):
            raise ValueError(f"config's {name} must be a dict. Got {settings!r:.80}.")
    if given and not given.keys() & bases.keys():
        raise ValueError(
            "config's rope_parameters must have full_attention or sliding_attention, as each kind of layers has its "
            f"own. Got {given!r:.80}."
        )
    sizes = {name: config.get(name) for name in (_LONGEST, _ORIGINAL)}
    return {
        kind: rotary_of(
            {
                **sizes,
                "rope_theta": real_setting(config, name, "(0, inf)", base),
                "rope_parameters": {**(given.get(kind) or {}), **(of_all if kind in scaled else {})},
            }
        )
        for kind, (name, base) in bases.items()
    }


_Kind = tuple[Callable[..., RotaryScaling | None], dict[str, str], dict[str, str]]
# By transformers' name: the scaling, and what their settings are called here, those that must be there first.
_KINDS: dict[str, _Kind] = {
    "default": (lambda: None, {}, {}),
    "linear": (LinearScaling, {"factor": "factor"}, {}),
    "dynamic": (DynamicNTKScaling, {"factor": "factor", _LONGEST: "max_length"}, {}),
    "yarn": (
        YaRNScaling,
        {"factor": "factor", _ORIGINAL: "original_max_length"},
        {name: name for name in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")},
    ),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            _ORIGINAL: "original_max_length",
        },
        {},
    ),
    "longrope": (
        LongRoPEScaling,
        {
            "short_factor": "short_factors",
            "long_factor": "long_factors",
            _ORIGINAL: "original_max_length",
            "factor": "factor",
        },
        {"attention_factor": "attention_factor"},
    ),
}
