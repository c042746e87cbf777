"""A user's file, which uses every public name and says what comes back, for type checkers alone; nothing of it runs.

mypy and pyright must find no error in it. It is complete, or `tests/test_types.py` fails.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import jax
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from matplotlib.figure import Figure

import jattn
from jattn import (
    biases,
    decoding,
    heads,
    masks,
    models,
    nn,
    parity,
    plots,
    portable,
    scores,
    sequence,
    sharding,
    training,
    weights,
)
from jattn.decoding import processors as filters
from jattn.nn import torch
from jattn.weights import files

Pair = tuple[Array, Array]


def use_functions(q: Array, k: Array, v: Array, ask: bool) -> None:
    mask = masks.causal()
    assert_type(jattn.attention(q, k, v), Array)
    assert_type(jattn.attention(q, k, v, mask=mask, return_weights=False), Array)
    assert_type(jattn.attention(q, k, v, implementation="dense", scale=0.5, return_weights=True), Pair)
    assert_type(jattn.attention(q, k, v, return_weights=ask), Array | Pair)
    output, found = jattn.attention(q, k, v, mask=mask, return_weights=True)
    assert_type(output + found, Array)

    bound = jattn.bind(q, k, v, mask=mask, bias=biases.alibi(8))
    assert_type(bound.run(), Array)
    assert_type(bound.run(return_weights=True), Pair)
    assert_type(bound.run(return_weights=ask, implementation="streaming"), Array | Pair)
    assert_type(bound.weights(heads=3), Array)
    assert_type(bound.statistics().entropy, Array)

    assert_type(jattn.attention_weights(q, k, mask=mask, heads=[0, 1]), Array)
    assert_type(jattn.attention_statistics(q, k, logits_soft_cap=30.0).entropy, Array)
    assert_type(jattn.explain(q, k, v, platform="tpu").reason, str)
    assert_type(jattn.masked_softmax(q, mask), Array)

    assert_type(jattn.dot_product_attention(q, k, v, is_causal=True), Array)
    assert_type(jattn.dot_product_attention(q, k, v, None, mask, return_residual=True), Pair)
    assert_type(jattn.dot_product_attention(q, k, v, return_residual=ask), Array | Pair)
    assert_type(jattn.additive_attention(q, k, v, q, k, v), Array)
    assert_type(jattn.additive_attention(q, k, v, w_query=q, w_key=k, w_value=v, mask=mask, return_weights=True), Pair)
    assert_type(jattn.additive_attention(q, k, v, q, k, v, return_weights=ask), Array | Pair)
    assert_type(jattn.nadaraya_watson(q, k, v, kernel="boxcar"), Array)
    assert_type(jattn.nadaraya_watson(q, k, v, bandwidth=0.5, return_weights=True), Pair)
    assert_type(jattn.nadaraya_watson(q, k, v, return_weights=ask), Array | Pair)

    cache = jattn.Cache.empty((2,), room=9, num_heads=4, features=8)
    assert_type(cache, jattn.Cache)
    assert_type(cache.append(k, v).cache, jattn.Cache)


class Behind(masks.Mask):
    distance: int | Array = masks.over("b")

    def formula(self, grid: masks.Grid) -> Any:
        return grid.query - grid.key >= self.distance


class Distance(biases.Bias):
    slope: Array = biases.over("h")

    def formula(self, grid: biases.Grid) -> Any:
        return -self.slope * (grid.query - grid.key)


class Cosine(scores.Score):
    by_pair = True

    def __call__(self, query: Array, key: Array) -> Array:
        return scores.DotProduct(1.0)(query, key)


def use_rules(x: Array) -> None:
    assert_type(masks.causal(2) & masks.causal_lower_right(3, 5) | ~masks.dense(x), masks.Mask)
    assert_type(masks.dilated_window(1, 1, 2), masks.Mask)
    assert_type(masks.lengths(x), masks.Mask)
    assert_type(masks.neighbourhood((4, 4), 1), masks.Mask)
    assert_type(masks.prefix(3), masks.Mask)
    assert_type(masks.segments(x, x), masks.Mask)
    assert_type(masks.sliding_window(2, 0), masks.Mask)
    assert_type(masks.where(lambda q, k: q >= k), masks.Mask)
    assert_type(masks.all_of(masks.causal(), None), masks.Mask | None)

    assert_type(biases.alibi_slopes(8), np.ndarray)
    for bias in (biases.dense(x), biases.as_bias(x), biases.relative(x), biases.where(lambda q, k: q - k)):
        assert_type(bias, biases.Bias)

    numbers: list[scores.Number] = [0.5, x]
    kernels: list[scores.Score] = [scores.Boxcar(0.5), scores.Epanechnikov(x), scores.Gaussian(factor=2.0)]
    plain: list[scores.Score] = [scores.Additive(x, x, x), scores.Constant(), scores.DotProduct(), Cosine()]
    halved = scores.modified(lambda logits, q, k: logits / 2, plain[0])
    assert_type(halved, scores.Modified)
    assert_type(halved.modification, scores.Modification)
    jattn.attention(x, x, x, score=kernels[0], scale=numbers[0], mask=Behind(1), bias=Distance(x))

    assert_type(sequence.zigzag(16, 2), Array)
    assert_type(sequence.restore(sequence.reorder(x, 2), 2), Array)


def use_modules(x: Array, ask: bool, cache: jattn.Cache | None, rng: Array) -> None:
    rngs = nnx.Rngs(0)
    attend = nn.MultiHeadAttention(
        num_heads=2, in_features=8, rotary=nn.Rotary(), normalize_qk=nn.Norm("rms"), rngs=rngs
    )
    assert_type(attend(x), Array)
    assert_type(attend(x, x, x, mask=masks.causal(), return_weights=False), Array)
    assert_type(attend(x, valid_lens=3, return_weights=True), nn.Outputs)
    assert_type(attend(x, return_weights=ask), Array | nn.Outputs | nn.Cached)
    assert_type(attend(x, cache=nn.new_cache(attend, (2,), 9)), nn.Cached)
    assert_type(attend(x, cache=cache, rng=rng), Array | nn.Outputs | nn.Cached)
    assert_type(attend.project(x), nn.KeysAndValues)
    assert_type(attend(x, attend.project(x)), Array)
    output, found = attend(x, return_weights=True)
    assert_type(output, Array)
    print(found)

    wide = nn.WideMultiHeadSelfAttention(8, 3, rngs=rngs)
    assert_type(wide(x), Array)
    assert_type(wide(x, 3, return_weights=True), nn.Outputs)
    assert_type(wide(x, return_weights=ask), Array | nn.Outputs)

    block = nn.TransformerBlock(2, 8, 32, causal=True, cross_attention=True, rngs=rngs)
    assert_type(block(x, x), Array)
    assert_type(block(x, memory_valid_lens=x, return_weights=True), nn.Outputs)
    assert_type(block(x, return_weights=ask), Array | nn.Outputs | nn.Cached)
    assert_type(block(x, cache=nn.new_cache(block.attention, (2,), 9), return_weights=True).output, Array)

    for pool in (nn.DotProductAttention(), nn.AdditiveAttention(20, 2, 8, rngs=rngs)):
        assert_type(pool(x, x, x), Array)
        assert_type(pool(x, x, x, valid_lens=x, return_weights=True), Pair)
        assert_type(pool(x, x, x, return_weights=ask), Array | Pair)
    smooth = nn.NadarayaWatson(x, x)
    assert_type(smooth(x, leave_one_out=True), Array)
    assert_type(smooth(x, return_weights=True), Pair)
    assert_type(smooth(x, x, x, return_weights=ask), Array | Pair)

    assert_type(nn.FeedForward(8, 32, rngs=rngs)(x), Array)
    experts = nn.MixtureOfExperts(8, 32, num_experts=4, experts_per_token=2, rngs=rngs)
    assert_type(experts(x), Array)
    assert_type(experts.route(x), nn.Routing)
    assert_type(nn.Embed(9, 8, rngs=rngs)(x), Array)
    assert_type(nn.LayerNorm(8, rngs=rngs)(nn.RMSNorm(8, rngs=rngs)(x)), Array)
    assert_type(nn.Linear(8, 8, rngs=rngs)(nn.LinearGeneral(8, (2, 4), rngs=rngs)(x)), Array)
    assert_type(nn.Conv(8, 8, 3, rngs=rngs)(x), Array)
    assert_type(nn.GRU(8, 8, rngs=rngs)(x), Pair)
    assert_type(nn.SinusoidalPositions(8)(nn.LearnedPositions(9, 8, rngs=rngs)(x)), Array)
    assert_type(nn.sinusoidal_positions(9, 8), Array)
    assert_type(nn.rotary(x), Array)
    scalings: list[nn.RotaryScaling] = [
        nn.DynamicNTKScaling(2.0, 9),
        nn.LinearScaling(2.0),
        nn.Llama3Scaling(8.0, 1.0, 4.0, 9),
        nn.LongRoPEScaling((1.0,), (2.0,), 9, 2.0),
        nn.YaRNScaling(2.0, 9),
    ]
    assert_type(nn.Rotary(scaling=scalings[0])(x), Array)
    assert_type(nn.settings_of(nn.TransformerBlock), dict[str, Any])


def use_torch_modules(x: Array, ask: bool) -> None:
    rngs = nnx.Rngs(0)
    output, found = torch.MultiheadAttention(8, 2, rngs=rngs)(x, x, x, attn_mask=x)
    assert_type(output, Array)
    assert_type(found, Array | None)
    encoder_layer = torch.TransformerEncoderLayer(8, 2, rngs=rngs)
    assert_type(encoder_layer(x, x), Array)
    assert_type(encoder_layer(x, is_causal=True, return_weights=True), Pair)
    decoder_layer = torch.TransformerDecoderLayer(8, 2, rngs=rngs)
    assert_type(decoder_layer(x, x), Array)
    assert_type(decoder_layer(x, x, return_weights=True), tuple[Array, Pair])
    encoder = torch.TransformerEncoder(encoder_layer, 2)
    assert_type(encoder(x), Array)
    assert_type(encoder(x, return_weights=True), tuple[Array, tuple[Array, ...]])
    decoder = torch.TransformerDecoder(decoder_layer, 2)
    assert_type(decoder(x, x), Array)
    assert_type(decoder(x, x, return_weights=True), tuple[Array, tuple[Pair, ...]])
    model = torch.Transformer(8, 2, rngs=rngs)
    assert_type(model(x, x), Array)
    assert_type(model(x, x, return_weights=True), tuple[Array, tuple[Any, Any]])
    assert_type(model(x, x, return_weights=ask), Array | tuple[Array, tuple[Any, Any]])
    assert_type(torch.initialize(model, rngs=rngs), torch.Transformer)


def use_models(x: Array, folder: Path, ask: bool, config: Mapping[str, Any]) -> None:
    rngs = nnx.Rngs(0)
    block: dict[str, Any] = dict(num_heads=2, feedforward_features=16)
    decoder = models.TextDecoder(50, features=8, layers=[block], rngs=rngs)
    assert_type(decoder(x), Array)
    assert_type(decoder(x, return_weights=True), nn.Outputs)
    assert_type(decoder(x, return_hidden=True, return_weights=ask), models.WithHidden)
    assert_type(decoder(x, cache=decoder.new_cache(1, room=9)), nn.Cached)
    assert_type(decoder(x, return_weights=ask), Array | nn.Outputs | models.WithHidden | nn.Cached)
    encoder = models.TextEncoder(50, features=8, layers=[block], max_length=9, rngs=rngs)
    assert_type(encoder(x, x), Array)
    assert_type(encoder(x, token_types=x, return_weights=True), nn.Outputs)
    assert_type(encoder(x, return_hidden=True), models.WithHidden)
    headed = models.EncoderWithHead(encoder, models.EncoderHead(8, 3, rngs=rngs))
    assert_type(headed(x), Array)
    assert_type(headed(x, return_weights=True), nn.Outputs)
    vision = models.VisionEncoder(image_size=8, patch_size=4, features=8, layers=[block], rngs=rngs)
    assert_type(vision(x), Array)
    assert_type(vision(x, return_hidden=True), models.WithHidden)
    both = models.EncoderDecoder(50, features=8, encoder=block, decoder=block, rngs=rngs)
    assert_type(both(x, x), Array)
    assert_type(both(x, x, target_mask=x, return_weights=True), nn.Outputs)
    assert_type(both.encode(x, return_hidden=True), models.WithHidden)
    assert_type(both.decode(x, both.project(both.encode(x))), Array)
    assert_type(both.decode(x, x, cache=both.new_cache(1, 9)), nn.Cached)
    print(models.EncoderDecoderWeights, models.EncoderDecoderHidden)

    clip = models.CLIP(text=block, vision=block, features=6, rngs=rngs)
    assert_type(clip(x, x), models.CLIPOutput)
    assert_type(clip.embed_texts(x), Array)
    assert_type(clip.embed_images(x, return_weights=True), nn.Outputs)
    assert_type(models.CLIPText.from_folder(folder)(x), Array)
    assert_type(models.CLIPVision.from_folder(folder)(x), Array)

    assert_type(models.GPT2.from_folder(folder), models.GPT2)
    assert_type(models.Llama.from_folder(folder)(x, return_weights=True), nn.Outputs)
    decoders: list[type[models.TextDecoder]] = [models.Bloom, models.Gemma, models.Gemma2, models.Gemma3]
    decoders += [
        models.GPTNeoX,
        models.GptOss,
        models.Granite,
        models.Mistral,
        models.Mixtral,
        models.OLMo2,
        models.OPT,
    ]
    decoders += [models.Phi3, models.Qwen2, models.Qwen3]
    encoders: list[type[models.TextEncoder]] = [models.Bert, models.Camembert, models.DistilBert, models.Electra]
    encoders += [models.ModernBert, models.MPNet, models.Roberta, models.XLMRoberta]
    translators: list[type[models.EncoderDecoder]] = [models.BART, models.T5, models.Whisper]
    for kind in (decoders[0], encoders[0], translators[0], models.DeiT, models.ViT):
        assert_type(kind.hugging_face, models.Family)
    loaded = models.load(folder)
    loaded(x)
    loaded.save(folder)
    assert_type(models.log_mel(x), Array)
    assert_type(models.rotary_of(config), nn.Rotary)
    models.activation_of(config, "hidden_act", "gelu")

    assert_type(models.pool(x, x, "cls"), Array)
    assert_type(models.Projection(8, 4, rngs=rngs)(x), Array)
    assert_type(models.SentenceEncoder.from_folder(folder).embed(["a", "b"]), Array)

    assert_type(models.RecallClassifier(50, rngs=rngs)(x, return_weights=True), nn.Outputs)
    assert_type(models.DigitsClassifier(rngs=rngs)(x), Array)
    assert_type(models.AttentionRegressor(rngs=rngs)(x, return_weights=ask), Array | nn.Outputs)
    assert_type(models.TransformerRegressor(rngs=rngs)(x, return_weights=True).output, Array)
    translate = models.Seq2Seq(10, 12, rngs=rngs)
    assert_type(translate(x, x, x), Array)
    assert_type(translate.encoder(x), models.DecoderState)
    assert_type(models.greedy(translate, x, bos=1, eos=2, max_length=9), models.Decoded)
    assert_type(models.beam_search(translate, x, bos=1, eos=2, max_length=9, beam_size=2), models.Beams)
    assert_type(models.greedy_continuation(decoder, x, max_new_tokens=4), models.Continuation)


def first_only(logits: Array, said: filters.Transcript) -> Array:
    return logits


def use_decoding(model: models.TextDecoder, x: Array, rng: Array) -> None:
    processors: list[filters.Processor] = [
        filters.bad_words([[1, 2]]),
        filters.forced({0: 1}),
        filters.min_length(3, 2),
        filters.min_new_tokens(3, [2]),
        filters.min_p(0.1),
        filters.no_repeat_ngrams(2),
        filters.repetition_penalty(1.2),
        filters.suppressed([3]),
        filters.suppressed_at_begin(3),
        filters.temperature(0.7),
        filters.top_k(5),
        filters.top_p(0.9),
        filters.typical(0.9),
    ]
    decodable: decoding.Decodable = model
    generated = decoding.generate(model, x, max_new_tokens=4, processors=[*processors, first_only], rng=rng)
    assert_type(generated, decoding.Generated)
    assert_type(generated.tokens, Array)
    assert_type(decoding.beam_search(decodable, x, beams=2, max_new_tokens=4), decoding.BeamsFound)
    assert_type(decoding.beam_search(model, x, beams=2, max_new_tokens=4).beams, decoding.Hypotheses)
    assert_type(decoding.speculate(model, model, x, max_new_tokens=4), decoding.Speculated)
    assert_type(decoding.serve(model, [decoding.Job([1, 2]), [3]], max_new_tokens=4), Iterator[decoding.Served])
    assert_type(decoding.stream(model, x, max_new_tokens=4), decoding.Stream)
    assert_type(decoding.attention_of(model, x, generated), decoding.Attended)
    assert_type(decoding.last_of(x, None), Array)
    state = model.new_cache(1, 9)
    assert_type(decoding.grown(state, 12), tuple[jattn.Cache, ...])
    assert_type(decoding.placed(state, 0, state), tuple[jattn.Cache, ...])
    assert_type(decoding.repeated(state, 2), tuple[jattn.Cache, ...])
    assert_type(decoding.reordered(state, x), tuple[jattn.Cache, ...])
    assert_type(decoding.rewound(state, state, x, 1), tuple[jattn.Cache, ...])
    print(decoding.Transcript)


def mean_square(model: Any, batch: Any, rng: Any) -> Array:
    return ((model(batch[0], rng=rng) - batch[1]) ** 2).mean()


def use_training(model: nnx.Module, data: Any, steps: int) -> None:
    loss: training.Loss = mean_square
    accuracy: training.Metric = lambda model, batch: model(batch[0]).mean()  # noqa: E731
    rates = [training.cosine_annealing_lr(0.1, steps), training.exponential_lr(0.1, 0.9), training.step_lr(0.1, 3)]
    rates += [
        training.multi_step_lr(0.1, [3, 5]),
        training.per_epoch(rates[0], steps),
        training.one_cycle_lr(0.1, steps),
    ]
    momentum = training.one_cycle_momentum(steps)
    optimizers = [
        training.adam(rates[0]),
        training.adamw(0.1),
        training.sgd(0.1, momentum),
        training.clip_grad_norm(1.0),
    ]
    assert_type(optimizers[0], optax.GradientTransformation)
    try:
        history = training.fit(
            model,
            data,
            loss=loss,
            optimizer=optimizers[0],
            epochs=2,
            batch_size=8,
            metrics={"accuracy": accuracy},
            plateau=training.ReduceLROnPlateau(),
        )
        assert_type(history, training.History)
    except (training.CheckpointError, training.NonFiniteError):
        pass
    print(training.PlateauState)


def use_sharding(model: nnx.Module, mesh: Mesh) -> None:
    rules: sharding.Rules = sharding.layout(mesh)
    sharding.check_mesh(mesh)
    assert_type(sharding.axes(model), dict[str, tuple[str | None, ...] | None])
    assert_type(sharding.mesh_axes_of("heads", mesh, rules), tuple[str, ...])
    sharding.specs(model, mesh, "tensor")
    sharding.shard(model, mesh, rules)
    sharding.divide_sequence(model, "sequence")


def use_heads(model: nn.TransformerBlock, data: Any, x: Array, folder: Path) -> None:
    task = heads.Task(loss=mean_square, score=lambda model, data: 0.5, batch_size=8, metrics=tuple(heads.METRICS))
    measured = heads.importance(model, data, loss=mean_square, batch_size=8)
    assert_type(measured, heads.Importance)
    rows: tuple[heads.Row, ...] = measured.rows
    candidates = heads.try_out(model, data, measured, task=task, shares=[0.5])
    assert_type(candidates, list[heads.Candidate])
    assert_type(heads.best_metric(candidates), str)

    def tuned(model: Any, data: Any) -> Any:
        return model

    refined = heads.refine(model, data, data, task=task, fine_tune=tuned, share=0.5, metric="l1")
    assert_type(refined, list[heads.Round])
    folds = heads.cross_validate(data, task=task, fresh=lambda data: model, share=0.5)
    assert_type(folds, list[heads.Fold])
    found = heads.study(model, data, data, task=task, predict=tuned, allowed_drop=0.01)
    assert_type(found, heads.Study)
    assert_type(found.chosen, heads.Option)
    assert_type(heads.decision(found), str)
    assert_type(heads.report(found, folder), Path)
    assert_type(heads.plot_importance(measured), Figure)
    assert_type(heads.prune(model, {"attention": [0]}), nn.TransformerBlock)
    assert_type(heads.gated(model, {"attention": x}), nn.TransformerBlock)
    assert_type(heads.layers(model), dict[str, Any])
    assert_type(heads.counts(model), dict[str, int])
    assert_type(heads.speed({"a": model}, data, predict=tuned), dict[str, list[float]])
    assert_type(heads.attention_rollout([x]), Array)
    print(heads.table(), rows)


def use_plots(x: Array) -> None:
    view = plots.attention_view(["a", "b"], x)
    assert_type(view, plots.AttentionView)
    assert_type(plots.curves({"loss": x}), Figure)
    assert_type(plots.heatmaps(x), Figure)


class Doubling(portable.Exportable, nnx.Module):
    def __call__(self, x: Array) -> Array:
        return 2 * x

    def inputs(self) -> portable.Inputs:
        return portable.Inputs({"x": "float[b,t]"})


def use_portable(folder: Path) -> None:
    Doubling().export(folder)
    portable.export(Doubling(), folder, {"x": "float[b,t]"})
    with portable.for_platforms("cpu", "tpu"):
        jax.jit(Doubling())


def use_weights(model: nn.TransformerBlock, theirs: Any, folder: Path, ask: bool) -> None:
    table = weights.Table(
        [
            weights.convert("a", "b", lambda x: x, lambda x: x),
            weights.dropped("c"),
            weights.merge(["d", "e"], "f"),
            weights.part("g", "h", slice(0, 4)),
            weights.prefixed("model."),
            weights.rename("i", "j"),
            weights.split("k", ["l", "m"]),
            weights.tied("n", "o"),
            weights.transposed("p"),
            weights.unstack("q", ["r", "s"]),
            weights.zeros("t"),
        ]
    )
    weights.register_map(nnx.Linear, table)
    assert_type(weights.load_state_dict(model, theirs.state_dict(), rename=table), nn.TransformerBlock)
    weights.state_dict(model)
    weights.save(model, folder)
    assert_type(weights.to_numpy(theirs), np.ndarray)
    weights.to_tensor(np.ones(3))
    entries = files.load(folder)
    assert_type(entries, dict[str, np.ndarray])
    files.save(folder, files.to_arrays("weights", entries))
    files.to_tensor(files.to_numpy(theirs))


def use_parity(theirs: Any, ours: nnx.Module, x: Array) -> None:
    report = parity.compare(theirs, ours, {"x": x})
    assert_type(report, parity.Report)
    assert_type(report.equal, bool)
    trained = parity.trajectory(
        theirs,
        ours,
        [x],
        loss=mean_square,
        torch_loss=lambda model, batch: model(batch).sum(),
        optimizer=training.adam(),
        torch_optimizer=lambda parameters: theirs,
        steps=3,
    )
    assert_type(trained, parity.TrajectoryReport)
    causes: list[parity.Cause] = parity.CAUSES
    print(causes)
