//! The components of a model folder: where they are, and which input of their graphs plays which role.
//!
//! Exporters name inputs and outputs as they like, so roles are read from types and shapes; names only decide where
//! those leave a choice.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::graph::{Graph, Port};
use super::read;
use crate::error::{Error, Result};

/// The most values of an input or output, as far as the graph fixes its dimensions: 1 GiB in float32. A picture of
/// 8192×8192 has fewer.
const VALUE_LIMIT: usize = 1 << 28;
/// Values of Stable Diffusion XL's "time ids".
pub const SIZE_IDS: usize = 6;

/// A part of a diffusion model with a graph of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Component {
    /// Token ids to text embedding.
    TextEncoder,
    /// Stable Diffusion XL's second text encoder.
    TextEncoder2,
    /// Noisy latent, timestep and text embedding to prediction.
    Unet,
    /// Picture to latent.
    VaeEncoder,
    /// Latent to picture.
    VaeDecoder,
}

impl Component {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [
        Self::TextEncoder,
        Self::TextEncoder2,
        Self::Unet,
        Self::VaeEncoder,
        Self::VaeDecoder,
    ];

    /// Its folder in the model folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::Unet => "unet",
            Self::VaeEncoder => "vae_encoder",
            Self::VaeDecoder => "vae_decoder",
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.folder())
    }
}

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token ids `[batch, L]`.
    TokenIds,
    /// Ones `[batch, L]`: Stable Diffusion attends to padding too.
    AttentionMask,
    /// 0…L-1, `[batch, L]`.
    PositionIds,
    /// The tensor that is transformed `[batch, C, H, W]`.
    Sample,
    /// The timestep: one number, or one for each row.
    Timestep,
    /// Text embedding `[batch, L, D]`.
    Text,
    /// Pooled text embedding `[batch, P]` of Stable Diffusion XL.
    Pooled,
    /// Stable Diffusion XL's "time ids" `[batch, 6]`: original height and width, top and left of the crop, target
    /// height and width, in pixels.
    SizeIds,
    /// Embedding `[batch, G]` of the guidance scale that a guidance-distilled U-Net imitates (arXiv 2310.04378, §4.3).
    GuidanceEmbedding,
}

/// Which output of a text encoder the U-Net wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Of the last layer, after its norm: Stable Diffusion 1 and 2.
    Last,
    /// Of the layer before the last: Stable Diffusion XL.
    Penultimate,
    /// The same, and the pooled embedding too: Stable Diffusion XL's second encoder.
    PenultimateAndPooled,
}

/// The keys of `config.json` that are used. All optional: exports by diffusers' first script have no `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Config {
    /// Text encoder: longest text in tokens.
    pub max_position_embeddings: Option<usize>,
    /// Text encoder: number of tokens it knows.
    pub vocab_size: Option<usize>,
    /// U-Net, VAE: channels of each block, finest first.
    pub block_out_channels: Option<Vec<usize>>,
    /// U-Net: channels of a latent, with whatever else it is given beside it.
    pub in_channels: Option<usize>,
    /// VAE: channels of a latent.
    pub latent_channels: Option<usize>,
    /// VAE: factor of latents between it and the U-Net.
    pub scaling_factor: Option<f64>,
    /// VAE: what is subtracted from latents before they are scaled.
    pub shift_factor: Option<f64>,
    /// U-Net: values of the guidance embedding, of guidance-distilled ones.
    pub time_cond_proj_dim: Option<usize>,
}

/// One component, found and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentFile {
    /// Which it is.
    pub component: Component,
    /// Its `model.onnx`.
    pub path: PathBuf,
    /// That file's header.
    pub graph: Graph,
    /// Its `config.json`.
    pub config: Config,
    /// Every input of the graph, with its role.
    pub inputs: Vec<(Role, Port)>,
    /// The output that is used.
    pub output: Port,
    /// The pooled text embedding `[batch, P]`, of Stable Diffusion XL's second text encoder.
    pub pooled: Option<Port>,
}

impl ComponentFile {
    /// Finds and checks `component` in the model folder at `folder`; `layer` is what is wanted of a text encoder.
    pub(super) fn open(folder: &Path, component: Component, layer: Layer) -> Result<Self> {
        let folder = folder.join(component.folder());
        if !folder.is_dir() {
            return Err(Error::not_found(
                &folder,
                format!("no such folder, expected the model's {component}"),
            ));
        }
        let config_path = folder.join("config.json");
        let config: Config = read::json_or_default(&config_path, read::CONFIG_LIMIT)?;
        config
            .check()
            .map_err(|what| Error::invalid(&config_path, what))?;
        let path = folder.join("model.onnx");
        if !path.exists() {
            // What people have is what diffusers loads.
            let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let hint = match files.into_iter().any(|f| read::holds_weights(&f.path())) {
                true => {
                    "; what is there are weights for diffusers, which tools/export_model.py makes graphs of"
                }
                false => "",
            };
            return Err(Error::not_found(
                &path,
                format!("no such file, expected the graph of the model's {component}{hint}"),
            ));
        }
        let graph = Graph::open(&path)?;
        let mut pooled = None;
        let roles = match component {
            Component::TextEncoder | Component::TextEncoder2 => {
                if layer == Layer::PenultimateAndPooled {
                    let port = pooled_output(&graph).map_err(|what| Error::invalid(&path, what))?;
                    pooled = Some(port);
                }
                text_encoder(&graph, layer)
            }
            Component::Unet => unet(&graph),
            Component::VaeEncoder => vae(&graph, Some(3), None),
            Component::VaeDecoder => vae(&graph, None, Some(3)),
        };
        let (inputs, output) = roles.map_err(|what| Error::invalid(&path, what))?;
        let file = Self {
            component,
            path,
            graph,
            config,
            inputs,
            output,
            pooled,
        };
        file.check_sizes()
            .map_err(|what| Error::invalid(&file.path, what))?;
        Ok(file)
    }

