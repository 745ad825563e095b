"""Fused LoRAs: equal to the formula W + scale·(alpha/rank)·up·down, and to diffusers' own fusing."""

import diffusers
import peft
import safetensors.torch
import torch

from export import lora, options, source
from export.tests import common

RANK, ALPHA = 3, 6.0
TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    # All that kohya trains: diffusers tells the format by the output projections.
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}


def networks(folder):
    origin = source.FolderSource(folder)
    return {p: origin.load(p) for p in ["unet", *origin.text_encoders]}, origin.xl


def adapted(folder, path, seed=0):
    """Writes a LoRA of peft's for U-Net and first text encoder as diffusers saves them."""
    nets, xl = networks(folder)
    torch.manual_seed(seed)
    for name, targets in TARGETS.items():
        nets[name].add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights=False))
    cls = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    states = {n: convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(nets[n])) for n in TARGETS}
    cls.save_lora_weights(path.parent, unet_lora_layers=states["unet"], text_encoder_lora_layers=states["text_encoder"], weight_name=path.name)
    return path


def layers_of(nets, part):
    """{name: layer} of those that LCM-LoRAs and the like change: attention, and in the U-Net convolutions and time projections too."""
    ends = (*TARGETS["unet"], "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "downsamplers.0.conv") if part == "unet" else tuple(TARGETS["text_encoder"])
    return {n: m for n, m in nets[part].named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d)) and n.endswith(ends)}


def kohya(folder, path, seed=1, parts=("unet", "text_encoder")):
    """Writes a LoRA in kohya's format; alpha differs from the rank, as it often does."""
    nets, xl = networks(folder)
    generator = torch.Generator().manual_seed(seed)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_" if xl else "lora_te_text_model_"}
    tensors = {}
    for part in parts:
        for name, layer in layers_of(nets, part).items():
            key = prefixes[part] + name.removeprefix("text_model.").replace(".", "_")
            out, into, *window = layer.weight.shape
            tensors[key + ".lora_down.weight"] = torch.randn(RANK, into, *window, generator=generator) * 0.1
            tensors[key + ".lora_up.weight"] = torch.randn(out, RANK, *[1] * len(window), generator=generator) * 0.1
            tensors[key + ".alpha"] = torch.tensor(ALPHA)
    safetensors.torch.save_file(tensors, path)
    return path


def by_formula(folder, path, scale):
    """{part: {layer: fused weight}} of a kohya file, with nothing of diffusers'."""
    nets, xl = networks(folder)
    tensors = safetensors.torch.load_file(path)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_text_model_" if xl else "lora_te_text_model_"}
    out = {}
    for part, prefix in prefixes.items():
        out[part] = {}
        for name, layer in layers_of(nets, part).items():
            key = prefix + name.removeprefix("text_model.").replace(".", "_")
            up, down = tensors[key + ".lora_up.weight"].double(), tensors[key + ".lora_down.weight"].double()
            delta = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
            out[part][name] = (layer.weight.double() + scale * ALPHA / RANK * delta).float()
    return out


def fused(folder, *pairs, say=lambda text: None):
    nets, xl = networks(folder)
    return lora.fuse(nets, xl, [options.Lora(p, s) for p, s in pairs], say)


