"""What kind of few-step model it is, and the property values and the scheduler that suit it."""

import re

KINDS = ("turbo", "lcm", "tcd", "lightning", "plain")
"""`turbo`: one step. Four steps: `lcm` (latent consistency), `tcd` (trajectory consistency, and Hyper-SD), `lightning` (and
fine-tunes of SDXL-Turbo). `plain`: made for twenty steps or more."""
FEW = ("turbo", "lcm", "tcd", "lightning")
SCHEDULERS = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}


def tokens(name):
    """The words of a name in lower case, split at whatever is no letter and where capitals tell: DreamShaperXL_Turbo, sd_xl_turbo_1.0, Hyper-SD15."""
    known = r"(?:LCM|TCD|SDXL|SD|XL)(?![a-z]{2}|[A-Z](?![a-z]))"
    found = re.findall(rf"{known}|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)
    joined = {"hypersd": ["hyper", "sd"], "hypersdxl": ["hyper", "sdxl"], "sdturbo": ["sd", "turbo"], "sdxlturbo": ["sdxl", "turbo"]}
    return [part for word in found for part in joined.get(word.lower(), [word.lower()])]


def kind_of_name(name, xl):
    """The kind that a name tells of, or None."""
    words = tokens(name)
    # Their own word for it is a common one: only with what it is for.
    if any(a == "hyper" and b in ("sd", "sdxl") for a, b in zip(words, words[1:])):
        return "tcd"
    for word in FEW:
        if word in words:
            # One step is what SD-Turbo and SDXL-Turbo were made for; what others made of the latter takes four or more.
            own = re.match("sd( ?xl)? turbo", " ".join(tokens(name.rpartition("/")[2])))
            return "lightning" if word == "turbo" and xl and not own else word
    return None


def kind(names, scheduler, distilled, loras, xl=False):
    """One of KINDS, by what the model is called: `names`, the first that tells; the scheduler's class; the LoRAs' names, which come first.

    Weights do not tell how they were trained. `distilled`: the U-Net is told the guidance scale.
    """
    for name in loras:
        if found := kind_of_name(name, xl):
            return found
    by_class = {v: k for k, v in SCHEDULERS.items()}.get(scheduler)
    if distilled or by_class:
        return by_class or "lcm"
    return next(filter(None, (kind_of_name(n, xl) for n in names)), "plain")


def scheduler(config, kind, asked):
    """The scheduler's configuration with the class that the element chooses the method by.

    `asked`: keep, lcm or tcd; None for what suits the kind of model. The noise schedule stays what it is.
    """
    name = SCHEDULERS.get(asked or kind)
    if name is None or asked == "keep" or config.get("_class_name") == name:
        return config
    return {**config, "_class_name": name, "original_inference_steps": config.get("original_inference_steps") or 50}


def choose(kind, distilled, unet_config, pixels_per_latent, size):
    """-> the `[defaults]` table.

    One step for Turbo and four for the others. The strength gives up half the picture. Turbo, TCD, Hyper-SD and Lightning
    were trained to need no guidance, a guidance-distilled model has it built in; the others take residual guidance at the
    published weight.
    """
    table = {"prompt": "a painting, highly detailed", "steps": 1 if kind == "turbo" else 4, "strength": 0.5}
    if kind in ("turbo", "tcd", "lightning") or distilled:
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