    /// Whether the sizes that the graph fixes are ones that memory may be set aside for.
    fn check_sizes(&self) -> std::result::Result<(), String> {
        let limit = |role: Role, dim: usize| match (role, dim) {
            (Role::Timestep, _) => 1 << 10,
            (_, 0) => 1 << 10,
            (Role::TokenIds | Role::AttentionMask | Role::PositionIds | Role::Text, 1) => 4096,
            (Role::Text | Role::Pooled | Role::SizeIds | Role::GuidanceEmbedding, _) => 1 << 16,
            (Role::Sample, 1) => 1 << 10,
            _ => 8192,
        };
        for (role, port) in &self.inputs {
            for dim in 0..port.dims.len() {
                let (most, size) = (limit(*role, dim), port.fixed(dim).unwrap_or(1));
                if size > most {
                    return Err(format!(
                        "its input {port} is {size} long in dimension {dim}, expected {most} at most"
                    ));
                }
            }
        }
        let inputs = self.inputs.iter().map(|(_, port)| ("input", port));
        let outputs = [Some(&self.output), self.pooled.as_ref()];
        let outputs = outputs.into_iter().flatten().map(|port| ("output", port));
        for (what, port) in inputs.chain(outputs) {
            let fixed = port.dims.iter().flatten();
            let values = fixed.fold(1usize, |n, size| n.saturating_mul(*size));
            if values > VALUE_LIMIT {
                return Err(format!(
                    "its {what} {port} has {values} values, expected {VALUE_LIMIT} at most"
                ));
            }
        }
        Ok(())
    }

    /// The input that plays `role`, if the graph has one.
    pub fn input(&self, role: Role) -> Option<&Port> {
        self.inputs
            .iter()
            .find(|(r, _)| *r == role)
            .map(|(_, port)| port)
    }

    /// The number of rows a call must have, where the graph fixes it.
    pub fn batch(&self) -> Option<usize> {
        let rows = |(role, port): &(Role, Port)| match role {
            Role::Timestep => None,
            _ => port.fixed(0),
        };
        self.inputs
            .iter()
            .find_map(rows)
            .or_else(|| self.output.fixed(0))
    }
}

impl Config {
    fn check(&self) -> std::result::Result<(), String> {
        for (key, value, max) in [
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                4096,
            ),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("in_channels", self.in_channels, 1 << 16),
            ("latent_channels", self.latent_channels, 1 << 10),
            ("time_cond_proj_dim", self.time_cond_proj_dim, 1 << 16),
        ] {
            if let Some(v) = value.filter(|v| !(1..=max).contains(v)) {
                return Err(format!("{key} is {v}, expected 1 to {max}"));
            }
        }
        if let Some(blocks) = &self.block_out_channels
            && !(1..=8).contains(&blocks.len())
        {
            return Err(format!(
                "block_out_channels has {} values, expected 1 to 8",
                blocks.len()
            ));
        }
        if let Some(v) = self.scaling_factor.filter(|v| !(v.is_finite() && *v > 0.0)) {
            return Err(format!(
                "scaling_factor is {v}, expected a finite number above 0"
            ));
        }
        if let Some(v) = self.shift_factor.filter(|v| !v.is_finite()) {
            return Err(format!("shift_factor is {v}, expected a finite number"));
        }
        Ok(())
    }
}

type Roles = std::result::Result<(Vec<(Role, Port)>, Port), String>;

/// Gives every input its role; one that has none, or plays one that is taken, is an error.
fn roles(
    graph: &Graph,
    needed: &[Role],
    role: impl Fn(&Port) -> Option<Role>,
) -> std::result::Result<Vec<(Role, Port)>, String> {
    let mut found: Vec<(Role, Port)> = Vec::new();
    for port in &graph.inputs {
        match role(port) {
            Some(r) if found.iter().all(|(other, _)| *other != r) => {
                found.push((r, port.clone()));
            }
            _ => return Err(format!("unsupported: it wants the input {port}")),
        }
    }
    for r in needed {
        if found.iter().all(|(other, _)| other != r) {
            let what = match r {
                Role::TokenIds => "an integer input of token ids [batch, length]",
                Role::Sample => "a float input [batch, channels, height, width]",
                Role::Timestep => "an input for the timestep, of 0 or 1 dimensions",
                Role::Text => "a float input of text embeddings [batch, length, width]",
                _ => "another input",
            };
            return Err(format!("expected {what}, found none"));
        }
    }
    Ok(found)
}

