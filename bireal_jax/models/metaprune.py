"""MetaPruning (Liu et al., ICCV 2019): a PruningNet that generates the weights of every pruned network of a layout.

The rules of the authors' code, but for one: channels are masked, not cropped. Weights are generated at full width and
what is pruned is set to zero behind each batch norm, which gives the same network, and shapes that never change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bireal_jax.binary.layers import MOMENTUM, Dense, conv2d, symmetric, torch_uniform
from bireal_jax.binary.norm import Over, normalize_batch
from bireal_jax.binary.pool import global_avg_pool, max_pool
from bireal_jax.models.layouts import IMAGE, SCALES, Block, Conv, Layout, scaled
from bireal_jax.models.network import Network

# (block, convolution, x, name) -> batch norm of the convolution
Unit = Callable[[Block, Conv, jax.Array, str], jax.Array]


def features(layout: Layout, x: jax.Array, unit: Unit) -> jax.Array:
    """All of a network but its head: [n, h, w, channels] -> [n, width of the last slot]."""

    def act(x):
        return jnp.clip(x, 0, 6) if layout.relu6 else jax.nn.relu(x)

    for i, block in enumerate(layout.blocks):
        y = x
        for k, conv in enumerate(block.convs):
            y = unit(block, conv, y, f"block{i}_conv{k + 1}")
            y = act(y) if conv.act else y
        if isinstance(block.shortcut, Conv):
            y = y + unit(block, block.shortcut, x, f"block{i}_shortcut")
        elif block.shortcut:
            y = y + x
        x = act(y) if block.act else y
        if i == 0 and layout.resnet:
            x = max_pool(x)
    return global_avg_pool(x)


class Linear(nn.Module):
    """x @ w + b with one parameter `kernel` [in + 1, out], whose last row is b: the authors let biases decay, too."""

    features: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [in] -> [out]
        kernel = self.param("kernel", torch_uniform(len(x)), (len(x) + 1, self.features), self.param_dtype)
        return x.astype(self.param_dtype) @ kernel[:-1] + kernel[-1]


class Generator(nn.Module):
    """The kernel of a convolution from the scales of its block: linear, ReLU, linear, reshape."""

    shape: tuple[int, int, int, int]
    hidden: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, code):  # [scales] -> [kh, kw, cin, cout]
        kh, kw, cin, cout = self.shape
        hidden = jax.nn.relu(Linear(self.hidden, self.param_dtype, name="fc_a")(code))
        flat = Linear(kh * kw * cin * cout, self.param_dtype, name="fc_b")(hidden)
        return flat.reshape(self.shape)


class ScaleNorm(nn.Module):
    """A batch norm for each of the 31 scales of its channels: statistics, and scale and bias where `affine`, [31, c].

    A row is used and updated where its scale is. Attributes as of `layers.BatchNorm`.
    """

    affine: bool
    over: Over = None
    momentum: float = MOMENTUM
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, scale_id, train: bool):  # [n, h, w, c], [] -> [n, h, w, c]
        shape, wide = (SCALES, x.shape[-1]), jnp.promote_types(self.dtype, jnp.float32)
        means = self.variable("batch_stats", "mean", jnp.zeros, shape, self.param_dtype)
        variances = self.variable("batch_stats", "var", jnp.ones, shape, self.param_dtype)
        scale, bias = jnp.ones(shape[1:], wide), jnp.zeros(shape[1:], wide)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)[scale_id].astype(wide)
            bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)[scale_id].astype(wide)
        if not train:
            mean, var = means.value[scale_id].astype(wide), variances.value[scale_id].astype(wide)
            return ((x.astype(wide) - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias).astype(self.dtype)
        over = None if self.is_initializing() else self.over
        y, mean, var = normalize_batch(x.astype(self.dtype), scale, bias, self.epsilon, over)
        if not self.is_initializing():
            for table, new in ((means, mean), (variances, var)):
                row = self.momentum * table.value[scale_id] + (1 - self.momentum) * new.astype(self.param_dtype)
                table.value = table.value.at[scale_id].set(row)
        return y


class OfLayout(Network, kw_only=True):
    """A network of a layout.

    Attributes, beside those of `Network`:
      layout: the network.
    """

    layout: Layout

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each gene has."""
        return self.layout.sizes

    @property
    def total_stride(self) -> int:
        """The product of all strides."""
        return self.layout.stride


