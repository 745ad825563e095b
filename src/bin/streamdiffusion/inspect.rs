//! `streamdiffusion inspect`: what is in a model folder, and what is wrong with it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gststreamdiffusion::error::Error;
use gststreamdiffusion::model::{
    BetaSchedule, ComponentFile, Defaults, Export, ExportBatch, ExportDtype, Inspection, Port,
    PredictionType, SchedulerConfig, Weights,
};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::printing::{bytes, count, print, shown};
use crate::verify::verify;

/// Tell what is in a model folder and all that is wrong with it.
///
/// Reads headers and configurations, not weights. The exit status is 1 when the folder cannot be used.
#[derive(clap::Args)]
pub struct Args {
    /// Model folder; the bundled demo model if left out
    folder: Option<PathBuf>,
    /// Read all files too, and compare them with the SHA-256 that the export noted
    #[arg(long)]
    verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn inspect(args: &Args) -> Result<ExitCode, Failure> {
    let path = match &args.folder {
        Some(folder) => folder.clone(),
        None => gststreamdiffusion::bundled_model()?,
    };
    let mut found = Inspection::open(&path);
    let export = found.manifest.as_ref().and_then(|m| m.export.clone());
    let hashes = export.as_ref().filter(|export| !export.files.is_empty());
    let verified = match hashes {
        Some(export) if args.verify => {
            let wrong = verify(&path, export);
            found.errors.extend(wrong);
            Some(export.files.len())
        }
        _ if args.verify && path.is_dir() => {
            found.errors.push(Error::invalid(
                &path.join("streamdiffusion.toml"),
                "lists no hashes in export.files, so the files cannot be verified",
            ));
            None
        }
        _ => None,
    };
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&document(&path, &found, args.verify))
            .map_err(|error| Failure::new(error.to_string()))?;
        text.push('\n');
        text
    } else {
        report(&path, &found, verified)
    };
    print(&text)?;
    Ok(match found.errors.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn name(path: &Path, found: &Inspection) -> String {
    let named = found.manifest.as_ref().and_then(|m| m.name.clone());
    named
        .or_else(|| path.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_else(|| path.display().to_string())
}

/// What the picture sizes are, where the folder could be opened: `(width, height)` if fixed, and their multiple.
fn sizes(found: &Inspection) -> Option<(Option<(usize, usize)>, usize)> {
    let folder = found.folder.as_ref()?;
    Some((folder.fixed_size(), folder.multiple()))
}

fn prediction(scheduler: &SchedulerConfig) -> &'static str {
    match scheduler.prediction_type {
        PredictionType::Epsilon => "epsilon",
        PredictionType::VPrediction => "v_prediction",
        PredictionType::Sample => "sample",
    }
}

fn betas(scheduler: &SchedulerConfig) -> &'static str {
    match scheduler.beta_schedule {
        _ if scheduler.trained_betas.is_some() => "trained_betas",
        BetaSchedule::Linear => "linear",
        BetaSchedule::ScaledLinear => "scaled_linear",
        BetaSchedule::SquaredcosCapV2 => "squaredcos_cap_v2",
    }
}

/// The files of a component: the graph's, and those its weights are in, in order.
fn files(file: &ComponentFile) -> Vec<&Path> {
    let mut external: Vec<_> = file
        .graph
        .external_files
        .iter()
        .map(PathBuf::as_path)
        .collect();
    external.sort();
    external.insert(0, &file.path);
    external
}

fn disk(file: &ComponentFile) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    files(file).into_iter().map(size).sum()
}

/// The path as in the folder, for texts.
fn inside(folder: &Path, path: &Path) -> String {
    let path = path.strip_prefix(folder).unwrap_or(path);
    path.display().to_string()
}

/// An error without the folder's path, which all of them would begin with.
fn finding(folder: &Path, error: &Error) -> String {
    let text = error.to_string();
    let prefix = format!("{}/", folder.display());
    text.strip_prefix(&prefix)
        .map_or(text.clone(), str::to_owned)
}

