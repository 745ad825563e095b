"""Single-file checkpoints give the networks of the folder they were made from."""

import torch

from export import single_file, source
from export.tests import checkpoints, common


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

    def test_the_export_of_a_checkpoint_is_that_of_the_folder(self):
        folder = common.model("sd15")
        path = checkpoints.write(folder, self.folder / "model.safetensors")
        common.export(path, self.folder / "out", "--config", folder)
        for name in ("unet/model.onnx", "text_encoder/model.onnx", "vae_decoder/model.onnx", "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"):
            self.assertEqual((self.folder / "out" / name).read_bytes(), (common.exported("sd15") / name).read_bytes(), name)

    def test_the_prediction_type_is_what_the_file_tells(self):
        full = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
        shapes = single_file.header(checkpoints.write(common.model("sd15"), self.folder / "a.safetensors"))[0]
        self.assertEqual(set(shapes) & set(full), set(full))
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
