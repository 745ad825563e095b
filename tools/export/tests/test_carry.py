"""tools/carry_model.py: a folder without its weights, and weights of the same spread in it."""

import contextlib
import io
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import numpy as np
import onnx

import carry_model


def graph(path, weights):
    """A file of initializers alone, all of them external."""
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx_data", size_threshold=0)


def read(path):
    return {t.name: onnx.numpy_helper.to_array(t, str(path.parent)) for t in onnx.load(str(path), load_external_data=False).graph.initializer}


class Carry(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder, self.out = pathlib.Path(scratch.name, "model"), pathlib.Path(scratch.name, "out")
        rng = np.random.default_rng(3)
        self.weights = {
            "matrix": (0.25 + 0.03 * rng.standard_normal((300, 200))).astype(np.float16),
            "zeros": np.zeros(7, np.float16),
            "table": np.arange(77, dtype=np.int64),
            "frequencies": rng.standard_normal(160).astype(np.float32),
        }
        graph(self.folder / "unet/model.onnx", self.weights)
        (self.folder / "model_index.json").write_text("{}")
        (self.folder / "streamdiffusion.toml").write_text(f'[export.files]\n"unet/model.onnx" = "{"0" * 64}"\n"unet/model.onnx_data" = "{"1" * 64}"\n')

    def run_tool(self, *arguments):
        """-> (exit status, what it said as an error)."""
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            status = carry_model.main([str(a) for a in arguments])
        return status, errors.getvalue()

    def filled(self, *arguments):
        self.assertEqual(self.run_tool("fill", self.out, *arguments), (0, ""))
        return read(self.out / "unet/model.onnx")

    def test_round_trip(self):
        self.assertEqual(self.run_tool("strip", self.folder, self.out), (0, ""))
        self.assertFalse((self.out / "unet/model.onnx_data").exists())
        self.assertNotIn("onnx_data", (self.out / "streamdiffusion.toml").read_text())
        self.assertIn("unet/model.onnx", (self.out / "streamdiffusion.toml").read_text())
        # Smaller pieces than the matrix, so that it is put together from several.
        with mock.patch.object(carry_model, "CHUNK", 7001):
            got = self.filled()
        self.assertEqual((self.out / "unet/model.onnx_data").stat().st_size, (self.folder / "unet/model.onnx_data").stat().st_size)
        self.assertEqual([p.name for p in (self.out / "unet").iterdir() if "weights" in p.name or "partial" in p.name], [])
        for name in ("zeros", "table", "frequencies"):
            np.testing.assert_array_equal(got[name], self.weights[name])
        matrix, was = got["matrix"].astype(np.float64), self.weights["matrix"].astype(np.float64)
        self.assertFalse(np.array_equal(matrix, was))
        # 60,000 numbers: the mean is known to 0.03/245, the deviation to 0.03/346; five times that.
        self.assertLess(abs(matrix.mean() - was.mean()), 6e-4)
        self.assertLess(abs(matrix.std() - was.std()), 4.5e-4)
        # No piece repeats another.
        flat = matrix.ravel()
        self.assertLess(abs(np.corrcoef(flat[:7001], flat[7001:14002])[0, 1]), 0.06)

    def test_seed(self):
        self.run_tool("strip", self.folder, self.out)
        note = self.out / "unet" / ("model.onnx_data" + carry_model.SUFFIX)
        kept, matrices = note.read_text(), []
        for seed, cores in ((0, {0}), (0, {0, 1, 2}), (1, {0})):
            note.write_text(kept)
            with mock.patch.object(carry_model.os, "sched_getaffinity", return_value=cores):
                matrices.append(self.filled("--seed", seed)["matrix"])
        np.testing.assert_array_equal(matrices[0], matrices[1])
        self.assertFalse(np.array_equal(matrices[0], matrices[2]))

    def test_refused(self):
        self.assertEqual(self.run_tool("strip", self.folder / "unet", self.out), (1, f"error: {self.folder / 'unet'}: no model_index.json, so this is no model folder\n"))
        self.assertIn("is there already", self.run_tool("strip", self.folder, self.folder)[1])
        self.assertIn("not made by `strip`", self.run_tool("fill", self.folder)[1])
        self.run_tool("strip", self.folder, self.out)
        note = self.out / "unet" / ("model.onnx_data" + carry_model.SUFFIX)
        good = json.loads(note.read_text())
        for bad, words in (({}, "not what `strip` writes"), (good | {"bytes": 10}, "outside of the file"), (good | {"bytes": 1 << 60}, "are free")):
            note.write_text(json.dumps(bad))
            status, said = self.run_tool("fill", self.out)
            self.assertEqual(status, 1)
            self.assertIn(words, said)
            self.assertIn("unet", said)
            self.assertFalse((self.out / "unet/model.onnx_data").exists())


if __name__ == "__main__":
    unittest.main()