fn defaults(defaults: &Defaults) -> Vec<(&'static str, Value)> {
    let list = |key, value: Option<Value>| value.map(|value| (key, value));
    [
        list("prompt", defaults.prompt.as_ref().map(|v| json!(v))),
        list(
            "negative_prompt",
            defaults.negative_prompt.as_ref().map(|v| json!(v)),
        ),
        list("steps", defaults.steps.map(|v| json!(v))),
        list("strength", defaults.strength.map(|v| json!(v))),
        list(
            "t_index_list",
            defaults.t_index_list.as_ref().map(|v| json!(v)),
        ),
        list(
            "num_inference_steps",
            defaults.num_inference_steps.map(|v| json!(v)),
        ),
        list("guidance_scale", defaults.guidance_scale.map(|v| json!(v))),
        list("delta", defaults.delta.map(|v| json!(v))),
        list("cfg_type", defaults.cfg_type.as_ref().map(|v| json!(v))),
        list("size", defaults.size.map(|v| json!(v))),
        list("width", defaults.width.map(|v| json!(v))),
        list("height", defaults.height.map(|v| json!(v))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn dtype(export: &Export) -> Option<&'static str> {
    export.dtype.map(|dtype| match dtype {
        ExportDtype::F16 => "f16",
        ExportDtype::F32 => "f32",
    })
}

fn report(path: &Path, found: &Inspection, verified: Option<usize>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut text, path, found, verified);
    text
}

fn write_report(
    out: &mut String,
    path: &Path,
    found: &Inspection,
    verified: Option<usize>,
) -> std::fmt::Result {
    writeln!(out, "{}", shown(&name(path, found)))?;
    let row =
        |out: &mut String, key: &str, value: &str| writeln!(out, "  {key:<11} {}", shown(value));
    row(out, "folder", &path.display().to_string())?;
    if let Some(manifest) = &found.manifest {
        row(
            out,
            "licence",
            manifest.license.as_deref().unwrap_or("not told"),
        )?;
        row(
            out,
            "source",
            manifest.source.as_deref().unwrap_or("not told"),
        )?;
    }
    if let Some(pipeline) = &found.pipeline {
        row(out, "pipeline", pipeline)?;
    }
    if let Some(s) = &found.scheduler {
        row(out, "prediction", prediction(s))?;
        let zero = if s.rescale_betas_zero_snr {
            ", rescaled to zero SNR"
        } else {
            ""
        };
        row(
            out,
            "schedule",
            &format!(
                "{} timesteps, {} betas {} to {}{zero}; consistency grid of {}, timestep scaling {}",
                s.num_train_timesteps,
                betas(s),
                s.beta_start,
                s.beta_end,
                s.original_inference_steps,
                s.timestep_scaling,
            ),
        )?;
    }
    match sizes(found) {
        Some((Some((width, height)), _)) => row(out, "sizes", &format!("{width}x{height} only"))?,
        Some((None, multiple)) => row(out, "sizes", &format!("any, in multiples of {multiple}"))?,
        None => {}
    }
    for (tokenizer, length) in &found.tokens {
        row(out, tokenizer, &format!("{length} tokens"))?;
    }
    if let Some(manifest) = &found.manifest {
        let defaults: Vec<_> = defaults(&manifest.defaults)
            .into_iter()
            .map(|(key, value)| format!("{} {value}", key.replace('_', "-")))
            .collect();
        if !defaults.is_empty() {
            row(out, "defaults", &defaults.join(", "))?;
        }
        if let Some(scale) = manifest.unet.guidance_embedding {
            row(out, "guidance", &format!("embedded, of scale {scale}"))?;
        }
        if let Some(export) = &manifest.export {
            write_export(out, export)?;
        }
    }
    for (file, weights) in &found.components {
        write_component(out, path, file, weights)?;
    }
    if found.components.len() > 1 {
        let all =
            |get: fn(&(ComponentFile, Weights)) -> u64| found.components.iter().map(get).sum();
        writeln!(
            out,
            "\nIn all: {} parameters, {}",
            count(all(|(_, weights)| weights.parameters())),
            bytes(all(|(file, _)| disk(file)))
        )?;
    }
    writeln!(out)?;
    if let Some(files) = verified {
        writeln!(out, "{files} files were compared with their hashes.")?;
    }
    match found.errors.len() {
        0 => writeln!(out, "Nothing is wrong with it."),
        n => {
            writeln!(out, "What is wrong with it ({n}):")?;
            for error in &found.errors {
                writeln!(out, "  {}", shown(&finding(path, error)))?;
            }
            Ok(())
        }
    }
}

fn write_export(out: &mut String, export: &Export) -> std::fmt::Result {
    let mut parts = Vec::new();
    let mut part = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            parts.push(format!("{key}{}", shown(value)));
        }
    };
    part("", export.tool.as_deref());
    part("version ", export.version.as_deref());
    part("torch ", export.torch.as_deref());
    part("diffusers ", export.diffusers.as_deref());
    part("", dtype(export));
    part("VAE ", export.vae.as_deref());
    part(
        "clip skip ",
        export.clip_skip.map(|n| n.to_string()).as_deref(),
    );
    part("size ", export.size.map(|size| size.to_string()).as_deref());
    part("batch ", batch(export).as_deref());
    writeln!(out, "  {:<11} {}", "export", parts.join(", "))?;
    for lora in &export.loras {
        let (file, sha256) = (shown(&lora.file), &lora.sha256);
        writeln!(
            out,
            "  {:<11} {file} × {}, SHA-256 {sha256}",
            "LoRA", lora.scale
        )?;
    }
    for (component, error) in &export.errors {
        let component = shown(component);
        writeln!(
            out,
            "  {:<11} {component} differs from torch by at most {error:.2e}",
            "checked"
        )?;
    }
    if !export.files.is_empty() {
        let n = export.files.len();
        writeln!(
            out,
            "  {:<11} of {n} files; --verify compares them",
            "hashes"
        )?;
    }
    Ok(())
}

