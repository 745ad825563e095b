"""What is refused, with words that help, and without a trace at OUT."""

import errno
import json
import shutil
from unittest import mock

import safetensors.torch
import torch

from export import convert, source, workspace
from export.errors import ExportError
from export.tests import common


class Errors(common.Case):
    def setUp(self):
        super().setUp()
        self.out = self.folder / "out"

    def changed(self, name, **values):
        """A copy of a tiny model with some values of a JSON file changed."""
        folder = self.folder / "changed"
        shutil.copytree(common.model("sd15"), folder)
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    def check(self, words, *arguments):
        text = self.error(*arguments)
        for word in words if isinstance(words, tuple) else (words,):
            self.assertIn(word, text)
        self.assertFalse(self.out.exists())

    def test_sources(self):
        (self.folder / "empty").mkdir()
        (self.folder / "m.ckpt").write_bytes(b"x")
        (self.folder / "m.safetensors").write_bytes(b"x")
        (self.folder / "m.txt").write_bytes(b"x")
        self.check("model_index.json", self.folder / "empty", self.out)
        self.check(("pickled", "convert"), self.folder / "m.ckpt", self.out)
        self.check("not a .safetensors file", self.folder / "m.safetensors", self.out)
        self.check("expected a .safetensors", self.folder / "m.txt", self.out)
        self.check("no such folder", self.folder / "a" / "b" / "c", self.out)
        # Looks like a hub id.
        self.check("no such file", "models/mine.safetensors", self.out)

    def test_pickled_weights_in_a_folder(self):
        folder = self.changed("model_index.json")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
        self.check("pickled", folder, self.out)

    def test_pipelines(self):
        for name in ("StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionInpaintPipeline"):
            folder = self.changed("model_index.json", _class_name=name)
            self.check((name, "not supported"), folder, self.out)
            shutil.rmtree(folder)

    def test_parts(self):
        for changes, word in [({"text_encoder": [None, None]}, "no text_encoder"), ({"requires_aesthetics_score": True}, "refiner"), ({"vae": ["diffusers", "AutoencoderKLMagvit"]}, "AutoencoderKLMagvit")]:
            folder = self.changed("model_index.json", **changes)
            self.check(word, folder, self.out)
            shutil.rmtree(folder)

    def test_unets(self):
        for changes, word in [({"in_channels": 9}, "inpainting"), ({"in_channels": 8}, "8"), ({"num_class_embeds": 1000}, "num_class_embeds"), ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type")]:
            folder = self.changed("unet/config.json", **changes)
            self.check(word, folder, self.out)
            shutil.rmtree(folder)

    def test_out_exists(self):
        self.out.mkdir()
        (self.out / "mine.txt").write_text("x")
        self.assertIn("--force", self.error(common.model("sd15"), self.out))
        # Nor does --force take away what is no model folder, or one of another tool's.
        (self.out / "model_index.json").write_text("{}")
        self.assertIn("not a model folder", self.error(common.model("sd15"), self.out, "--force"))
        self.assertEqual((self.out / "mine.txt").read_text(), "x")

    def test_force_does_not_take_away_what_is_read(self):
        source = self.changed("model_index.json")
        (source / "streamdiffusion.toml").write_text('[export]\ntool = "export_model.py"\n')
        files = sorted(p for p in source.rglob("*"))
        for arguments in ([source, source], [source, source / "unet"], [common.model("sd15"), source, "--vae", source / "vae"], [source, self.folder]):
            self.check("which the export reads", *arguments, "--force")
        self.assertEqual(sorted(p for p in source.rglob("*")), files)

    def test_sizes(self):
        self.check("multiples of 4", common.model("sd15"), self.out, "--size", "34")
        self.check("--size", common.model("sd15"), self.out, "--size", "12x")

    def test_clip_skip(self):
        self.check("--clip-skip", common.model("sd15"), self.out, "--clip-skip", "3")

    def test_schedulers(self):
        for name, changes, word in [
            ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
            ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDM"), ("model_index.json", {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "flow matching"),
            ("vae/config.json", {"latents_mean": [0.1, 0, 0, 0]}, "latents_mean"), ("vae/config.json", {"latents_std": [1, 1, 1, 1]}, "latents_std"),
        ]:
            folder = self.changed(name, **changes)
            self.check(word, folder, self.out)
            shutil.rmtree(folder)

    def test_config_is_for_single_files(self):
        self.check("--config", common.model("sd15"), self.out, "--config", "sd15")
        self.check("--config", "owner/name", self.out, "--config", "sd15", "--offline")

    def test_autoencoders(self):
        self.check("no such folder", common.model("sd15"), self.out, "--vae", self.folder / "none")
        self.check("UNet2DConditionModel", common.model("sd15"), self.out, "--vae", common.model("sd15") / "unet")
        vae = self.folder / "vae"
        shutil.copytree(common.model("sd-turbo") / "vae", vae)
        config = json.loads((vae / "config.json").read_text())
        (vae / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
        self.check(("16 channels", "U-Net wants 4"), common.model("sd15"), self.out, "--vae", vae)

    def test_weights_that_are_not_the_networks(self):
        cases = [
            ("sd15", "text_encoder", "final_layer_norm.bias"), ("sd15", "unet", "conv_in.weight"), ("sd15", "vae", "decoder.conv_in.bias"),
            ("sdxl", "text_encoder_2", "text_projection.weight"), ("sd-turbo", "vae", "encoder.layers.0.weight"),
        ]
        for kind, part, name in cases:
            folder = self.folder / f"{kind}-{part}"
            shutil.copytree(common.model(kind), folder)
            path = next((folder / part).glob("*.safetensors"))
            tensors = safetensors.torch.load_file(path)
            name = next(n for n in tensors if n.endswith(name))
            changes = {
                "missing": {n: t for n, t in tensors.items() if n != name}, "not known": tensors | {"stranger.weight": torch.ones(1)},
                "another shape": tensors | {name: torch.ones(3, 3)}, None: tensors | {"embeddings.position_ids": torch.arange(77)[None]},
            }
            for word, changed in changes.items():
                safetensors.torch.save_file(changed, path, {"format": "pt"})
                if word is None:
                    source.FolderSource(folder).load(part)
                    continue
                with self.assertRaises(ExportError) as e:
                    source.FolderSource(folder).load(part)
                for text in (path.name, "stranger.weight" if word == "not known" else name.removeprefix("text_model.")):
                    self.assertIn(text, str(e.exception))

    def test_tokenizers_are_read_before_anything_is_exported(self):
        for name, content, word in [
            ("tokenizer/vocab.json", None, "no vocab.json"), ("tokenizer/vocab.json", "{", "tokenizer"), ("text_encoder/config.json", {"vocab_size": 100}, "vocab_size"),
            ("scheduler/scheduler_config.json", None, "scheduler_config.json: no such file"),
        ]:
            folder = self.changed("model_index.json")
            if content is None:
                (folder / name).unlink()
            elif isinstance(content, str):
                (folder / name).write_text(content)
            else:
                (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | content))
            with mock.patch.object(convert.to_onnx, "export", side_effect=AssertionError("exported")):
                self.check(word, folder, self.out)
            shutil.rmtree(folder)

    def test_a_full_disk_or_memory_is_an_error_that_tells_how_to_go_on(self):
        partial = str(self.folder / "out.partial")

        def full(spec, *rest):
            (rest[-1] / "model.onnx").write_bytes(b"half")
            raise error

        for error, word in [(OSError(errno.ENOSPC, "No space left on device", "/x/model.onnx"), "/x/model.onnx: No space left"), (MemoryError(), "out of memory"), (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory")]:
            with mock.patch.object(convert.to_onnx, "export", full):
                self.check((word, partial, "goes on from there"), common.model("sd-turbo"), self.out)
        with mock.patch.object(convert.to_onnx, "export", side_effect=RuntimeError("a fault of ours")), self.assertRaises(RuntimeError):
            self.error(common.model("sd-turbo"), self.out)
        self.check("top of a disk", common.model("sd-turbo"), "/")

    def test_texts_that_are_too_long_for_the_manifest(self):
        for option, limit in [("--name", 200), ("--license", 200), ("--prompt", 10_000), ("--negative-prompt", 10_000)]:
            self.check((option, f"at most {limit}"), common.model("sd15"), self.out, option, "ü" * (limit // 2) + "x")
            common.asked("a", "b", option, "ü" * (limit // 2))
        self.check("--vae", common.model("sd15"), self.out, "--vae", self.folder / ("ü" * 101))

    def test_finished_components_need_no_disk(self):
        model, wanted = common.model("sd-turbo"), []
        real = workspace.Workspace.check_space
        with mock.patch.object(workspace.Workspace, "check_space", lambda space, needed: wanted.append(needed) or real(space, needed)):
            common.export(model, self.out, "--keep-work")
            common.export(model, self.out, "--keep-work", "--force", "--batch", "2")
            common.export(model, self.out, "--force", "--batch", "2")
        self.assertEqual(wanted[2], 64 << 20)
        unet = source.FolderSource(model).elements("unet")
        self.assertAlmostEqual(wanted[1] - wanted[2], unet * 4 * 1.05, delta=1)
        self.assertGreater(wanted[0], wanted[1])

    def test_an_interrupted_export_goes_on_where_it_stopped(self):
        model = common.model("sd-turbo")
        real = convert.to_onnx.export
        seen = []

        def until_the_unet(spec, *rest):
            seen.append(spec.component)
            if spec.component == "unet":
                (rest[-1] / "model.onnx").write_bytes(b"half")
                raise convert.ExportError("the disk is full")
            real(spec, *rest)

        with mock.patch.object(convert.to_onnx, "export", until_the_unet):
            self.check("the disk is full", model, self.out)
        self.assertEqual(seen, ["text_encoder", "unet"])
        self.assertTrue((self.folder / "out.partial").is_dir())
        with mock.patch.object(convert.to_onnx, "export", side_effect=lambda spec, *rest: seen.append(spec.component) or real(spec, *rest)):
            common.export(model, self.out, "--keep-work")
            self.assertEqual(seen[2:], ["unet", "vae_encoder", "vae_decoder"])
            # Other options: only what they change is done again.
            common.export(model, self.out, "--force", "--size", "32", "--prompt", "x")
        self.assertEqual(seen[5:], ["unet", "vae_encoder", "vae_decoder"])
        self.assertTrue((self.out / "unet" / "model.onnx").stat().st_size > 1000)
