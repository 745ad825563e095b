"""random_graphs: the folders that are written without a comparison."""

import filecmp

import torch

from export import random_graphs, random_model
from export.tests import common


class RandomGraphs(common.Case):
    def test_they_are_what_an_export_makes(self):
        for kind in ("sd-turbo", "sdxl-turbo"):
            wanted = self.folder / f"{kind}-wanted"
            source = self.folder / f"{kind}-source"
            random_model.write(kind, source, small=True, dtype=torch.float16, seed=3)
            common.export(source, wanted, "--dtype", "f16", "--offline")
            found = random_graphs.write(kind, self.folder / kind, small=True, seed=3)
            graphs = sorted(p.relative_to(wanted) for p in wanted.rglob("*.onnx*"))
            self.assertGreaterEqual(len(graphs), 4, kind)
            self.assertEqual(sorted(p.relative_to(found) for p in found.rglob("*.onnx*")), graphs, kind)
            for name in graphs:
                self.assertTrue(filecmp.cmp(wanted / name, found / name, shallow=False), f"{kind}: {name}")
