"""What each graph takes and gives: names, types, shapes, and which of them may vary."""

import dataclasses
import typing

import torch

from . import kinds, modules


@dataclasses.dataclass(frozen=True)
class Axis:
    """A side that may vary: any multiple of `multiple`. Axes of one name are equal in all inputs."""

    name: str
    multiple: int = 1


@dataclasses.dataclass(frozen=True)
class Input:
    """An input; a side is a number or an Axis. `draw` makes values of a given shape and type from a generator."""

    name: str
    shape: tuple
    draw: typing.Callable
    integer: bool = False


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """A graph to be. `reference` is the network through its library's own entry point, to compare with."""

    component: str
    module: torch.nn.Module
    inputs: list
    outputs: dict
    """Name: sides, as far as they are known."""
    reference: typing.Callable
    sizes: list
    """Values of the axes to trace with, then those to check with."""


def normal(scale=1.0):
    def draw(shape, generator):
        return torch.randn(shape, generator=generator) * scale

    return draw


def uniform(low, high):
    def draw(shape, generator):
        return torch.rand(shape, generator=generator) * (high - low) + low

    return draw


def integers(high):
    def draw(shape, generator):
        return torch.randint(0, high, shape, generator=generator)

    return draw


def text_ids(config):
    """Random words between a start and an end token, then padding with the end token."""
    last = config["vocab_size"] - 1

    def draw(shape, generator):
        ids = torch.randint(0, last - 1, shape, generator=generator)
        ids[:, 0] = last - 1
        for row in range(shape[0]):
            ids[row, min(shape[1] - 1, 3 + 2 * row) :] = last
        return ids

    return draw


def time_ids(shape, generator):
    """Original size, crop and target size in pixels, three pairs."""
    sizes = torch.randint(4, 16, shape, generator=generator) * 64
    sizes[:, 2:4] = 0
    return sizes.float()


def text_encoder(name, model, xl, clip_skip):
    """`last_hidden_state` after the final norm for SD 1 and 2; for XL the raw state before the last layer, and the pooled projection."""
    config = model.config.to_dict()
    skip = clip_skip + 1 if xl else clip_skip
    module = modules.TextEncoder(model, skip, normed=not xl).eval()
    hidden = "penultimate_hidden_state" if xl else "last_hidden_state"
    width = config["hidden_size"]
    batch, length = Axis("batch"), Axis("sequence")
    outputs = {hidden: (batch, length, width)}
    if module.projection is not None:
        outputs["text_embeds"] = (batch, config["projection_dim"])

    def reference(input_ids):
        out = model(input_ids, output_hidden_states=True)
        state = out.hidden_states[-(skip + 1)]
        if not xl:
            # Without skipping it is the same as last_hidden_state; the state before the norm is hidden_states[-1].
            state = out.last_hidden_state if skip == 0 else module.text.final_layer_norm(state)
        return [state] + ([out.text_embeds] if "text_embeds" in outputs else [])

    longest = config["max_position_embeddings"]
    sizes = [{"batch": b, "sequence": s} for b, s in [(2, longest), (1, longest), (3, max(8, longest // 2))]]
    return GraphSpec(name, module, [Input("input_ids", (batch, length), text_ids(config), integer=True)], outputs, reference, sizes)


ONE_ROW_FROM = 32 * 32
"""Latent pixels from which a fixed size is checked with one row only: attention over n pixels takes n² numbers for each head and row."""


def of_size(sizes, latent_pixels):
    """The values of the axes that a graph of a fixed size is traced and checked with; height and width are no axes there."""
    return [sizes[0], sizes[1]] if latent_pixels is not None and latent_pixels > ONE_ROW_FROM else sizes


def unet(model, xl, size, rows):
    """The U-Net. `size` is the (width, height) of a latent, or None; `rows` the batch, or None."""
    config = model.config
    distilled = config.time_cond_proj_dim is not None
    module = modules.Unet(model, xl, distilled).eval()
    multiple = kinds.latent_multiple(config)
    batch = Axis("batch") if rows is None else rows
    height, width = (Axis("height", multiple), Axis("width", multiple)) if size is None else (size[1], size[0])
    text = Axis("sequence")
    sample = (batch, config.in_channels, height, width)
    inputs = [
        Input("sample", sample, normal()),
        Input("timestep", (batch,), integers(1000), integer=True),
        Input("encoder_hidden_states", (batch, text, config.cross_attention_dim), normal()),
    ]
    if xl:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs += [Input("text_embeds", (batch, pooled), normal()), Input("time_ids", (batch, 6), time_ids)]
    if distilled:
        inputs.append(Input("timestep_cond", (batch, config.time_cond_proj_dim), uniform(-1, 1)))

    def reference(*tensors):
        return [module(*tensors)]

    m = multiple
    # Odd multiples, not square, one and two chunks of text: what a size that was baked in would fail on.
    sizes = [
        {"batch": 2, "height": 2 * m, "width": 4 * m, "sequence": 77},
        {"batch": 1, "height": 3 * m, "width": 5 * m, "sequence": 77},
        {"batch": 3, "height": 5 * m, "width": m, "sequence": 154},
    ]
    return GraphSpec("unet", module, inputs, {"out_sample": sample}, reference, of_size(sizes, size and size[0] * size[1]))


def vae(model, size):
    """Encoder and decoder. `size` is the (width, height) of a picture, or None."""
    config = model.config
    tiny = type(model).__name__ == "AutoencoderTiny"
    scale = kinds.vae_scale(config)
    batch = Axis("batch")
    latents = config.latent_channels

    def sides(multiple, divide):
        if size is None:
            return Axis("height", multiple), Axis("width", multiple)
        return size[1] // divide, size[0] // divide

    big, small = sides(scale, 1), sides(1, scale)

    def encode(sample):
        if tiny:
            return [model.encode(sample).latents]
        return [model.encode(sample).latent_dist.parameters]

    def decode(latent):
        return [model.decode(latent).sample]

    def sizes(unit):
        values = [{"batch": b, "height": h * unit, "width": w * unit} for b, h, w in [(2, 4, 6), (1, 7, 5), (3, 9, 3)]]
        return of_size(values, size and size[0] * size[1] // scale**2)

    name, channels = ("latent_sample", latents) if tiny else ("latent_parameters", 2 * latents)
    free = size is None
    result = ("height_latent", "width_latent"), ("height_out", "width_out")
    encoder = GraphSpec(
        "vae_encoder", modules.VaeEncoder(model).eval(), [Input("sample", (batch, 3, *big), uniform(-1, 1))],
        {name: (batch, channels, *(map(Axis, result[0]) if free else small))}, encode, sizes(scale),
    )
    decoder = GraphSpec(
        "vae_decoder", modules.VaeDecoder(model).eval(), [Input("latent_sample", (batch, latents, *small), normal())],
        {"sample": (batch, 3, *(map(Axis, result[1]) if free else big))}, decode, sizes(1),
    )
    return [encoder, decoder]
