"""The parts that need no export: options, defaults, manifest, vocabulary, hub, workspace."""

import argparse
import math
import os
import pathlib
import shutil
import tomllib
from unittest import mock

from export import check, defaults, hashing, hub, kinds, manifest, options, single_file, source, vocabulary, workspace
from export.errors import ExportError
from export.tests import common


class Options(common.Case):
    def test_a_scale_is_told_from_a_drive_letter(self):
        for text, path, scale in [
            ("a.safetensors", "a.safetensors", 1.0), ("a.safetensors:0.5", "a.safetensors", 0.5), ("C:\\x\\a.safetensors", "C:\\x\\a.safetensors", 1.0),
            ("C:\\a.safetensors:.25", "C:\\a.safetensors", 0.25), ("d:a:-1e-1", "d:a", -0.1),
        ]:
            self.assertEqual(options.lora(text), options.Lora(pathlib.Path(path), scale))
        for text in ("a:nan", "a:inf", "a:0", "a:1e9", ""):
            with self.assertRaises(argparse.ArgumentTypeError):
                options.lora(text)

    def test_sizes(self):
        self.assertEqual([options.size(t) for t in ("dynamic", "512", "768x512")], [None, (512, 512), (768, 512)])
        for text in ("0", "512x", "axb", "-8", "9000", "512x4"):
            with self.assertRaises(argparse.ArgumentTypeError):
                options.size(text)
        with self.assertRaises(argparse.ArgumentTypeError):
            options.batch("0")

    def test_contradicting_defaults(self):
        for wrong in (["--t-index-list", "1,2", "--steps", "2"], ["--t-index-list", "10,50"], ["--cfg-type", "some"]):
            with self.assertRaises(ExportError):
                common.asked("a", "b", *wrong)


class Defaults(common.Case):
    def test_kinds(self):
        for label, scheduler, distilled, loras, kind in [
            ("stabilityai/sd-turbo", "EulerDiscreteScheduler", False, [], "turbo"), ("sdxl_turbo_fp16.safetensors", "", False, [], "turbo"),
            ("SimianLuo/LCM_Dreamshaper_v7", "LCMScheduler", True, [], "lcm"), ("v1-5-pruned", "PNDMScheduler", False, ["pytorch_lora_weights.safetensors"], "plain"),
            ("v1-5-pruned", "PNDMScheduler", False, ["lcm-lora-sdv1-5.safetensors"], "lcm"), ("x", "PNDMScheduler", False, ["TCD-SD15-LoRA.safetensors"], "tcd"),
            ("x", "", False, ["Hyper-SD15-4steps-lora.safetensors"], "tcd"), ("dreamshaperLCM", "", False, [], "lcm"), ("turbine", "", False, [], "plain"),
            ("x", "TCDScheduler", False, [], "tcd"), ("x", "", True, [], "lcm"), ("x", "LCMScheduler", True, ["h1t--TCD-SD15-LoRA/pytorch_lora_weights.safetensors"], "tcd"),
            ("ByteDance/Hyper-SD", "", False, [], "tcd"), ("x", "", False, ["hyperrealistic_skin.safetensors"], "plain"), ("x", "", False, ["hyper_detail_sd15.safetensors"], "plain"),
            ("turbocharged", "", False, [], "plain"), ("photonLCM_v10", "", False, [], "lcm"), ("photonLCMv1", "", False, [], "lcm"), ("realvisxlV40Lightning", "", False, [], "lightning"),
            ("SDXLLightning", "", False, [], "lightning"), ("ByteDance/SDXL-Lightning", "", False, [], "lightning"), ("falcmore", "", False, [], "plain"), ("myTurboTune", "", False, [], "turbo"),
        ]:
            self.assertEqual(defaults.kind([label], scheduler, distilled, loras), kind, (label, loras))

    def test_only_sdxl_turbo_itself_takes_one_step(self):
        for names, kind in [
            (["stabilityai/sdxl-turbo"], "turbo"), (["sd_xl_turbo_1.0_fp16.safetensors"], "turbo"), (["copy", "stabilityai/sdxl-turbo"], "turbo"),
            (["DreamShaperXL_Turbo_v2"], "lightning"), (["dreamshaperXL_v21TurboDPMSDE.safetensors"], "lightning"), (["Lykon/dreamshaper-xl-v2-turbo"], "lightning"),
        ]:
            self.assertEqual(defaults.kind(names, "EulerDiscreteScheduler", False, [], xl=True), kind, names)
        steps = lambda kind: defaults.choose(kind, False, {"sample_size": 128}, 8, None)["steps"]  # noqa: E731
        self.assertEqual([steps(k) for k in defaults.KINDS], [1, 4, 4, 4, 4])

    def test_the_scheduler_is_that_of_the_method(self):
        base = {"_class_name": "PNDMScheduler", "beta_start": 0.1}
        new = lambda name: {"_class_name": name, "beta_start": 0.1, "original_inference_steps": 50}  # noqa: E731
        for kind, asked, wanted in [
            ("tcd", None, new("TCDScheduler")), ("lcm", None, new("LCMScheduler")), ("plain", None, base), ("turbo", None, base), ("lightning", None, base),
            ("tcd", "keep", base), ("tcd", "lcm", new("LCMScheduler")), ("plain", "tcd", new("TCDScheduler")),
        ]:
            self.assertEqual(defaults.scheduler(base, kind, asked), wanted, (kind, asked))
        known = {"_class_name": "LCMScheduler", "original_inference_steps": 100}
        self.assertEqual(defaults.scheduler(known, "lcm", None), known)

    def test_a_lora_of_the_common_name_is_called_by_its_folder(self):
        from export import lora

        path = pathlib.Path("models--latent-consistency--lcm-lora-sdv1-5/snapshots/x/pytorch_lora_weights.safetensors")
        self.assertEqual(defaults.kind(["v1-5"], "", False, [lora.called(path)]), "lcm")
        self.assertEqual(defaults.kind(["v1-5"], "", False, [lora.called(pathlib.Path("lcm/style.safetensors"))]), "plain")


