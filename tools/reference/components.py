"""Reference values and odd graphs for tests/model_folder.rs.

Writes tests/data/components.npz (what the parity model's U-Net and autoencoder make of random input, computed by
ONNX's own numpy evaluator and confirmed by ONNX Runtime) and tests/data/odd/ (a model folder of a few hundred bytes
a graph that does everything the parity model does not: fixed batches, one timestep for all rows, float16, int32,
extra text inputs, mean and variance, a fixed size, vocab.json and merges.txt).

    python tools/reference/components.py     # needs numpy, onnx, onnxruntime
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as T
from onnx import helper as h
from onnx.reference import ReferenceEvaluator

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
PARITY = DATA / "parity" / "model"


def run(component, inputs):
    path = str(PARITY / component / "model.onnx")
    (reference,) = ReferenceEvaluator(path).run(None, inputs)
    (runtime,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
    print(component, reference.shape, "largest difference", abs(reference - runtime).max())
    assert np.allclose(reference, runtime, atol=2e-4)
    return reference.astype(np.float32)


def components():
    rng = np.random.default_rng(7)
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    values = {
        "picture": np.clip(normal(2, 3, 32, 16) * 0.5, -1, 1),
        "latent": normal(2, 4, 4, 2),
        "text": normal(2, 16, 32),
        "timestep": np.array([799, 259], dtype=np.float32),
    }
    values["encoded"] = run("vae_encoder", {"sample": values["picture"]})
    values["decoded"] = run("vae_decoder", {"latent_sample": values["latent"]})
    values["predicted"] = run(
        "unet",
        {"sample": values["latent"], "timestep": values["timestep"], "encoder_hidden_states": values["text"]},
    )
    np.savez(DATA / "components.npz", **values)


def save(component, nodes, inputs, outputs, constants, config):
    folder = DATA / "odd" / component
    folder.mkdir(parents=True)
    info = lambda ports: [h.make_tensor_value_info(*p) for p in ports]
    graph = h.make_graph(
        [h.make_node(op, i.split(), o.split(), **attributes) for op, i, o, attributes in nodes],
        component,
        info(inputs),
        info(outputs),
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(config) + "\n")


def odd():
    shutil.rmtree(DATA / "odd", ignore_errors=True)
    f16, f32, i64 = np.float16, np.float32, np.int64
    # [ids·mask, positions] / 64, for two texts at a time; the pooled output comes first and is not the one wanted.
    save(
        "text_encoder",
        [
            ("Cast", "tokens", "ids", {"to": T.INT64}),
            ("Mul", "ids attention_mask", "masked", {}),
            ("Unsqueeze", "masked last", "a", {}),
            ("Unsqueeze", "position_ids last", "b", {}),
            ("Concat", "a b", "both", {"axis": 2}),
            ("Cast", "both", "float", {"to": T.FLOAT16}),
            ("Div", "float scale", "hidden", {}),
            ("ReduceMax", "hidden", "pooled", {"axes": [1], "keepdims": 0}),
        ],
        [("tokens", T.INT32, [2, 16]), ("attention_mask", T.INT64, [2, 16]), ("position_ids", T.INT64, [2, 16])],
        [("pooled", T.FLOAT16, [2, 2]), ("hidden", T.FLOAT16, [2, 16, 2])],
        {"last": np.array([2], i64), "scale": np.array(64, f16)},
        {"vocab_size": 526, "max_position_embeddings": 16},
    )
    # sample/2 + timestep + the text's largest value, for two rows at one timestep.
    save(
        "unet",
        [
            ("Mul", "x half", "y", {}),
            ("Cast", "t", "tf", {"to": T.FLOAT16}),
            ("Add", "y tf", "z", {}),
            ("ReduceMax", "words", "m", {"axes": [1, 2], "keepdims": 1}),
            ("Unsqueeze", "m last", "m4", {}),
            ("Add", "z m4", "out", {}),
        ],
        [("x", T.FLOAT16, [2, 4, 4, 4]), ("t", T.INT64, []), ("words", T.FLOAT16, [2, 16, 2])],
        [("out", T.FLOAT16, [2, 4, 4, 4])],
        {"half": np.array(0.5, f16), "last": np.array([3], i64)},
        {"in_channels": 4, "block_out_channels": [8, 8]},
    )
    # Means of 2x2 pixels: mean c is channel c modulo 3, the logarithm of every variance is channel 0.
    weights = np.zeros((8, 3, 1, 1), f32)
    for c in range(4):
        weights[c, c % 3] = 1
        weights[4 + c, 0] = 1
    vae = {"latent_channels": 4, "block_out_channels": [8, 8], "scaling_factor": 0.5, "shift_factor": 0.25}
    save(
        "vae_encoder",
        [
            ("AveragePool", "pixels", "small", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", "small weights", "latent_parameters", {}),
        ],
        [("pixels", T.FLOAT, ["n", 3, "h", "w"])],
        [("latent_parameters", T.FLOAT, ["n", 8, "h2", "w2"])],
        {"weights": weights},
        vae,
    )
    # Every latent sample becomes 2x2 pixels; one frame at a time.
    weights = np.zeros((4, 3, 2, 2), f32)
    for c in range(3):
        weights[c, c] = 1
    save(
        "vae_decoder",
        [("ConvTranspose", "latents weights", "pixels", {"strides": [2, 2]})],
        [("latents", T.FLOAT, [1, 4, 4, 4])],
        [("pixels", T.FLOAT, [1, 3, 8, 8])],
        {"weights": weights},
        vae,
    )
    out = DATA / "odd"
    index = {"_class_name": "OnnxStableDiffusionPipeline", "safety_checker": [None, None]}
    (out / "model_index.json").write_text(json.dumps(index) + "\n")
    (out / "streamdiffusion.toml").write_text('name = "Odd"\n\n[vae]\nposterior = "sample"\n')
    shutil.copytree(PARITY / "scheduler", out / "scheduler")
    (out / "tokenizer").mkdir()
    model = json.loads((PARITY / "tokenizer" / "tokenizer.json").read_text())
    vocab = model["model"]["vocab"] | {t["content"]: t["id"] for t in model["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["model"]["merges"]]
    (out / "tokenizer" / "vocab.json").write_text(json.dumps(vocab) + "\n")
    (out / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "".join(m + "\n" for m in merges))
    (out / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 1e30}\n')
    (out / "tokenizer" / "special_tokens_map.json").write_text(
        '{"bos_token": {"content": "<|startoftext|>"}, "eos_token": "<|endoftext|>", "pad_token": "!"}\n'
    )


components()
odd()
