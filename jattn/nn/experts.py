"""A network on each position that is one of several, as a router chooses. n is the number of tokens, e of experts."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn._engine.platform import where_lowered
from jattn.nn.dropout import Dropout, split
from jattn.nn.feed_forward import Activation, GateFn, hidden_of, is_gated
from jattn.nn.layers import Initializer, Linear, LinearGeneral, add_bias, default_bias_init, default_kernel_init

__all__ = ["MixtureOfExperts", "Routing"]


class Routing(NamedTuple):
    """Which experts each token goes to; `MixtureOfExperts.route` makes it."""

    experts: Int[Array, "*b t k"]
    shares: Float[Array, "*b t k"]
    logits: Float[Array, "*b t e"]  # of all experts, for a loss that balances them


class MixtureOfExperts(nnx.Module):
    """Several networks, of which each token goes through those that a router prefers for it.

    ``output = sum of share(i) expert_i(x)`` over the ``experts_per_token`` experts i of the largest ``router(x)``, each
    of them as `FeedForward`. No token is dropped, however many prefer the same expert.

    Args:
        features: m, the width of input and output.
        hidden_features: f, the width between.
        num_experts: e, how many there are.
        experts_per_token: k, how many of them a token goes through.
        shares: ``"of_chosen"``, a softmax over the logits of the k that were chosen, or ``"of_all"``, over those of
            all, so that the shares of the k add up to less than 1.
        activation, gated: as in `FeedForward`.
        use_bias, router_bias: whether the experts have biases, and the router.
        dropout_rate: in training, in [0, 1), where `FeedForward` has it.
        implementation: ``"dense"``, each expert on each token, the rest times 0; ``"ragged"``, tokens sorted by their
            experts, by ``jax.lax.ragged_dot``. By default the first where the program is lowered for a CPU, which has
            no such product of its own, and the second elsewhere.
        kernel_init, bias_init, dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, 2017; Jiang
    et al., Mixtral of Experts, 2024.

    Example:

        >>> network = MixtureOfExperts(
        ...     8, 16, num_experts=4, experts_per_token=2, activation="silu", gated=True, rngs=nnx.Rngs(0)
        ... )
        >>> x = jnp.ones((2, 5, 8))
        >>> network(x).shape, network.route(x).experts.shape
        ((2, 5, 8), (2, 5, 2))
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        num_experts: int,
        experts_per_token: int,
        shares: Literal["of_chosen", "of_all"] = "of_chosen",
        activation: Activation = "relu",
        gated: bool | GateFn = False,
        use_bias: bool = True,
        router_bias: bool = False,
        dropout_rate: float = 0.0,
        implementation: Literal["dense", "ragged"] | None = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.positive_integers(features=features, hidden_features=hidden_features)
        checks.positive_integers(num_experts=num_experts)
        checks.number("experts_per_token", experts_per_token, f"[1, {num_experts}]", integer=True)
        checks.one_of("shares", shares, ("of_chosen", "of_all"))
        checks.one_of("implementation", implementation, (None, "dense", "ragged"))
        checks.flag("use_bias", use_bias)
        inits: dict[str, Any] = dict(kernel_init=kernel_init, bias_init=bias_init)
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def layer(width: int, out: int) -> LinearGeneral:
            return LinearGeneral(width, out, batch_axis={0: num_experts}, use_bias=use_bias, **inits, **types)

        self.router = Linear(features, num_experts, use_bias=checks.flag("router_bias", router_bias), **inits, **types)
        self.linear1 = layer(features, hidden_features)
        self.gate = layer(features, hidden_features) if is_gated(activation, gated) else None
        self.linear2 = layer(hidden_features, features)
        self.activation: Activation = activation
        self.gated = gated
        self.experts_per_token, self.shares = experts_per_token, shares
        self.implementation = implementation
        self.dropout = Dropout(dropout_rate)

    def route(self, x: Float[Array, "*b t m"]) -> Routing:
        """To which experts each token goes, and with which shares.

        Example:

            >>> network = MixtureOfExperts(8, 16, num_experts=4, experts_per_token=2, rngs=nnx.Rngs(0))
            >>> network.route(jnp.ones((3, 8))).shares.shape
            (3, 2)
        """
        x = checks.floating("x", x, "*b t m", 1)
        checks.width("x", x, self.router.in_features)
        logits = self.router(x)
        wide = logits.astype(at_least_float32(logits))
        chosen, experts = jax.lax.top_k(wide, self.experts_per_token)
        if self.shares == "of_chosen":
            shares = jax.nn.softmax(chosen, axis=-1)
        else:
            shares = jnp.exp(chosen - jax.nn.logsumexp(wide, axis=-1, keepdims=True))
        return Routing(experts, shares, logits)

    def __call__(self, x: Float[Array, "*b t m"], *, rng: PRNGKeyArray | None = None) -> Float[Array, "*b t m"]:
        """The network's output; ``rng`` a ``jax.random.key`` for dropout in training."""
        routing = self.route(x)
        inner, outer = split(rng, 2)
        k = self.experts_per_token
        arguments = (x.reshape(-1, x.shape[-1]), routing.experts.reshape(-1, k), routing.shares.reshape(-1, k))
        ways: dict[str, Callable[..., Array]] = {"dense": self._dense, "ragged": self._ragged}
        if self.implementation is not None:
            output = ways[self.implementation](*arguments, inner)
        else:
            output = where_lowered(
                lambda platform, given: ways["dense" if platform.is_cpu else "ragged"](*given, inner),
                arguments,
                lambda platform: platform.is_cpu,
            )
        return self.dropout(output.reshape(x.shape), outer)

    def _dense(
        self, x: Float[Array, "n m"], experts: Int[Array, "n k"], shares: Float[Array, "n k"], rng: Any
    ) -> Float[Array, "n m"]:
        """Each expert on each token: two products, the second of which sums over experts."""
        e = self.linear1.kernel.shape[0]
        chosen = jax.nn.one_hot(experts, e, dtype=shares.dtype)
        share = jnp.einsum("nke,nk->ne", chosen, shares)

        def project(layer: LinearGeneral, x: Array) -> Array:
            x, kernel, bias = _in_one_dtype(layer, x)
            return add_bias(jnp.einsum("nm,emf->nef", x, kernel), bias)

        hidden = self.dropout(self._hidden(lambda layer: project(layer, x)), rng)
        hidden, kernel, bias = _in_one_dtype(self.linear2, hidden)
        share = share.astype(hidden.dtype)
        output = jnp.einsum("nef,efm->nm", hidden * share[..., None], kernel)
        return output if bias is None else output + share @ bias

    def _ragged(
        self, x: Float[Array, "n m"], experts: Int[Array, "n k"], shares: Float[Array, "n k"], rng: Any
    ) -> Float[Array, "n m"]:
        """Tokens, each k times, sorted by their experts, so that each expert has a stretch of rows."""
        (n, _), k = x.shape, self.experts_per_token
        order = jnp.argsort(experts.reshape(-1), stable=True)
        of_row, tokens = experts.reshape(-1)[order], order // k
        sizes = jnp.bincount(of_row, length=self.linear1.kernel.shape[0])

        def project(layer: LinearGeneral, rows: Array) -> Array:
            rows, kernel, bias = _in_one_dtype(layer, rows)
            product = jax.lax.ragged_dot(rows, kernel, sizes.astype(jnp.int32))
            return product if bias is None else product + bias[of_row]

        rows = x[tokens]
        hidden = self.dropout(self._hidden(lambda layer: project(layer, rows)), rng)
        output = project(self.linear2, hidden)
        output = output * shares.reshape(-1)[order, None].astype(output.dtype)
        return jnp.zeros((n, output.shape[-1]), output.dtype).at[tokens].add(output)

    def _hidden(self, project: Callable[[LinearGeneral], Array]) -> Array:
        gate = None if self.gate is None else project(self.gate)
        return hidden_of(project(self.linear1), gate, self.activation, self.gated)


def _in_one_dtype(layer: LinearGeneral, x: Array) -> tuple[Array, Array, Array | None]:
    """x, and a layer's kernel ``e m f`` and biases ``e f``."""
    bias = None if layer.bias is None else layer.bias[...]
    return layer.promote_dtype((x, layer.kernel[...], bias), dtype=layer.dtype)