fn batch(export: &Export) -> Option<String> {
    export.batch.as_ref().map(|batch| match batch {
        ExportBatch::Fixed(n) => n.to_string(),
        ExportBatch::Text(text) => text.clone(),
    })
}

fn write_component(
    out: &mut String,
    folder: &Path,
    file: &ComponentFile,
    weights: &Weights,
) -> std::fmt::Result {
    writeln!(out, "\n{}", shown(&inside(folder, &file.path)))?;
    let row =
        |out: &mut String, key: &str, value: String| writeln!(out, "  {key:<11} {}", shown(&value));
    let external = match file.graph.external_files.len() {
        0 => String::new(),
        1 => ", one file of weights beside it".to_owned(),
        n => format!(", {n} files of weights beside it"),
    };
    row(out, "size", format!("{}{external}", bytes(disk(file))))?;
    let dtypes = weights.dtypes();
    let types = match &dtypes[..] {
        [] => String::new(),
        [(only, _)] => format!(" in {only}"),
        more => {
            let types: Vec<_> = more
                .iter()
                .map(|(t, n)| format!("{} in {t}", count(*n)))
                .collect();
            format!(": {}", types.join(", "))
        }
    };
    row(
        out,
        "parameters",
        format!("{}{types}", count(weights.parameters())),
    )?;
    row(
        out,
        "graph",
        format!(
            "{} nodes, opset {}, format version {}",
            count(weights.nodes as u64),
            file.graph.opset,
            file.graph.ir_version
        ),
    )?;
    row(
        out,
        "batch",
        file.batch().map_or("any".into(), |n| format!("{n} only")),
    )?;
    for (i, port) in file.graph.inputs.iter().enumerate() {
        row(out, if i == 0 { "in" } else { "" }, self::port(port))?;
    }
    for (i, port) in file.graph.outputs.iter().enumerate() {
        let used = if (*port == file.output || Some(port) == file.pooled.as_ref())
            && file.graph.outputs.len() > 1
        {
            ", used"
        } else {
            ""
        };
        row(
            out,
            if i == 0 { "out" } else { "" },
            self::port(port) + used,
        )?;
    }
    Ok(())
}

