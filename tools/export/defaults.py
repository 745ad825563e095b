"""Property values that suit a kind of model, for `[defaults]`."""

import re

FEW = ("turbo", "lcm", "tcd", "lightning", "hyper")


def kind(label, scheduler, distilled, loras):
    """`turbo` (one step), `lcm` (a few steps) or `plain` (made for twenty steps or more), by what the model is called.

    Weights do not tell how they were trained. Names do: of the model, of its scheduler and of the LoRAs.
    """
    words = lambda s: set(re.split(r"[^a-z0-9]+", s.lower()))  # noqa: E731
    if distilled or scheduler.startswith(("LCM", "TCD")):
        return "lcm"
    for name in [*loras, label]:
        # lcm-lora-sdv1-5, Hyper-SD15, sdxl_lightning_4step, sd-turbo, dreamshaperLCM
        found = [w for w in FEW if w in words(name) or re.search(rf"{w}(?![a-z])", name.lower()) or name.lower().startswith(w)]
        if found:
            return "turbo" if found[0] == "turbo" else "lcm"
    return "plain"


def choose(kind, xl, distilled, unet_config, pixels_per_latent, size):
    """-> the `[defaults]` table.

    One step for Turbo and four for the others. The strength gives up half the picture. Turbo was trained to need no
    guidance, a guidance-distilled model has it built in; the others take residual guidance at the published weight.
    """
    table = {"prompt": "a painting, highly detailed", "steps": 1 if kind == "turbo" else 4, "strength": 0.5}
    if kind == "turbo" or distilled:
        table |= {"guidance_scale": 1.0, "cfg_type": "none"}
    else:
        table |= {"guidance_scale": 1.2, "cfg_type": "self"}
    if size is None:
        trained = unet_config.get("sample_size")
        trained = trained if isinstance(trained, int) else 64
        table["size"] = 512 if kind == "turbo" and trained > 64 else max(8, min(8192, trained * pixels_per_latent))
    else:
        table["width"], table["height"] = size
    return table


def merge(table, asked):
    """The user's values over the chosen ones."""
    table = {**table, **asked}
    if "t_index_list" in asked:
        table.pop("steps", None)
        table.pop("strength", None)
    return table
