"""Single-file checkpoints give the networks of the folder they were made from."""

import types
from unittest import mock

import diffusers
import safetensors.torch
import torch
import transformers

from export import errors, single_file, source
from export.tests import checkpoints, common


WEIGHTS = {
    # As published for these models.
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sd21-v": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863},
}


def outline(name):
    """Full-size networks of a built-in configuration, without weights."""
    folder, networks = single_file.CONFIGS / name, {}
    index = source.read_json(folder / "model_index.json")
    for part in WEIGHTS[name]:
        config, kind = source.read_json(folder / part / "config.json"), index[part][1]
        with torch.device("meta"):
            if kind.startswith("CLIP"):
                networks[part] = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            else:
                networks[part] = getattr(diffusers, kind).from_config(config)
    return networks, source.read_json(folder / "unet" / "config.json")


class BuiltIn(common.Case):
    def test_the_configurations_are_of_the_published_sizes(self):
        for name, sizes in WEIGHTS.items():
            networks, _ = outline(name)
            self.assertEqual({p: sum(w.numel() for w in n.parameters()) for p, n in networks.items()}, sizes, name)

    def test_a_full_size_checkpoint_is_told_by_its_shapes(self):
        path = self.folder / "m.safetensors"
        path.write_bytes(b"only its header is read, and that is mocked")
        for name, metadata, prediction in [("sd15", {}, "epsilon"), ("sd21", {"modelspec.prediction_type": "v"}, "v_prediction"), ("sdxl", {}, "epsilon")]:
            networks, config = outline(name)
            shapes = {k: types.SimpleNamespace(shape=tuple(v.shape)) for k, v in checkpoints.tensors(networks, config, name == "sdxl").items()}
            with mock.patch.object(single_file, "header", return_value=(shapes, metadata)):
                found = single_file.SingleFileSource(path)
            self.assertEqual((found.folder.name, found.prediction, found.xl), (name, prediction, name == "sdxl"))
            self.assertEqual(found.elements("unet"), WEIGHTS[name]["unet"])
            if name == "sd21":
                with mock.patch.object(single_file, "header", return_value=(shapes, {})), self.assertRaisesRegex(errors.ExportError, "--prediction"):
                    single_file.SingleFileSource(path)

    def test_an_inpainting_checkpoint_is_refused(self):
        path = self.folder / "m.safetensors"
        safetensors.torch.save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}, path)
        self.assertIn("inpainting", self.error(path, self.folder / "out"))


