"""Exported folders: their layout, and their graphs against diffusers' pipelines."""

import contextlib
import io
import json
import shutil
import tomllib

import diffusers
import numpy as np
import onnx
import onnxruntime
import safetensors.torch
import torch

from export import check, convert, graphs, hashing, source, vae
from export.tests import common


def session(folder, component):
    return onnxruntime.InferenceSession(str(folder / component / "model.onnx"), providers=["CPUExecutionProvider"])


def ports(values):
    return {v.name: (v.type, v.shape) for v in values}


def manifest(folder):
    return tomllib.loads((folder / "streamdiffusion.toml").read_text(encoding="utf-8"))


def graphs_of(kind, dtype, folder):
    """The type that a model's autoencoder would be exported in."""
    conversion = convert.Conversion(common.asked(common.model(kind), folder / "out", "--dtype", dtype))
    origin = source.FolderSource(common.model(kind))
    with contextlib.redirect_stdout(io.StringIO()):
        return conversion.vae_graphs(vae.open_vae(conversion.options, origin, None), None, origin.xl)[2]


class Folder(common.Case):
    def assert_near(self, a, b, tolerance=1e-4):
        self.assertEqual(a.shape, b.shape)
        self.assertLess(float(np.abs(a - b).max()), tolerance * max(1.0, float(np.abs(b).max())))

    def assert_whole(self, folder):
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        recorded = manifest(folder)["export"]["files"]
        self.assertEqual(set(recorded) | {"streamdiffusion.toml"}, files)
        for name, digest in recorded.items():
            self.assertEqual(hashing.of_file(folder / name), digest, name)
        for path in folder.rglob("*.onnx"):
            model = onnx.load(path)
            onnx.checker.check_model(model, full_check=True)
            self.assertEqual({o.domain for o in model.opset_import if o.domain not in ("", "ai.onnx")}, set())
            self.assertNotIn(b"site-packages", path.read_bytes())
        self.assertFalse(folder.with_name(folder.name + ".partial").exists())

    def pipeline(self, kind, prediction=None):
        folder = common.model(kind, prediction)
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
        return getattr(diffusers, name).from_pretrained(folder)

    def test_sd1(self):
        folder = common.exported("sd15")
        self.assert_whole(folder)
        text, unet = session(folder, "text_encoder"), session(folder, "unet")
        self.assertEqual(ports(text.get_inputs()), {"input_ids": ("tensor(int64)", ["batch", "sequence"])})
        self.assertEqual(ports(text.get_outputs()), {"last_hidden_state": ("tensor(float)", ["batch", "sequence", 32])})
        self.assertEqual(ports(unet.get_inputs()), {
            "sample": ("tensor(float)", ["batch", 4, "height", "width"]), "timestep": ("tensor(int64)", ["batch"]),
            "encoder_hidden_states": ("tensor(float)", ["batch", "sequence", 32]),
        })
        self.assertEqual(ports(unet.get_outputs()), {"out_sample": ("tensor(float)", ["batch", 4, "height", "width"])})
        config = json.loads((folder / "vae_encoder" / "config.json").read_text())
        self.assertEqual((config["latent_channels"], config["scaling_factor"], len(config["block_out_channels"])), (4, 0.18215, 2))

        pipeline = self.pipeline("sd15")
        with torch.no_grad():
            wanted, _ = pipeline.encode_prompt("a photo of a cat", "cpu", 1, False)
            ids = pipeline.tokenizer("a photo of a cat", padding="max_length", max_length=77, return_tensors="np").input_ids
            got = text.run(None, {"input_ids": ids})[0]
            self.assert_near(got, wanted.numpy())
            # Sizes, rows and text lengths that were neither traced nor checked while exporting; a timestep for each row.
            for rows, height, width, length in [(1, 2, 2, 77), (4, 6, 18, 231), (5, 22, 10, 7)]:
                sample, state = torch.randn(rows, 4, height, width), torch.randn(rows, length, 32)
                steps = torch.tensor([999, 0, 321, 40, 7][:rows])
                wanted = pipeline.unet(sample, steps, state).sample
                got = unet.run(None, {"sample": sample.numpy(), "timestep": steps.numpy(), "encoder_hidden_states": state.numpy()})[0]
                self.assert_near(got, wanted.numpy())
            picture = torch.rand(1, 3, 26, 38) * 2 - 1
            moments = session(folder, "vae_encoder").run(None, {"sample": picture.numpy()})[0]
            self.assert_near(moments[:, :4], pipeline.vae.encode(picture).latent_dist.mean.numpy())
            latent = torch.randn(2, 4, 9, 5)
            got = session(folder, "vae_decoder").run(None, {"latent_sample": latent.numpy()})[0]
            self.assert_near(got, pipeline.vae.decode(latent).sample.numpy())

    def test_the_manifest(self):
        table = manifest(common.exported("sd15"))
        self.assertEqual(set(table), {"name", "source", "defaults", "limits", "vae", "export"})
        self.assertEqual(table["limits"], {"multiple": 4})
        self.assertEqual(table["vae"], {"posterior": "mean"})
        self.assertEqual(table["defaults"]["size"], 32)
        export = table["export"]
        self.assertEqual((export["tool"], export["dtype"], export["vae"], export["size"], export["batch"], export["loras"]), ("export_model.py", "f32", "full", "dynamic", "dynamic", []))
        self.assertEqual(set(export["errors"]), {"text_encoder", "unet", "vae_encoder", "vae_decoder"})
        self.assertTrue(all(0 < e < 1e-3 for e in export["errors"].values()))

    def test_sd2_in_f16_with_a_lora_and_defaults(self):
        from export.tests import test_lora

        out = self.folder / "out"
        path = test_lora.kohya(common.model("sd21"), self.folder / "lcm-lora.safetensors")
        # Only XL's autoencoders need what force_upcast says, which diffusers writes for all.
        self.assertTrue(json.loads((common.model("sd21") / "vae" / "config.json").read_text())["force_upcast"])
        _, said = common.export(common.model("sd21"), out, "--dtype", "f16", "--lora", f"{path}:0.5", "--name", 'The "one"', "--license", "x", "--prompt", "snow\n", "--t-index-list", "16,32")
        self.assertNotIn("force_upcast", said)
        self.assertEqual(manifest(out)["export"]["overflow"], [])
        self.assert_whole(out)
        for component, kind in {"text_encoder": "float16", "unet": "float16", "vae_encoder": "float16", "vae_decoder": "float16"}.items():
            s = session(out, component)
            self.assertEqual({i.type for i in s.get_inputs() if "int" not in i.type} | {o.type for o in s.get_outputs()}, {f"tensor({kind})"})
        scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
        self.assertEqual(scheduler["prediction_type"], "v_prediction")
        table = manifest(out)
        self.assertEqual((table["name"], table["license"]), ('The "one"', "x"))
        self.assertEqual(table["defaults"], {"prompt": "snow\n", "t_index_list": [16, 32], "guidance_scale": 1.2, "cfg_type": "self", "size": 32})
        self.assertEqual(table["export"]["loras"], [{"file": "lcm-lora.safetensors", "sha256": hashing.of_file(path), "scale": 0.5}])

        fused = test_lora.fused(common.model("sd21"), (path, 0.5))["unet"]
        sample, state, steps = torch.randn(2, 4, 6, 10), torch.randn(2, 77, 32), torch.tensor([900, 20])
        got = session(out, "unet").run(None, {"sample": sample.numpy().astype(np.float16), "timestep": steps.numpy(), "encoder_hidden_states": state.numpy().astype(np.float16)})[0]
        with torch.no_grad():
            self.assert_near(got.astype(np.float32), fused(sample, steps, state).sample.numpy(), 2e-2)

    def test_sdxl_in_f16(self):
        # The export compares the graph with torch's f32; here it is that it can be loaded, sizes computed in f32 and all.
        folder = common.exported("sdxl", "--dtype", "f16")
        self.assert_whole(folder)
        for component in ("text_encoder", "text_encoder_2", "unet"):
            s = session(folder, component)
            self.assertEqual({i.type for i in s.get_inputs() if "int" not in i.type} | {o.type for o in s.get_outputs()}, {"tensor(float16)"})

    def test_names_and_options_decide_the_scheduler_and_the_defaults(self):
        from export.tests import test_lora

        path = test_lora.kohya(common.model("sd15"), self.folder / "TCD-SD15-LoRA.safetensors")
        out, arguments = self.folder / "out", ["--lora", path, "--vae", str(common.model("sd-turbo") / "vae"), "--keep-work", "--force"]
        read = lambda name: json.loads((out / name).read_text())  # noqa: E731
        # --name is for people: it decides nothing.
        for more, scheduler, prediction, guidance, steps in [
            (["--name", "sd-turbo"], "TCDScheduler", "epsilon", 1.0, 4), (["--scheduler", "keep", "--kind", "lcm", "--prediction", "v_prediction"], "PNDMScheduler", "v_prediction", 1.2, 4),
            (["--kind", "turbo"], "PNDMScheduler", "epsilon", 1.0, 1), (["--scheduler", "lcm"], "LCMScheduler", "epsilon", 1.0, 4),
        ]:
            common.export(common.model("sd15"), out, *arguments, *more)
            config, table = read("scheduler/scheduler_config.json"), manifest(out)["defaults"]
            self.assertEqual((config["_class_name"], read("model_index.json")["scheduler"]), (scheduler, ["diffusers", scheduler]))
            self.assertEqual((config["prediction_type"], config["beta_schedule"]), (prediction, "scaled_linear"))
            self.assertEqual(config.get("original_inference_steps"), None if scheduler == "PNDMScheduler" else 50)
            self.assertEqual((table["guidance_scale"], table["steps"]), (guidance, steps))

    def test_an_xl_autoencoder_that_overflows_stays_f32(self):
        model = graphs_of("sdxl", "f16", self.folder)
        self.assertEqual(model, torch.float32)
        self.assertEqual(graphs_of("sd15", "f16", self.folder), torch.float16)

    def test_numbers_beyond_f16_are_told(self):
        folder, out = self.folder / "model", self.folder / "out"
        shutil.copytree(common.model("sd-turbo"), folder)
        path = folder / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = safetensors.torch.load_file(path)
        # One layer gives out large numbers, and the next makes small ones of them again: ReLU lets the factor through.
        first, second = [n for n in tensors if n.startswith("decoder.layers.2.conv.") and n.endswith("weight")][:2]
        for name, factor in ((first, 1e6), (first.replace("weight", "bias"), 1e6), (second, 1e-6)):
            tensors[name] = tensors[name] * factor
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
        options = convert.Conversion(common.asked(folder, out, "--dtype", "f16"))
        model = source.FolderSource(folder).load("vae")
        spec = graphs.vae(model, None)[1]
        with check.watch(model) as large:
            check.expected(spec, check.inputs(spec, torch.float16))
        self.assertTrue(any(n.startswith("decoder.layers.2.conv") for n in large), large)
        self.assertFalse(any(m._forward_hooks for m in model.modules()))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            options.record("vae_decoder", {"error": 0.0, "overflow": [f"vae_decoder: {n}: {v:.3g}" for n, v in large.items()]})
        self.assertIn("beyond f16", said.getvalue())
        self.assertTrue(options.overflow[0].startswith("vae_decoder: decoder"))

    def test_a_large_fixed_size_is_checked_with_one_row(self):
        origin = source.FolderSource(common.model("sd15"))
        net, pictures = origin.load("unet"), origin.load("vae")
        rows = lambda spec: [s["batch"] for s in spec.sizes[1:]]  # noqa: E731
        for size, batches in ((None, [1, 3]), ((32, 32), [1, 3]), ((64, 32), [1])):
            self.assertEqual(rows(graphs.unet(net, False, size, None)), batches)
            pixels = size and (size[0] * 2, size[1] * 2)
            self.assertEqual([rows(s) for s in graphs.vae(pictures, pixels)], [batches] * 2)

    def test_sdxl(self):
        folder = common.exported("sdxl")
        self.assert_whole(folder)
        pipeline = self.pipeline("sdxl")
        one, two, unet = session(folder, "text_encoder"), session(folder, "text_encoder_2"), session(folder, "unet")
        self.assertEqual([o.name for o in one.get_outputs()], ["penultimate_hidden_state"])
        self.assertEqual([o.name for o in two.get_outputs()], ["penultimate_hidden_state", "text_embeds"])
        prompt = "an astronaut riding a green horse"
        with torch.no_grad():
            wanted, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
            ids = [t(prompt, padding="max_length", max_length=77, return_tensors="np").input_ids for t in (pipeline.tokenizer, pipeline.tokenizer_2)]
            first = one.run(None, {"input_ids": ids[0]})[0]
            second, embeds = two.run(["penultimate_hidden_state", "text_embeds"], {"input_ids": ids[1]})
            self.assert_near(np.concatenate([first, second], -1), wanted.numpy())
            self.assert_near(embeds, pooled.numpy())
            for rows, height, width in [(1, 2, 6), (3, 10, 4)]:
                sample, steps, state = torch.randn(rows, 4, height, width), torch.tensor([999, 249, 3][:rows]), wanted.expand(rows, -1, -1)
                added = {"text_embeds": pooled.expand(rows, -1), "time_ids": torch.tensor([[512.0, 768, 0, 0, 512, 768]]).expand(rows, -1)}
                theirs = pipeline.unet(sample, steps, state, added_cond_kwargs=added).sample
                got = unet.run(None, {"sample": sample.numpy(), "timestep": steps.numpy(), "encoder_hidden_states": state.numpy(), **{k: v.numpy() for k, v in added.items()}})[0]
                self.assert_near(got, theirs.numpy())
        index = json.loads((folder / "model_index.json").read_text())
        self.assertEqual((index["_class_name"], index["force_zeros_for_empty_prompt"]), ("StableDiffusionXLPipeline", True))

    def test_a_guidance_distilled_model_of_one_size_and_batch(self):
        folder = common.exported("lcm", "--size", "24x16", "--batch", "2", "--vae", str(common.model("sd-turbo") / "vae"))
        self.assert_whole(folder)
        unet = session(folder, "unet")
        self.assertEqual(ports(unet.get_inputs()), {
            "sample": ("tensor(float)", [2, 4, 8, 12]), "timestep": ("tensor(int64)", [2]), "encoder_hidden_states": ("tensor(float)", [2, "sequence", 32]), "timestep_cond": ("tensor(float)", [2, 16]),
        })
        self.assertEqual(ports(session(folder, "vae_encoder").get_outputs()), {"latent_sample": ("tensor(float)", ["batch", 4, 8, 12])})
        self.assertEqual(ports(session(folder, "vae_decoder").get_outputs()), {"sample": ("tensor(float)", ["batch", 3, 16, 24])})
        table = manifest(folder)
        self.assertEqual((table["defaults"]["width"], table["defaults"]["height"], table["defaults"]["steps"], table["defaults"]["cfg_type"]), (24, 16, 4, "none"))
        self.assertEqual((table["export"]["size"], table["export"]["batch"], table["export"]["vae"]), ("24x16", 2, "vae"))
        config = json.loads((folder / "vae_decoder" / "config.json").read_text())
        self.assertEqual((config["_class_name"], config["latent_channels"], config["scaling_factor"], config["block_out_channels"]), ("AutoencoderTiny", 4, 1.0, [16, 16]))
        # The guidance embedding is of consequence.
        pipeline = self.pipeline("lcm")
        sample, steps, state = torch.randn(2, 4, 8, 12), torch.tensor([999, 499]), torch.randn(2, 77, 32)
        for scale in (0.0, 7.5):
            w = pipeline.get_guidance_scale_embedding(torch.tensor([scale] * 2), embedding_dim=16)
            with torch.no_grad():
                wanted = pipeline.unet(sample, steps, state, timestep_cond=w).sample
            got = unet.run(None, {"sample": sample.numpy(), "timestep": steps.numpy(), "encoder_hidden_states": state.numpy(), "timestep_cond": w.numpy()})[0]
            self.assert_near(got, wanted.numpy())

    def test_clip_skip_is_diffusers(self):
        pipeline, origin = self.pipeline("sd15"), source.FolderSource(common.model("sd15"))
        xl = self.pipeline("sdxl")
        # With clip_skip diffusers asks for the wrapper that transformers has removed.
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
        for skip in (0, 1, 2):
            with torch.no_grad():
                wanted, _ = pipeline.encode_prompt("a cat", "cpu", 1, False, clip_skip=skip or None)
                ids = pipeline.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
                module = graphs.text_encoder("text_encoder", origin.load("text_encoder"), False, skip).module
                self.assert_near(module(ids).numpy(), wanted.numpy(), 1e-5)
                if skip < 2:
                    wanted = xl.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False, clip_skip=skip or None)
                    ids = xl.tokenizer_2("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
                    hidden, pooled = graphs.text_encoder("text_encoder_2", xl.text_encoder_2, True, skip).module(ids)
                    self.assert_near(hidden.numpy(), wanted[0][..., 32:].numpy(), 1e-5)
                    self.assert_near(pooled.numpy(), wanted[2].numpy(), 1e-5)

    def test_the_tokenizer_is_the_models(self):
        origin = source.load_tokenizer(common.model("sd21") / "tokenizer")
        source.save_tokenizer(origin, self.folder / "t")
        again = source.load_tokenizer(self.folder / "t")
        for text in ("a photo of a cat", "Ünïcode, 12 CATS!! don't", "the quick brown fox's 🦊", ""):
            self.assertEqual(origin(text, padding="max_length", max_length=77).input_ids, again(text, padding="max_length", max_length=77).input_ids)
        self.assertEqual((again.pad_token, again.model_max_length), ("!", 77))
