"""The networks as they are exported: plain tensors in, plain tensors out."""

import torch
from torch import nn


def causal_mask(length, dtype, device):
    """[1, 1, L, L]: 0 where a token may look (itself and what is before it), the lowest number elsewhere.

    The lowest number of the type, not minus infinity: it survives f16 and never makes a NaN.
    """
    rows = torch.arange(length, device=device)
    ahead = rows[None, :] > rows[:, None]
    return torch.where(ahead, torch.finfo(dtype).min, 0.0).to(dtype)[None, None]


class TextEncoder(nn.Module):
    """CLIP's text encoder, token ids [B, L] to one layer's hidden state [B, L, D], and with a projection to text embeddings [B, P] too.

    `skip` layers at the end are left out of the hidden state. `normed`: the final layer norm is applied to it, as
    Stable Diffusion 1 and 2 do and XL does not. Layers nothing depends on are not in the graph.
    """

    def __init__(self, model, skip, normed):
        super().__init__()
        self.text = getattr(model, "text_model", model)
        self.projection = getattr(model, "text_projection", None)
        self.eos = model.config.eos_token_id
        layers = self.text.encoder.layers
        self.used = len(layers) - skip
        self.layers = layers if self.projection is not None else layers[: self.used]
        self.normed = normed

    def forward(self, input_ids):
        state = self.text.embeddings(input_ids=input_ids)
        mask = causal_mask(input_ids.shape[1], state.dtype, state.device)
        hidden = state
        for index, layer in enumerate(self.layers):
            state = layer(state, mask)
            state = state[0] if isinstance(state, tuple) else state
            if index + 1 == self.used:
                hidden = state
        if self.normed:
            hidden = self.text.final_layer_norm(hidden)
        if self.projection is None:
            return hidden
        last = self.text.final_layer_norm(state)
        # CLIP pools at the end token: the highest id there is, or for newer configurations the named one.
        ids = input_ids.to(torch.int32)
        at = ids.argmax(dim=-1) if self.eos == 2 else (ids == self.eos).to(torch.int32).argmax(dim=-1)
        pooled = last.gather(1, at[:, None, None].expand(-1, 1, last.shape[2]))[:, 0]
        return hidden, self.projection(pooled)


class InWeightsType(nn.Module):
    """A layer without weights, which computes in f32, with its output in the type of `weight`.

    torch puts f16 and f32 together in f32; ONNX's Concat, which becomes of it, wants one type.
    """

    def __init__(self, layer, owner):
        super().__init__()
        self.layer = layer
        # In a list, so that it does not become a part of this module too.
        self.owner = [owner]

    def forward(self, values):
        return self.layer(values).to(self.owner[0].weight.dtype)


class Unet(nn.Module):
    """The U-Net: latents [B, 4, h, w], timesteps [B] and text [B, L, D], and what the kind of model adds, to its prediction [B, 4, h, w]."""

    def __init__(self, unet, xl, distilled):
        super().__init__()
        self.unet = unet
        if xl and not isinstance(unet.add_time_proj, InWeightsType):
            unet.add_time_proj = InWeightsType(unet.add_time_proj, unet.add_embedding.linear_1)
        self.names = ["sample", "timestep", "encoder_hidden_states"]
        self.names += ["text_embeds", "time_ids"] if xl else []
        self.names += ["timestep_cond"] if distilled else []

    def forward(self, *tensors):
        at = dict(zip(self.names, tensors))
        added = {k: at[k] for k in ("text_embeds", "time_ids") if k in at} or None
        return self.unet(
            at["sample"], at["timestep"], at["encoder_hidden_states"],
            timestep_cond=at.get("timestep_cond"), added_cond_kwargs=added, return_dict=False,
        )[0]


class VaeEncoder(nn.Module):
    """Picture [B, 3, H, W] in [-1, 1] to the latent (tiny) or to mean and log variance of its distribution (KL), before scaling."""

    def __init__(self, vae):
        super().__init__()
        self.encoder = vae.encoder
        self.quant = getattr(vae, "quant_conv", None)

    def forward(self, sample):
        latent = self.encoder(sample)
        return latent if self.quant is None else self.quant(latent)


class VaeDecoder(nn.Module):
    """Latent [B, C, h, w], unscaled, to the picture [B, 3, H, W] in about [-1, 1]."""

    def __init__(self, vae):
        super().__init__()
        self.decoder = vae.decoder
        self.quant = getattr(vae, "post_quant_conv", None)

    def forward(self, latent_sample):
        return self.decoder(latent_sample if self.quant is None else self.quant(latent_sample))