fn port(port: &Port) -> String {
    let dim = |d: &Option<usize>| d.map_or("?".into(), |d| d.to_string());
    let dims: Vec<String> = port.dims.iter().map(dim).collect();
    format!("{} {} [{}]", port.name, port.dtype, dims.join(", "))
}

fn document(path: &Path, found: &Inspection, verified: bool) -> Value {
    let manifest = found.manifest.as_ref();
    let ports = |ports: &[Port]| -> Vec<Value> {
        let port =
            |p: &Port| json!({"name": p.name, "dtype": p.dtype.to_string(), "shape": p.dims});
        ports.iter().map(port).collect()
    };
    let components: Vec<Value> = found
        .components
        .iter()
        .map(|(file, weights)| {
            let dtypes: Map<String, Value> = weights
                .dtypes()
                .into_iter()
                .map(|(t, n)| (t, json!(n)))
                .collect();
            json!({
                "name": file.component.folder(),
                "file": inside(path, &file.path),
                "files": files(file).into_iter().map(|f| inside(path, f)).collect::<Vec<_>>(),
                "bytes": disk(file),
                "dtype": file.output.dtype.to_string(),
                "parameters": weights.parameters(),
                "weight_dtypes": dtypes,
                "tensors": weights.tensors,
                "nodes": weights.nodes,
                "opset": file.graph.opset,
                "ir_version": file.graph.ir_version,
                "batch": file.batch(),
                "inputs": ports(&file.graph.inputs),
                "outputs": ports(&file.graph.outputs),
                "output": file.output.name,
            })
        })
        .collect();
    let scheduler = found.scheduler.as_ref().map(|s| {
        json!({
            "prediction_type": prediction(s),
            "num_train_timesteps": s.num_train_timesteps,
            "beta_schedule": betas(s),
            "beta_start": s.beta_start,
            "beta_end": s.beta_end,
            "original_inference_steps": s.original_inference_steps,
            "timestep_scaling": s.timestep_scaling,
            "rescale_betas_zero_snr": s.rescale_betas_zero_snr,
        })
    });
    let export = manifest.and_then(|m| m.export.as_ref()).map(|export| {
        let loras: Vec<Value> = export
            .loras
            .iter()
            .map(|l| json!({"file": l.file, "sha256": l.sha256, "scale": l.scale}))
            .collect();
        json!({
            "tool": export.tool,
            "version": export.version,
            "torch": export.torch,
            "diffusers": export.diffusers,
            "dtype": dtype(export),
            "clip_skip": export.clip_skip,
            "vae": export.vae,
            "size": export.size.map(|size| size.to_string()),
            "batch": batch(export),
            "loras": loras,
            "files": export.files,
            "errors": export.errors,
        })
    });
    let sizes = sizes(found).map(|(fixed, multiple)| {
        json!({"fixed": fixed.map(|(width, height)| [width, height]), "multiple": multiple})
    });
    let defaults: Map<String, Value> = manifest
        .map(|m| defaults(&m.defaults))
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    json!({
        "name": name(path, found),
        "folder": path.display().to_string(),
        "license": manifest.and_then(|m| m.license.as_ref()),
        "source": manifest.and_then(|m| m.source.as_ref()),
        "pipeline": found.pipeline,
        "scheduler": scheduler,
        "sizes": sizes,
        "tokens": found.tokens.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "defaults": defaults,
        "guidance_embedding": manifest.and_then(|m| m.unet.guidance_embedding),
        "export": export,
        "components": components,
        "verified": verified,
        "errors": found.errors.iter().map(|e| finding(path, e)).collect::<Vec<_>>(),
        "usable": found.errors.is_empty(),
    })
}