class SingleFile(common.Case):
    def compare(self, kind, **options):
        folder = common.model(kind)
        path = checkpoints.write(folder, self.folder / "model.safetensors", **options)
        one, many = single_file.SingleFileSource(path, folder), source.FolderSource(folder)
        for part in ["unet", "vae", *many.text_encoders]:
            a, b = one.load(part).state_dict(), many.load(part).state_dict()
            self.assertEqual(a.keys(), b.keys(), part)
            for name in b:
                self.assertTrue(torch.equal(a[name], b[name]), f"{part}: {name}")
            # LDM checkpoints of OpenCLIP hold a projection that SD 2 does not use.
            self.assertGreaterEqual(one.elements(part), many.elements(part))

    def test_sd1(self):
        self.compare("sd15")

    def test_sd2(self):
        self.compare("sd21")

    def test_sdxl(self):
        self.compare("sdxl")

    def test_names_of_the_first_checkpoints(self):
        folder = common.model("sd15")
        path = checkpoints.write(folder, self.folder / "model.safetensors")
        tensors = safetensors.torch.load_file(path)
        old = {n.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): t for n, t in tensors.items()}
        self.assertNotEqual(old.keys(), tensors.keys())
        safetensors.torch.save_file(old, path)
        a, b = single_file.SingleFileSource(path, folder).load("text_encoder").state_dict(), source.FolderSource(folder).load("text_encoder").state_dict()
        self.assertEqual(a.keys(), b.keys())
        for name in b:
            self.assertTrue(torch.equal(a[name], b[name]), name)

    def test_tensors_that_are_missing_are_named_without_reading_weights(self):
        for kind, part, name, word in [
            ("sd15", "text_encoder", "cond_stage_model.transformer.text_model.final_layer_norm.bias", "final_layer_norm.bias"),
            ("sd21", "text_encoder", "cond_stage_model.model.ln_final.bias", "final_layer_norm.bias"),
            ("sdxl", "text_encoder_2", "conditioner.embedders.1.model.positional_embedding", "position_embedding.weight"),
            ("sd15", "unet", "model.diffusion_model.out.2.bias", "conv_out.bias"), ("sd15", "vae", "first_stage_model.decoder.conv_in.weight", "decoder.conv_in.weight"),
            ("sdxl", "unet", "model.diffusion_model.label_emb.0.0.weight", "label_emb.0.0.weight"),
        ]:
            path = self.folder / f"{kind}-{part}.safetensors"
            tensors = safetensors.torch.load_file(checkpoints.write(common.model(kind), path))
            for changed, what in (({n: t for n, t in tensors.items() if n != name}, "(missing|lacks)"), (tensors | {name: torch.ones(2, 2)}, "another shape")):
                safetensors.torch.save_file(changed, path)
                with mock.patch.object(single_file, "safe_open", side_effect=single_file.safe_open) as opened, self.assertRaisesRegex(errors.ExportError, path.name) as e:
                    single_file.SingleFileSource(path, common.model(kind)).check_weights(part)
                self.assertEqual(opened.call_count, 1)
                self.assertRegex(str(e.exception), what)
                self.assertIn(word if "another" not in what or "label" not in name else "linear_1.weight", str(e.exception))

    def test_the_export_of_a_checkpoint_is_that_of_the_folder(self):
        folder = common.model("sd15")
        path = checkpoints.write(folder, self.folder / "model.safetensors")
        common.export(path, self.folder / "out", "--config", folder)
        for name in ("unet/model.onnx", "text_encoder/model.onnx", "vae_decoder/model.onnx", "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"):
            self.assertEqual((self.folder / "out" / name).read_bytes(), (common.exported("sd15") / name).read_bytes(), name)

    def test_the_prediction_type_is_what_the_file_tells(self):
        self.assertEqual(single_file.prediction({}, {}, "v1"), "epsilon")
        self.assertEqual(single_file.prediction({"v_pred": None}, {}, "xl_base"), "v_prediction")
        self.assertEqual(single_file.prediction({}, {"modelspec.prediction_type": "v"}, "v2"), "v_prediction")
        self.assertEqual(single_file.prediction({}, {"modelspec.prediction_type": "epsilon"}, "v2"), "epsilon")
        self.assertIsNone(single_file.prediction({}, {}, "v2"))

    def test_v_pred_and_ztsnr_marks_reach_the_scheduler(self):
        marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
        path = checkpoints.write(common.model("sdxl"), self.folder / "m.safetensors", extra=marks)
        config = single_file.SingleFileSource(path, common.model("sdxl")).config("scheduler")
        self.assertEqual((config["prediction_type"], config["rescale_betas_zero_snr"]), ("v_prediction", True))

    def test_a_folder_that_does_not_fit_is_an_error(self):
        path = checkpoints.write(common.model("sd15"), self.folder / "m.safetensors")
        text = self.error(path, self.folder / "out", "--config", common.model("sd21"))
        self.assertIn("m.safetensors", text)
        self.assertFalse((self.folder / "out").exists())

    def test_a_lora_as_source_is_told_from_a_checkpoint(self):
        from export.tests import test_lora

        text = self.error(test_lora.kohya(common.model("sd15"), self.folder / "l.safetensors"), self.folder / "out")
        self.assertIn("--lora", text)