class PruningNet(OfLayout):
    """Every pruned network of a layout, by genes.

    With `train` and no genes, random ones are drawn: uniform, one draw for a batch, from the generator "genes". In
    evaluation without genes it is the widest network.
    """

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0, genes=None):  # [n, h, w, channels] -> [n, num_classes]
        """`genes`: integers [num_genes]; in a vector, not in the shapes, so that all networks share one program."""
        layout = self.layout
        widest = jnp.full(layout.num_genes, SCALES - 1)
        if genes is None:
            random = train and not self.is_initializing()
            genes = jax.random.randint(self.make_rng("genes"), widest.shape, 0, SCALES) if random else widest
        ids = [jnp.asarray(SCALES - 1) if gene is None else genes[gene] for gene in layout.genes]

        def unit(block, conv, x, name):
            base, cin, side = layout.bases[conv.out], x.shape[-1], conv.kernel
            code = jnp.stack([ids[slot] for slot in block.code]).astype(self.param_dtype) * 0.03 + 0.1
            shape = (side, side, 1 if conv.depthwise else cin, base)
            kernel = Generator(shape, block.hidden, self.param_dtype, name=f"{name}_weights")(code)
            if not self.is_initializing():
                self.sow("kernels", name, kernel)  # kept where asked for: see `crop`
            y = conv2d(
                x.astype(self.dtype), kernel.astype(self.dtype), (conv.stride,) * 2, symmetric((side, side)),
                base if conv.depthwise else 1,
            )  # fmt: skip
            y = ScaleNorm(conv.affine, self.bn_over, **self.precision, name=f"{name}_bn")(y, ids[conv.out], train)
            return y * (jnp.arange(base) < scaled(base, ids[conv.out])).astype(self.dtype)

        return Dense(self.num_classes, **self.precision, name="head")(features(layout, x, unit))


class Pruned(OfLayout):
    """The network that genes name, with weights of its own: what is trained from scratch in the end.

    `genes`: integers; () for the whole network.
    """

    genes: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x, train: bool = False, progress=1.0):  # [n, h, w, channels] -> [n, num_classes]
        genes = self.genes or [size - 1 for size in self.sizes]
        widths, norm = self.layout.widths(genes), self.real_layers()[1]

        def unit(block, conv, x, name):
            y = PlainConv(conv, widths[conv.out], **self.precision, name=name)(x)
            return norm(name=f"{name}_bn")(y, train)

        return Dense(self.num_classes, **self.precision, name="head")(features(self.layout, x, unit))


class PlainConv(nn.Module):
    """A row of a layout as a layer with `out` channels; parameter `kernel`, or `depthwise`, which does not decay."""

    row: Conv
    out: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):  # [n, h, w, cin] -> [n, h / stride, w / stride, out]
        side, cin = self.row.kernel, 1 if self.row.depthwise else x.shape[-1]
        name = "depthwise" if self.row.depthwise else "kernel"
        kernel = self.param(name, torch_uniform(side**2 * cin), (side, side, cin, self.out), self.param_dtype)
        return conv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), (self.row.stride,) * 2, symmetric((side, side)),
            self.out if self.row.depthwise else 1,
        )  # fmt: skip


def crop(net: PruningNet, variables: Any, genes: Sequence[int], image_shape: tuple[int, int, int]) -> Any:
    """The variables of `Pruned` that compute what the PruningNet does under these genes.

    Args:
      net, variables: the PruningNet.
      genes: of the network wanted.
      image_shape: (h, w, c) of the input.
    """
    layout, widths, scales = net.layout, net.layout.widths(genes), net.layout.scales(genes)
    image = jnp.zeros((1, *image_shape), net.dtype)
    kernels = net.apply(variables, image, genes=jnp.asarray(genes), mutable=["kernels"])[1]["kernels"]
    params: dict[str, Any] = {"head": variables["params"]["head"]}
    stats: dict[str, Any] = {}
    for i, block in enumerate(layout.blocks):
        rows = {f"block{i}_conv{k + 1}": conv for k, conv in enumerate(block.convs)}
        if isinstance(block.shortcut, Conv):
            rows[f"block{i}_shortcut"] = block.shortcut
        for name, conv in rows.items():
            out, row = widths[conv.out], scales[conv.out]
            cin = 1 if conv.depthwise else image_shape[2] if conv.source == IMAGE else widths[conv.source]
            params[name] = {"depthwise" if conv.depthwise else "kernel": kernels[name][0][:, :, :cin, :out]}
            learned = variables["params"].get(f"{name}_bn")
            params[f"{name}_bn"] = (
                {leaf: learned[leaf][row, :out] for leaf in ("scale", "bias")}
                if learned
                else {"scale": jnp.ones(out, net.param_dtype), "bias": jnp.zeros(out, net.param_dtype)}
            )
            tables = variables["batch_stats"][f"{name}_bn"]
            stats[f"{name}_bn"] = {leaf: table[row, :out] for leaf, table in tables.items()}
    return {"params": params, "batch_stats": stats}