class Schedulers(common.Case):
    def test_what_the_element_cannot_follow_is_an_error(self):
        for wrong in (
            {"prediction_type": "flow_prediction"}, {"beta_schedule": "sigmoid"}, {"_class_name": "EDMDPMSolverMultistepScheduler"}, {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            {"use_flow_sigmas": True}, {"num_train_timesteps": 0}, {"num_train_timesteps": "1000"}, {"beta_start": 0}, {"beta_start": 0.5, "beta_end": 0.1}, {"beta_end": float("nan")},
            {"trained_betas": [0.1]}, {"original_inference_steps": 1001}, {"timestep_scaling": 0},
        ):
            with self.assertRaisesRegex(ExportError, f"^there: .*({next(iter(wrong)) if '_class_name' not in wrong else 'the scheduler is a'})"):
                kinds.check_scheduler(wrong, "there")
        kinds.check_scheduler({}, "there")
        for folder in sorted(single_file.CONFIGS.iterdir()):
            kinds.check_scheduler(source.read_json(folder / "scheduler" / "scheduler_config.json"), folder)


class Manifest(common.Case):
    def test_what_is_written_is_read_again(self):
        odd = 'q"uo\\te\n\t\x7f\x01 ü'
        tables = {"": {"name": odd, "none": None}, "empty": {}, "a.b": {"x y": 1.0, "small": 1e-7, "list": [{"file": odd, "scale": -0.5}], "yes": True, "n": [1, 2]}}
        read = tomllib.loads(manifest.render(tables))
        self.assertEqual(read, {"name": odd, "a": {"b": {"x y": 1.0, "small": 1e-7, "list": [{"file": odd, "scale": -0.5}], "yes": True, "n": [1, 2]}}})
        with self.assertRaises(ValueError):
            manifest.render({"": {"x": math.nan}})


class Vocabulary(common.Case):
    def test_it_is_clips(self):
        tokens, merges = vocabulary.load()
        self.assertEqual((len(tokens), len(merges), tokens["<|startoftext|>"], tokens["<|endoftext|>"]), (49408, 48894, 49406, 49407))
        vocabulary.write(self.folder / "t", {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 77})
        tokenizer = source.load_tokenizer(self.folder / "t")
        self.assertEqual(tokenizer("a photo of a cat").input_ids, [49406, 320, 1125, 539, 320, 2368, 49407])


class Hub(common.Case):
    FILES = {
        "model_index.json": 1, "unet/config.json": 1, "unet/diffusion_pytorch_model.safetensors": 100, "unet/diffusion_pytorch_model.fp16.safetensors": 50, "unet/diffusion_pytorch_model.bin": 100,
        "unet/diffusion_pytorch_model.non_ema.safetensors": 100, "vae/config.json": 1, "vae/diffusion_pytorch_model.fp16.safetensors": 7, "tokenizer/merges.txt": 3, "sd_turbo.safetensors": 999, "image.png": 5,
        "text_encoder/config.json": 1, "text_encoder/model.safetensors": 20, "text_encoder/model.fp16.safetensors": 10,
    }

    def test_only_what_is_needed_is_fetched(self):
        for half, unet in ((False, "diffusion_pytorch_model.safetensors"), (True, "diffusion_pytorch_model.fp16.safetensors")):
            self.assertEqual(
                set(hub.choose(self.FILES, ["unet", "vae", "tokenizer"], half)),
                {"unet/config.json", f"unet/{unet}", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt"},
            )
        # TAESD's repository has its two halves once more, in another layout.
        tiny = {n: 5 for n in ("config.json", "diffusion_pytorch_model.safetensors", "taesd_encoder.safetensors", "taesd_decoder.safetensors", "README.md")}
        self.assertEqual(set(hub.choose(tiny, [""])), {"config.json", "diffusion_pytorch_model.safetensors"})
        parts = {f"diffusion_pytorch_model{n}.safetensors{end}": 1 for n, end in (("-00001-of-00002", ""), ("-00002-of-00002", ""), ("", ".index.json"), (".fp16", ""), (".fp16", ".index.json"))}
        self.assertEqual(set(hub.choose(parts, [""])), {n for n in parts if "fp16" not in n})
        self.assertEqual(set(hub.choose(parts, [""], True)), {"diffusion_pytorch_model.fp16.safetensors"})

    def test_a_network_without_readable_weights_is_an_error_before_the_download(self):
        for gone, left, word in [("text_encoder/model", {}, "text_encoder: no"), ("text_encoder/model", {"text_encoder/pytorch_model.bin": 1}, "pickled"), ("unet/diff", {"unet/other.safetensors": 1}, "unet: no")]:
            files = {n: s for n, s in self.FILES.items() if not n.startswith(gone)} | left
            with self.assertRaisesRegex(ExportError, word):
                hub.check_weights("a/b", files, ["unet", "text_encoder"])
        hub.check_weights("a/b", self.FILES, ["unet", "text_encoder", "vae"])

    def test_offline_finds_what_was_fetched_by_its_commit(self):
        from huggingface_hub import constants

        repository = self.folder / "models--owner--name"
        with mock.patch.object(constants, "HF_HUB_CACHE", str(self.folder)):
            fetch = lambda with_vae=True: hub.fetch_pipeline("owner/name", with_vae, True, None)  # noqa: E731
            with self.assertRaisesRegex(ExportError, "--offline"):
                fetch()
            # As a download of a commit leaves it: no refs, blobs, and links to them.
            (repository / "blobs").mkdir(parents=True)
            snapshot = repository / "snapshots" / "abc"
            shutil.copytree(common.model("sd15"), snapshot)
            weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
            weights.rename(repository / "blobs" / "1")
            weights.symlink_to("../../../blobs/1")
            self.assertEqual(fetch(), snapshot)
            # A newer commit that is half there does not hide it.
            other = repository / "snapshots" / "def"
            shutil.copytree(snapshot, other, symlinks=True)
            (other / "unet" / "diffusion_pytorch_model.safetensors").unlink()
            os.utime(other, (2e9, 2e9))
            self.assertEqual(fetch(), snapshot)
            (other / "unet" / "diffusion_pytorch_model.safetensors").symlink_to("../../../blobs/1")
            self.assertEqual(fetch(), other)
            # The branch comes first.
            (repository / "refs").mkdir()
            (repository / "refs" / "main").write_text("abc")
            self.assertEqual(fetch(), snapshot)
            # Fetched for --vae tiny, so without the model's own autoencoder.
            for folder in (snapshot, other):
                shutil.rmtree(folder / "vae")
            self.assertEqual(fetch(False), snapshot)
            with self.assertRaisesRegex(ExportError, "--offline"):
                fetch()
            (repository / "blobs" / "1").unlink()
            with self.assertRaisesRegex(ExportError, "--offline"):
                fetch(False)

    def test_a_download_is_announced_with_its_size(self):
        import huggingface_hub

        info = mock.Mock(sha="abc", siblings=[mock.Mock(rfilename=n, size=s * 10**6) for n, s in self.FILES.items()])
        said = []
        index = common.model("sd15") / "model_index.json"
        with mock.patch.object(huggingface_hub, "hf_hub_download", return_value=str(index)), mock.patch.object(huggingface_hub.HfApi, "model_info", return_value=info), mock.patch.object(huggingface_hub, "snapshot_download", side_effect=lambda *a, **k: said.append(k) or "there"):
            self.assertEqual(hub.fetch_pipeline("a/b", False, False, said.append), "there")
        self.assertIn("a/b", said[0])
        self.assertIn("0.13 GB", said[0])
        self.assertEqual(said[1]["revision"], "abc")
        self.assertIn("model_index.json", said[1]["allow_patterns"])
        self.assertNotIn("sd_turbo.safetensors", said[1]["allow_patterns"])

    def test_a_pipeline_that_is_not_supported_is_not_fetched(self):
        import huggingface_hub

        index = self.folder / "model_index.json"
        index.write_text('{"_class_name": "FluxPipeline"}')
        info = mock.Mock(sha="abc", siblings=[mock.Mock(rfilename=n, size=s) for n, s in self.FILES.items()])
        with (
            mock.patch.object(huggingface_hub.HfApi, "model_info", return_value=info), mock.patch.object(huggingface_hub, "hf_hub_download", return_value=str(index)),
            mock.patch.object(huggingface_hub, "snapshot_download", side_effect=AssertionError("fetched")), self.assertRaisesRegex(ExportError, "FluxPipeline"),
        ):
            hub.fetch_pipeline("a/b", False, False, lambda text: None)

    def test_offline_asks_nobody(self):
        import huggingface_hub

        with mock.patch.object(huggingface_hub.HfApi, "model_info", side_effect=AssertionError("asked")):
            self.assertIn("--offline", self.error("no-such-owner/no-such-model", self.folder / "out", "--offline"))
        self.assertEqual(list(self.folder.iterdir()), [])


class Workspace(common.Case):
    def test_only_a_whole_component_counts_as_finished(self):
        space = workspace.Workspace(self.folder / "out")
        space.open()
        folder = space.begin("unet")
        (folder / "model.onnx").write_bytes(b"half")
        self.assertIsNone(space.finished("unet", "k"))
        self.assertFalse(folder.exists())
        for spoil in (None, "key", "content", "extra", "marker"):
            folder = space.begin("unet")
            (folder / "model.onnx").write_bytes(b"whole")
            space.finish("unet", "k", error=0.5)
            if spoil == "content":
                (folder / "model.onnx").write_bytes(b"other")
            elif spoil == "extra":
                (folder / "model.onnx_data").write_bytes(b"left over")
            elif spoil == "marker":
                (folder / workspace.MARKER).write_text("{")
            note = space.finished("unet", "other" if spoil == "key" else "k")
            self.assertEqual(note and note["error"], None if spoil else 0.5, spoil)

    def test_the_name_is_given_last_and_markers_go(self):
        for keep in (False, True):
            space = workspace.Workspace(self.folder / f"out{keep}", force=True)
            space.out.mkdir()
            (space.out / "streamdiffusion.toml").write_text('[export]\ntool = "export_model.py"\n')
            (space.out / "model_index.json").write_text("old")
            # Names that somebody may use for copies of theirs.
            for name in (f"out{keep}.old", f"out{keep}.whole"):
                (self.folder / name).mkdir()
                (self.folder / name / "mine.txt").write_text("mine")
            space.open()
            (space.begin("unet") / "model.onnx").write_bytes(b"new")
            space.finish("unet", "k", error=0.0)
            self.assertEqual(set(space.files()), {"unet/model.onnx"})
            self.assertEqual((space.out / "model_index.json").read_text(), "old")
            space.publish(keep)
            self.assertEqual([p.relative_to(space.out).as_posix() for p in space.out.rglob("*") if p.is_file()], ["unet/model.onnx"])
            self.assertEqual(space.partial.exists(), keep)
            self.assertEqual(bool(keep and space.finished("unet", "k")), keep)
            left = {f"out{keep}", f"out{keep}.old", f"out{keep}.whole"} | ({f"out{keep}.partial"} if keep else set())
            self.assertEqual({p.name for p in self.folder.iterdir() if p.name.startswith(f"out{keep}")}, left)
            for name in (f"out{keep}.old", f"out{keep}.whole"):
                self.assertEqual((self.folder / name / "mine.txt").read_text(), "mine")

    def test_a_folder_of_somebody_elses_is_left_alone(self):
        space = workspace.Workspace(self.folder / "out")
        space.partial.mkdir()
        (space.partial / "mine.txt").write_text("mine")
        with self.assertRaisesRegex(ExportError, "not from export_model.py"):
            space.open()
        (space.partial / workspace.LOCK).write_text("mine too")
        with self.assertRaisesRegex(ExportError, "not from export_model.py"):
            space.open()
        self.assertEqual({p.name: p.read_text() for p in space.partial.iterdir()}, {"mine.txt": "mine", workspace.LOCK: "mine too"})

    def test_what_the_export_reads_is_not_written_over(self):
        out = self.folder / "out"
        out.mkdir()
        (out / "streamdiffusion.toml").write_text('[export]\ntool = "export_model.py"\n')
        (out / "unet").mkdir()
        for path in (out, self.folder, out / "unet", out / "unet" / "lora.safetensors"):
            with self.assertRaisesRegex(ExportError, "SOURCE.*which the export reads"):
                workspace.Workspace(out, True, {"SOURCE": path}).open()
        for path in (out.with_name("out.partial"), out.with_name("out.partial") / "unet"):
            with self.assertRaisesRegex(ExportError, "which the export reads"):
                workspace.Workspace(out, True, {"SOURCE": path}).open()
        (self.folder / "link").symlink_to(out)
        with self.assertRaisesRegex(ExportError, "which the export reads"):
            workspace.Workspace(self.folder / "link", True, {"SOURCE": out}).open()
        self.assertTrue((out / "unet").is_dir())
        self.assertFalse((self.folder / "out.partial").exists())
        # A new folder in that of the source takes nothing away.
        space = workspace.Workspace(out / "unet" / "new", False, {"SOURCE": out})
        space.open()
        space.close()
        self.assertFalse((out / "unet" / "new.partial").exists())

    def test_two_processes_do_not_write_one_folder(self):
        first, second = (workspace.Workspace(self.folder / "out") for _ in range(2))
        first.open()
        with self.assertRaisesRegex(ExportError, f"process {os.getpid()} is writing"):
            second.open()
        (first.begin("unet") / "model.onnx").write_bytes(b"x")
        first.close()
        second.open()
        self.assertTrue((second.partial / "unet").exists())
        second.close()

    def test_paths_without_a_name(self):
        with self.assertRaisesRegex(ExportError, "top of a disk"):
            workspace.Workspace(pathlib.Path("/"))
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.folder)
        for path in (".", "..", self.folder):
            with self.assertRaisesRegex(ExportError, "exists"):
                workspace.Workspace(pathlib.Path(path)).open()
        (self.folder / "streamdiffusion.toml").write_text('[export]\ntool = "export_model.py"\n')
        with self.assertRaisesRegex(ExportError, "working directory"):
            workspace.Workspace(pathlib.Path("."), True).open()

    def test_too_little_disk(self):
        space = workspace.Workspace(self.folder / "out")
        space.open()
        with self.assertRaisesRegex(ExportError, "GB of disk are needed"):
            space.check_space(1 << 60)


class Hashing(common.Case):
    def test_what_an_earlier_run_made_is_of_use_to_the_same_tool_only(self):
        here = pathlib.Path(hashing.__file__).parent
        for name in ("one", "two", "three"):
            shutil.copytree(here, self.folder / name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        with open(self.folder / "three" / "modules.py", "a", encoding="utf-8") as f:
            f.write("# changed\n")
        one, two, three = (hashing.of_tool(self.folder / n) for n in ("one", "two", "three"))
        self.assertEqual((one, one), (two, hashing.of_tool()))
        self.assertNotEqual(one, three)


class Check(common.Case):
    def test_a_graph_that_differs_is_an_error(self):
        import onnx
        import torch
        from onnx import TensorProto, helper

        from export import graphs

        node = helper.make_node("Mul", ["x", "two"], ["y"])
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in "xy"]
        graph = helper.make_graph([node], "g", values[:1], values[1:], [helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])])
        path = self.folder / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        x = graphs.Input("x", (graphs.Axis("batch"), 2), graphs.normal())
        for factor, fails in [(2.0, False), (2.0001, False), (2.01, True), (math.inf, True)]:
            spec = graphs.GraphSpec("unet", None, [x], {"y": ()}, lambda t, f=factor: [t * f], [{"batch": 2}, {"batch": 1}, {"batch": 3}])
            batches = check.inputs(spec, torch.float32)
            wanted = check.expected(spec, batches)
            if fails:
                with self.assertRaises(ExportError):
                    check.compare(spec, path, batches, wanted, torch.float32)
            else:
                self.assertLess(check.compare(spec, path, batches, wanted, torch.float32).relative, 1e-3)
