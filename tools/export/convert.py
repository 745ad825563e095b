"""The whole way from a source to a model folder."""

import gc
import importlib.metadata
import json
import pathlib
import platform

import torch

from . import TOOL, VERSION, check, defaults, graphs, hashing, kinds, lora, manifest, single_file, to_onnx, vae
from .errors import ExportError
from .progress import Progress, gigabytes, peak_memory
from .source import PICKLES, FolderSource
from .workspace import Workspace

DTYPES = {"f32": torch.float32, "f16": torch.float16}


def versions():
    """What the graphs depend on besides the weights."""
    names = ("torch", "diffusers", "transformers", "peft", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ExportError(f"the package {name} is not installed: pip install -r tools/requirements-export.txt") from None
    return found


def open_source(options, say):
    """SOURCE -> a source of networks."""
    from . import hub

    path = pathlib.Path(options.source)
    half = options.dtype == "f16"
    if path.suffix.lower() in (".safetensors", *PICKLES) and not path.exists():
        raise ExportError(f"{path}: no such file")
    if options.config is not None and (path.is_dir() or hub.is_id(options.source) and not path.exists()):
        raise ExportError(f"--config is for single-file checkpoints; {options.source} has configurations of its own")
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise ExportError(f"{path}: a folder without model_index.json: not a diffusers pipeline")
        return FolderSource(path, half=half, prediction=options.prediction)
    if path.is_file():
        return single_file.SingleFileSource(path, options.config, options.prediction)
    if hub.is_id(options.source):
        return FolderSource(hub.fetch_pipeline(options.source, options.vae == "full", options.offline, say, half), label=options.source, half=half, prediction=options.prediction)
    raise ExportError(f"{options.source}: no such folder or file, and not a hub id such as stabilityai/sd-turbo")


def check_sizes(options, unet_config, vae_config):
    """-> sizes of (latent, picture) as (width, height), or (None, None); and the multiple pixels must be of."""
    scale = kinds.vae_scale(vae_config)
    multiple = scale * kinds.latent_multiple(unet_config)
    if options.size is None:
        return None, None, multiple
    for value in options.size:
        if value % multiple:
            raise ExportError(f"--size {options.size_text}: width and height must be multiples of {multiple} for this model")
    return (options.size[0] // scale, options.size[1] // scale), options.size, multiple


def inputs(options):
    """{option: path} of everything on disk that is read."""
    found = {"SOURCE": pathlib.Path(options.source), "--config": options.config, "--vae": None if options.vae in ("full", "tiny") else pathlib.Path(options.vae)}
    found |= {f"--lora {l.path.name}": l.path for l in options.loras}
    return {what: path for what, path in found.items() if path is not None and path.exists()}


class Conversion:
    """One run of the command."""

    def __init__(self, options):
        self.options = options
        self.dtype = DTYPES[options.dtype]
        self.errors, self.overflow = {}, []
        self.progress = Progress()

    def run(self):
        """Writes the folder; returns the Workspace's OUT."""
        o = self.options
        found = versions()
        space = Workspace(o.out, o.force, inputs(o))
        lora.check_files(o.loras)
        space.open()
        try:
            return self.write(space, found)
        finally:
            self.progress.close()
            space.close()

    def write(self, space, found):
        """`run`, once OUT.partial is there."""
        o, say = self.options, self.progress.say
        source = open_source(o, say)
        picture = vae.open_vae(o, source, say)
        unet_config = source.config("unet")
        vae.check(picture, unet_config)
        latent, pixels, multiple = check_sizes(o, unet_config, picture.config)
        self.preflight(source)
        parts = [*source.text_encoders, "unet"]
        counts = {p: source.elements(p) for p in parts}
        say(f"{source.label}: {kinds.architecture(source.xl, unet_config)}, {sum(counts.values()) / 1e6:.0f} M weights, to {o.dtype}")

        components = [*parts, "vae_encoder", "vae_decoder"]
        self.progress.start(3 * len(components) + 2 + bool(o.loras))
        with self.progress.step("hashes of what it is made of"):
            note_of_loras = [{"file": l.path.name, "sha256": hashing.of_file(l.path), "scale": l.scale} for l in o.loras]
            common = {"versions": found, "tool": hashing.of_tool(), "dtype": o.dtype, "opset": o.opset, "python": platform.python_version_tuple()[:2]}
            networks = lora.Fused(source, o.loras, self.progress) if o.loras else source
            width = 2 if o.dtype == "f16" else 4
            # Names, key, bytes, and what makes the graphs.
            plan = []
            for part in source.text_encoders:
                key = hashing.of_value([common, part, source.digest(part), source.xl, o.clip_skip, note_of_loras])
                plan.append(([part], key, counts[part] * width, lambda p=part: self.text_graphs(networks, p)))
            key = hashing.of_value([common, "unet", source.digest("unet"), source.xl, latent, o.batch, note_of_loras])
            plan.append((["unet"], key, counts["unet"] * width, lambda: self.unet_graphs(networks, latent)))
            key = hashing.of_value([common, "vae", picture.digest(), pixels, source.xl])
            plan.append((["vae_encoder", "vae_decoder"], key, picture.elements() * 4, lambda: self.vae_graphs(picture, pixels, source.xl)))
            notes = [[space.finished(n, key) for n in names] for names, key, _, _ in plan]
            space.check_space(int(1.05 * sum(size for (_, _, size, _), there in zip(plan, notes) if not all(there))) + (64 << 20))
        for (names, key, _, make), there in zip(plan, notes):
            self.component(space, names, key, there, make)
        with self.progress.step("configuration, hashes"):
            self.rest(space, source, picture, components, found, note_of_loras, multiple, unet_config)
        space.publish(o.keep_work)
        total = sum(p.stat().st_size for p in o.out.rglob("*") if p.is_file())
        say(f"{o.out}: {gigabytes(total)}; peak memory {gigabytes(peak_memory())}")
        return o.out

    def preflight(self, source):
        """Everything small that the folder needs, read before hours are spent on the networks."""
        kinds.check_scheduler(source.config("scheduler"), source.folder / "scheduler" / "scheduler_config.json")
        for tokenizer, encoder in zip(source.tokenizers, source.text_encoders):
            source.check_tokenizer(tokenizer, source.config(encoder).get("vocab_size", 49408))
        for part in ["unet", *source.text_encoders] + ["vae"] * (self.options.vae == "full"):
            source.check_weights(part)
        if self.options.clip_skip:
            self.check_clip_skip(source)

    def check_clip_skip(self, source):
        layers = min(source.config(p).get("num_hidden_layers", 12) for p in source.text_encoders)
        if self.options.clip_skip >= layers - 1:
            raise ExportError(f"--clip-skip is {self.options.clip_skip}, expected less than {layers - 1}: the text encoder has {layers} layers")

    def component(self, space, names, key, notes, make):
        """Exports the graphs that `make` gives, or takes up those of an earlier run, of which there are `notes`."""
        progress = self.progress
        if all(notes):
            for name, note in zip(names, notes):
                self.record(name, note)
                progress.say(f"  {name}: taken from the earlier run (nothing that it is made of has changed)")
                progress.skip(3)
            return
        with progress.step(f"{', '.join(names)}: load"):
            specs, config, dtype, network = make()
        for spec in specs:
            if spec.component != names[0]:
                progress.skip(1)
            folder = space.begin(spec.component)
            with progress.step(f"{spec.component}: export"):
                batches = check.inputs(spec, dtype)
                large = {}
                if dtype == torch.float16:
                    network.half().float()  # what is compared is the graph, not the rounding of the weights
                    with check.watch(network) as large:
                        wanted = check.expected(spec, batches)
                else:
                    wanted = check.expected(spec, batches)
                network.to(dtype)
                to_onnx.export(spec, dtype, self.options.opset, folder)
            if spec is specs[-1]:
                # Before the graph is loaded beside it: two copies of the weights are enough.
                network.to("meta")
                gc.collect()
            with progress.step(f"{spec.component}: check"):
                worst = check.compare(spec, folder / "model.onnx", batches, wanted, dtype)
            progress.say(f"  {spec.component}: differs from torch by {worst.absolute:.2e} at most, {worst.relative:.2e} of the largest value")
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            overflow = [f"{spec.component}: {layer}: {most:.3g}" for layer, most in large.items()]
            self.record(spec.component, space.finish(spec.component, key, error=worst.absolute, overflow=overflow))

    def record(self, component, note):
        """Keeps what is known of a finished graph for the manifest, and warns of numbers beyond f16."""
        self.errors[component] = note["error"]
        found = note.get("overflow", [])
        self.overflow += found
        if found:
            more = f", and {len(found) - 1} layers more" if len(found) > 1 else ""
            self.progress.say(
                f"  warning: {found[0]} is beyond f16, which ends at 65504{more}: a device that computes in f16 makes infinities of it; "
                + ("give --dtype f32, or another autoencoder (--vae)" if component.startswith("vae") else "give --dtype f32")
            )

    def text_graphs(self, networks, part):
        model = networks.load(part)
        return [graphs.text_encoder(part, model, networks.xl, self.options.clip_skip)], text_config(model, self.dtype), self.dtype, model

    def unet_graphs(self, networks, latent):
        model = networks.load("unet")
        return [graphs.unet(model, networks.xl, latent, self.options.batch)], plain_config(model), self.dtype, model

    def vae_graphs(self, picture, pixels, xl):
        model = picture.load()
        dtype = self.dtype
        # diffusers writes this mark for all of them, but heeds it for XL only: XL's overflows, those before do not.
        if dtype == torch.float16 and xl and picture.config.get("force_upcast") and picture.class_name == "AutoencoderKL":
            self.progress.say("  vae: force_upcast is set, it overflows in f16: kept f32")
            dtype = torch.float32
        return graphs.vae(model, pixels), plain_config(model, picture.config), dtype, model

    def rest(self, space, source, picture, components, found, loras, multiple, unet_config):
        """Everything but the graphs."""
        o = self.options
        space.keep_only({*components})
        for part in source.tokenizers:
            source.save_tokenizer(part, space.partial / part)
        write = lambda name, value: (space.partial / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")  # noqa: E731
        (space.partial / "scheduler").mkdir()
        scheduler = source.config("scheduler")
        distilled = unet_config.get("time_cond_proj_dim") is not None
        kind = o.kind or defaults.kind(source.names, scheduler.get("_class_name", ""), distilled, [lora.called(l.path) for l in o.loras], source.xl)
        scheduler = defaults.scheduler(scheduler, kind, o.scheduler)
        write("scheduler/scheduler_config.json", scheduler)
        index = {"_class_name": source.index["_class_name"], "_diffusers_version": found["diffusers"]}
        for part in [*source.text_encoders, *source.tokenizers, "unet", "scheduler"]:
            index[part] = source.index[part]
        index["scheduler"] = ["diffusers", scheduler.get("_class_name") or source.index["scheduler"][1]]
        index["vae_encoder"] = index["vae_decoder"] = ["diffusers", picture.class_name]
        if source.xl:
            index["force_zeros_for_empty_prompt"] = source.index.get("force_zeros_for_empty_prompt", True)
        write("model_index.json", index)

        table = defaults.choose(kind, distilled, unet_config, kinds.vae_scale(picture.config), o.size)
        if kind == "plain":
            self.progress.say("  note: nothing tells that this model works in a few steps; an LCM- or TCD-LoRA (--lora) makes it one that does; if it is one, --kind says so")
        tables = {
            "": {"name": o.name or within(source.label.rpartition("/")[2], 200), "license": o.license, "source": within(source.label, 2000)},
            "defaults": defaults.merge(table, o.defaults),
            "limits": {"multiple": multiple},
            "vae": {"posterior": "mean"},
            "export": {
                "tool": TOOL, "version": VERSION, "torch": found["torch"], "diffusers": found["diffusers"], "dtype": o.dtype,
                "clip_skip": o.clip_skip, "vae": picture.label, "size": o.size_text, "batch": "dynamic" if o.batch is None else o.batch, "loras": loras,
                "overflow": self.overflow[:100] if o.dtype == "f16" else None,
            },
            "export.files": space.files(),
            "export.errors": self.errors,
        }
        (space.partial / "streamdiffusion.toml").write_text(manifest.render(tables), encoding="utf-8")


def within(text, limit):
    """The beginning of a text, of at most so many bytes; what is no text in a file's name becomes question marks."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def text_config(model, dtype):
    """A text encoder's configuration as JSON, without where it came from; `dtype` is its graph's."""
    config = {**model.config.to_dict(), "dtype": "float16" if dtype == torch.float16 else "float32"}
    config.pop("_name_or_path", None)
    return config


def plain_config(model, original=None):
    """A diffusers network's configuration as JSON, without where it came from."""
    config = {k: v for k, v in json.loads(model.to_json_string()).items() if k not in ("_name_or_path", "_use_default_values")}
    # Tiny autoencoders fill in block_out_channels themselves; what a file says stays.
    return {**{k: v for k, v in (original or {}).items() if not k.startswith("_")}, **config}