class Fusing(common.Case):
    def assert_close(self, a, b, what):
        self.assertLess(float((a - b).abs().max()), 2e-6, what)

    def check_formula(self, kind):
        folder = common.model(kind)
        path = kohya(folder, self.folder / "k.safetensors")
        plain, _ = networks(folder)
        nets = fused(folder, (path, 0.75))
        for part, layers in by_formula(folder, path, 0.75).items():
            self.assertGreater(len(layers), 5)
            for name, weight in layers.items():
                self.assert_close(nets[part].get_submodule(name).weight, weight, name)
                self.assertGreater(float((weight - plain[part].get_submodule(name).weight).abs().max()), 1e-3)
            for name, weight in plain[part].state_dict().items():
                if name.removesuffix(".weight") not in layers:
                    self.assertTrue(torch.equal(weight, nets[part].state_dict()[name]), f"{name} must stay as it was")

    def test_kohya_equals_the_formula_sd1(self):
        self.check_formula("sd15")

    def test_kohya_equals_the_formula_sdxl(self):
        self.check_formula("sdxl")

    def test_two_loras_equal_diffusers_own_fuse(self):
        folder = common.model("sd15")
        first, second = adapted(folder, self.folder / "peft.safetensors"), kohya(folder, self.folder / "kohya.safetensors")
        ours = fused(folder, (first, 0.5), (second, -1.25))
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        for path, scale in ((first, 0.5), (second, -1.25)):
            pipeline.load_lora_weights(path)
            pipeline.fuse_lora(lora_scale=scale)
            pipeline.unload_lora_weights()
        for part in ("unet", "text_encoder"):
            theirs = getattr(pipeline, part).state_dict()
            self.assertEqual(ours[part].state_dict().keys(), theirs.keys())
            for name, weight in ours[part].state_dict().items():
                self.assertTrue(torch.equal(weight, theirs[name]), name)

    def test_fused_output_is_that_of_unfused_adapters(self):
        folder = common.model("sd15")
        path = adapted(folder, self.folder / "peft.safetensors")
        ours = fused(folder, (path, 0.5))["unet"]
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        inputs = (torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 77, 32))
        with torch.no_grad():
            before = pipeline.unet(*inputs).sample
            pipeline.load_lora_weights(path, adapter_name="a")
            pipeline.set_adapters("a", 0.5)
            theirs = pipeline.unet(*inputs).sample
            self.assertLess(float((ours(*inputs).sample - theirs).abs().max()), 1e-4)
        self.assertGreater(float((before - theirs).abs().max()), 1e-2)

    def test_a_lora_for_the_unet_alone(self):
        folder = common.model("sd15")
        path = kohya(folder, self.folder / "k.safetensors", parts=("unet",))
        plain, _ = networks(folder)
        nets = fused(folder, (path, 1.0))
        for name, weight in plain["text_encoder"].state_dict().items():
            self.assertTrue(torch.equal(weight, nets["text_encoder"].state_dict()[name]))

    def test_layers_that_are_left_out_are_told(self):
        folder, said = common.model("sd15"), []
        path = kohya(folder, self.folder / "k.safetensors", parts=("unet",))
        tensors = safetensors.torch.load_file(path)
        count = len(tensors) // 3
        fused(folder, (path, 1.0), say=said.append)
        self.assertEqual([t.split(": ", 1)[1] for t in said], [f"fused with 1 into {count} layers of unet"])
        # As a LoRA trained on a larger model of the same family has.
        extra = "lora_unet_mid_block_attentions_0_transformer_blocks_7_attn1_to_q"
        tensors |= {f"{extra}.lora_down.weight": torch.ones(RANK, 64), f"{extra}.lora_up.weight": torch.ones(64, RANK), f"{extra}.alpha": torch.tensor(ALPHA)}
        safetensors.torch.save_file(tensors, path)
        said.clear()
        fused(folder, (path, 1.0), say=said.append)
        self.assertIn(f"1 of its {count + 1} layers", said[-1])

    def test_a_lora_that_fits_no_layer_is_an_error(self):
        path = self.folder / "other.safetensors"
        safetensors.torch.save_file({"lora_unet_elsewhere_to_q.lora_down.weight": torch.ones(3, 8), "lora_unet_elsewhere_to_q.lora_up.weight": torch.ones(8, 3)}, path)
        self.assertIn("other.safetensors", self.error(common.model("sd15"), self.folder / "out", "--lora", path))

    def test_a_lora_for_another_architecture_is_an_error(self):
        path = kohya(common.model("sdxl"), self.folder / "xl.safetensors")
        text = self.error(common.model("sd15"), self.folder / "out", "--lora", path)
        self.assertIn("xl.safetensors", text)
        self.assertFalse((self.folder / "out").exists())

    def test_pickles_and_missing_files_are_refused(self):
        (self.folder / "a.pt").write_bytes(b"x")
        self.assertIn("pickled", self.error(common.model("sd15"), self.folder / "out", "--lora", self.folder / "a.pt"))
        self.assertIn("no such file", self.error(common.model("sd15"), self.folder / "out", "--lora", self.folder / "b.safetensors:0.5"))