fn output(graph: &Graph, rank: usize, names: &[&str]) -> std::result::Result<Port, String> {
    let fits = |p: &&Port| p.dtype.is_float() && p.rank() == rank;
    let named = |p: &&Port| names.contains(&p.name.as_str());
    let mut fitting = graph.outputs.iter().filter(fits);
    graph
        .outputs
        .iter()
        .filter(fits)
        .find(named)
        .or_else(|| fitting.next())
        .cloned()
        .ok_or_else(|| format!("expected a float output of {rank} dimensions, found none"))
}

fn text_encoder(graph: &Graph, layer: Layer) -> Roles {
    let inputs = roles(graph, &[Role::TokenIds], |p| {
        if !p.dtype.is_integer() || p.rank() != 2 {
            return None;
        }
        Some(match p.name.as_str() {
            "attention_mask" => Role::AttentionMask,
            "position_ids" => Role::PositionIds,
            _ => Role::TokenIds,
        })
    })?;
    let output = match layer {
        Layer::Last => output(graph, 3, &["last_hidden_state"])?,
        Layer::Penultimate | Layer::PenultimateAndPooled => penultimate(graph)?,
    };
    Ok((inputs, output))
}

/// The output of the layer before the last: under its own name, or one of all layers', which Optimum numbers.
fn penultimate(graph: &Graph) -> std::result::Result<Port, String> {
    let fits = |p: &&Port| p.dtype.is_float() && p.rank() == 3;
    let number = |p: &Port| p.name.strip_prefix("hidden_states.")?.parse::<u32>().ok();
    let mut layers: Vec<_> = graph
        .outputs
        .iter()
        .filter(fits)
        .filter_map(|p| Some((number(p)?, p)))
        .collect();
    layers.sort_by_key(|(number, _)| *number);
    let named = |p: &&Port| p.name == "penultimate_hidden_state";
    let port = match layers[..] {
        [.., (_, port), _] => Some(port),
        _ => graph.outputs.iter().filter(fits).find(named),
    };
    port.cloned().ok_or_else(|| {
        "expected an output \"penultimate_hidden_state\", or \"hidden_states.0\" and so on, as the U-Net of Stable Diffusion XL wants the layer before the last; found none".into()
    })
}

/// The pooled embedding of Stable Diffusion XL's second text encoder.
fn pooled_output(graph: &Graph) -> std::result::Result<Port, String> {
    let fits = |p: &&Port| p.dtype.is_float() && p.rank() == 2;
    let named = |name: &str| {
        let mut fitting = graph.outputs.iter().filter(fits);
        fitting.find(|p| p.name == name)
    };
    named("text_embeds")
        .or_else(|| named("pooler_output"))
        .cloned()
        .ok_or_else(|| {
            "expected a float output \"text_embeds\" [batch, width], found none".to_owned()
        })
}

fn unet(graph: &Graph) -> Roles {
    let inputs = roles(
        graph,
        &[Role::Sample, Role::Timestep, Role::Text],
        |p| match (p.rank(), p.name.as_str()) {
            (4, _) if p.dtype.is_float() => Some(Role::Sample),
            (3, _) if p.dtype.is_float() => Some(Role::Text),
            (0 | 1, _) if p.dtype.is_float() || p.dtype.is_integer() => Some(Role::Timestep),
            (2, "text_embeds") if p.dtype.is_float() => Some(Role::Pooled),
            (2, "time_ids") if p.dtype.is_float() || p.dtype.is_integer() => Some(Role::SizeIds),
            (2, "timestep_cond") if p.dtype.is_float() => Some(Role::GuidanceEmbedding),
            _ => None,
        },
    )?;
    let found = |role| {
        inputs
            .iter()
            .find(|(r, _)| *r == role)
            .map(|(_, port)| port)
    };
    if let Some(port) = found(Role::SizeIds)
        && port.fixed(1).is_some_and(|n| n != SIZE_IDS)
    {
        return Err(format!(
            "unsupported: its input {port} is expected to have {SIZE_IDS} values per row, as Stable Diffusion XL's base model has"
        ));
    }
    Ok((inputs, output(graph, 4, &["out_sample"])?))
}

/// A graph from pictures or latents to the other, whose channels are known on one side.
fn vae(graph: &Graph, channels_in: Option<usize>, channels_out: Option<usize>) -> Roles {
    let inputs = roles(graph, &[Role::Sample], |p| {
        (p.dtype.is_float() && p.rank() == 4).then_some(Role::Sample)
    })?;
    let output = output(graph, 4, &["latent_parameters", "latent_sample", "sample"])?;
    for (port, channels, what) in [
        (&inputs[0].1, channels_in, "input"),
        (&output, channels_out, "output"),
    ] {
        if let (Some(found), Some(expected)) = (port.fixed(1), channels)
            && found != expected
        {
            return Err(format!(
                "its {what} {port} has {found} channels, expected {expected}"
            ));
        }
    }
    Ok((inputs, output))
}
