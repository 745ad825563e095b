//! What a row of the whole U-Net is given besides its latent.

use crate::device::HostTensor;
use crate::engine::{Numbers, Part, Text, Wording};
use crate::error::{Error, Result};
use crate::model::{ComponentFile, ModelFolder, Role, SIZE_IDS};

/// What a guidance-distilled U-Net is told its guidance scale is, where the manifest does not say: diffusers' default
/// for latent consistency models.
const GUIDANCE_EMBEDDING: f64 = 8.5;

/// The timesteps that a graph is tried with.
pub const TRIED: [u32; 2] = [801, 40];

/// A U-Net's inputs and what their values follow from.
pub struct Given {
    file: ComponentFile,
    latent_scale: usize,
    guidance_embedding: f64,
}

/// Two rows that nobody asked for.
pub struct MadeUp {
    timesteps: [u32; 2],
    texts: [Wording; 2],
    /// Height and width of latents.
    size: (usize, usize),
}

impl Given {
    /// For the U-Net of `folder`.
    pub fn new(folder: &ModelFolder) -> Self {
        let options = &folder.manifest().unet;
        Self {
            file: folder.unet().clone(),
            latent_scale: folder.latent_scale(),
            guidance_embedding: options.guidance_embedding.unwrap_or(GUIDANCE_EMBEDDING),
        }
    }

    /// An error of the U-Net.
    pub fn error(&self, what: &str) -> Error {
        Error::engine(self.file.component.folder(), what)
    }

    /// What one row of the graph is given for `role`.
    pub fn value(
        &self,
        role: Role,
        timestep: u32,
        text: &Wording,
        size: (usize, usize),
    ) -> Result<Numbers> {
        let part = match role {
            Role::Text => Part::Embedding,
            Role::Pooled => Part::Pooled,
            _ => return Ok(self.of_timestep_or_size(role, timestep, size)?.into()),
        };
        (text.part(part))
            .ok_or_else(|| self.error("wants a pooled text embedding, and the text has none"))
    }

    /// The same for a role that has nothing to do with the text.
    fn of_timestep_or_size(
        &self,
        role: Role,
        timestep: u32,
        (height, width): (usize, usize),
    ) -> Result<HostTensor> {
        let port = self.file.input(role);
        Ok(match role {
            Role::Timestep => {
                let rank = port.map_or(1, |p| p.rank());
                HostTensor::new(&vec![1; rank], vec![timestep as f32])
            }
            Role::SizeIds => {
                let (height, width) = (height * self.latent_scale, width * self.latent_scale);
                let (h, w) = (height as f32, width as f32);
                // Original size, no crop, target size: as diffusers fills them in.
                HostTensor::new(&[1, SIZE_IDS], vec![h, w, 0.0, 0.0, h, w])
            }
            Role::GuidanceEmbedding => {
                let width = port.and_then(|p| p.fixed(1));
                let width = width.or(self.file.config.time_cond_proj_dim).ok_or_else(|| {
                    self.error(
                        "wants a guidance embedding of unknown width; expected time_cond_proj_dim in its config.json",
                    )
                })?;
                let values = guidance_embedding(self.guidance_embedding, width);
                HostTensor::new(&[1, width], values)
            }
            // For its shape only.
            _ => {
                let channels = port.and_then(|p| p.fixed(1)).unwrap_or(1);
                HostTensor::new(
                    &[1, channels, height, width],
                    vec![0.0; channels * height * width],
                )
            }
        })
    }

    /// Two made-up rows for latents of `size` (height, width), to try the graph with; `None` where it does not tell how wide
    /// the text embedding is.
    pub fn made_up(&self, folder: &ModelFolder, size: (usize, usize)) -> Option<MadeUp> {
        let length = folder.text_encoders()[0].tokenizer.length();
        Some(MadeUp {
            timesteps: match self.one_timestep() {
                true => [TRIED[0]; 2],
                false => TRIED,
            },
            texts: self.two_texts(length)?,
            size,
        })
    }

    /// The same for the smallest latents.
    pub fn smallest(&self, folder: &ModelFolder) -> Option<MadeUp> {
        let side = folder.multiple();
        let (width, height) = folder.fixed_size().unwrap_or((side, side));
        let scale = folder.latent_scale();
        self.made_up(folder, (height.div_ceil(scale), width.div_ceil(scale)))
    }

    /// Whether all rows of a call have one timestep.
    fn one_timestep(&self) -> bool {
        let port = self.file.input(Role::Timestep);
        port.is_none_or(|port| port.rank() == 0 || port.fixed(0) == Some(1))
    }

    /// Two made-up texts of the shape that the U-Net says it takes; `None` where it does not say.
    pub fn two_texts(&self, length: usize) -> Option<[Wording; 2]> {
        let port = self.file.input(Role::Text)?;
        let shape = [1, port.fixed(1).unwrap_or(length), port.fixed(2)?];
        let pooled = self.file.input(Role::Pooled).map(|port| port.fixed(1));
        // None at all, or of a width that is told.
        let pooled = match pooled {
            Some(width) => Some([1, width?]),
            None => None,
        };
        Some([0.0, 1.0].map(|phase| {
            let waves = |shape: &[usize]| {
                let values = (0..shape.iter().product()).map(|i| (phase + 0.7 * i as f32).sin());
                HostTensor::new(shape, values.collect())
            };
            Wording::from(Text {
                embedding: waves(&shape),
                pooled: pooled.map(|shape| waves(&shape)),
            })
        }))
    }
}

impl MadeUp {
    /// The same for rows that are run each by itself, which may differ in all that they are given.
    #[cfg(feature = "cuda")]
    pub fn apart(mut self) -> Self {
        self.timesteps = TRIED;
        self
    }

    /// What the graph is given for `role` of this row, 0 or 1.
    pub fn value(&self, given: &Given, role: Role, row: usize) -> Result<HostTensor> {
        let value = given.value(role, self.timesteps[row], &self.texts[row], self.size);
        value.map(Numbers::into_tensor)
    }
}

/// The embedding of the guidance scale `scale` in `width` values: sines, then cosines, of w = 1000·(scale − 1) at
/// frequencies from 1 down to 10⁻⁴ (arXiv 2310.04378 §4.3, as diffusers computes it).
fn guidance_embedding(scale: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let w = 1000.0 * (scale - 1.0);
    let falloff = 10_000f64.ln() / half.saturating_sub(1).max(1) as f64;
    let angles = (0..half).map(|i| w * (-falloff * i as f64).exp());
    let sines = angles.clone().map(|a| a.sin() as f32);
    let mut values: Vec<f32> = sines.chain(angles.map(|a| a.cos() as f32)).collect();
    // An odd width ends in a zero.
    values.resize(width, 0.0);
    values
}
