"""The script that makes the reference frames writes only when it should."""

import contextlib
import io
import pathlib
import sys
from unittest import mock

import numpy as np
import torch

from export.tests import common

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "reference"))
import architectures  # noqa: E402


class Architectures(common.Case):
    def setUp(self):
        super().setUp()
        self.addCleanup(torch.set_num_threads, torch.get_num_threads())

    def run_with(self, *arguments):
        """-> which parts ran."""
        ran = []
        with contextlib.ExitStack() as stack:
            for owner, name in [(architectures, "export"), (architectures, "frames"), (architectures.tiny_models, "save"), (architectures.tiny_models, "build")]:
                stack.enter_context(mock.patch.object(owner, name, side_effect=lambda *a, n=name: ran.append(n)))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            architectures.main(["--work", str(self.folder), *arguments])
        return set(ran)

    def test_check_writes_nothing(self):
        self.assertEqual(self.run_with("--check"), {"build", "frames"})
        self.assertEqual(self.run_with("--check", "--only", "frames"), {"build", "frames"})
        self.assertEqual(self.run_with(), {"build", "save", "export", "frames"})
        for parts in (["export"], ["models"], ["frames", "export"]):
            with self.assertRaises(SystemExit):
                self.run_with("--check", *(a for p in parts for a in ("--only", p)))

    def test_nothing_is_written_before_all_folders_agree(self):
        data = self.folder / "data"
        (data / "sd1").mkdir(parents=True)
        (data / "old.npy").write_bytes(b"old")
        case = architectures.case("sd1", "x")
        for difference, agrees in ((1, True), (9, False)):
            # torch gives 100, ONNX Runtime something near or far.
            run = lambda model, c, pictures, d=difference: np.full_like(pictures, 100 + (d if model == "onnx" else 0))  # noqa: E731
            with (
                mock.patch.object(architectures, "DATA", data), mock.patch.object(architectures, "cases", return_value=[case]), mock.patch.object(architectures, "effects"),
                mock.patch.object(architectures, "telling"), mock.patch.object(architectures.networks, "Torch", return_value="torch"),
                mock.patch.object(architectures.networks, "Onnx", return_value="onnx"), mock.patch.object(architectures.frame_by_frame, "run", side_effect=run),
                contextlib.redirect_stdout(io.StringIO()), contextlib.nullcontext() if agrees else self.assertRaisesRegex(AssertionError, "differs by 9"),
            ):
                architectures.frames({"sd1": None}, False, {"sd1"})
            if agrees:
                self.assertEqual({p.name for p in data.iterdir()}, {"sd1", "cases.json", "sd1-x.out.npy", "clip-64x64.in.npy"})
                (data / "old.npy").write_bytes(b"old")
        self.assertTrue((data / "old.npy").exists())
