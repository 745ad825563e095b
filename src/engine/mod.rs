//! Engines: a model folder's components made runnable on a device.

pub mod onnxruntime;
pub mod shared;

use crate::error::{Error, Result};

/// One row group of a U-Net call: `f` frames that share step and text.
pub struct Denoise<'a, T> {
    /// Noisy latents `[f, C, h, w]`.
    pub sample: &'a T,
    /// The timestep of all `f` rows, in the scheduler's training steps (0…999).
    pub timestep: u32,
    /// Text embedding `[1, L, D]`, repeated for every row.
    pub text: &'a T,
}

/// What a loaded model can do; read from its graphs and configuration, never assumed.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Pixels per latent sample, each way (8 for Stable Diffusion).
    pub latent_scale: usize,
    /// Width and height in pixels must be multiples of this.
    pub multiple: usize,
    /// The only size the graphs accept, `(width, height)` in pixels, where they are not dynamic.
    pub fixed_size: Option<(usize, usize)>,
    /// Whether the image encoder gives a distribution that may be sampled, and the model asks for it:
    /// `encode` then wants noise.
    pub samples_posterior: bool,
}

impl Limits {
    /// Whether pictures of `width` × `height` pixels can be processed; the error names the property at fault.
    pub fn check_size(&self, width: usize, height: usize) -> Result<()> {
        if let Some((w, h)) = self.fixed_size
            && (w, h) != (width, height)
        {
            return Err(Error::setting(
                if w != width { "width" } else { "height" },
                format!("{width}x{height} cannot be processed; this model does {w}x{h} only"),
            ));
        }
        for (property, value) in [("width", width), ("height", height)] {
            if value == 0 || !value.is_multiple_of(self.multiple) {
                return Err(Error::setting(
                    property,
                    format!(
                        "{value} cannot be processed; expected a multiple of {} for this model",
                        self.multiple
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// A loaded model: the four components. Shared between elements, so every method takes `&self`.
pub trait Model: Send + Sync {
    /// The device tensor it works on.
    type Tensor;

    /// What it can do.
    fn limits(&self) -> &Limits;

    /// Text embedding `[1, L, D]` of `text`, which is tokenised, cut or padded as the model's tokenizer says.
    fn encode_text(&self, text: &str) -> Result<Self::Tensor>;

    /// Scaled latents `[f, C, H/s, W/s]` of pictures `[f, 3, H, W]` in [-1, 1]. `noise` has the latents' shape
    /// and is given if and only if [`Limits::samples_posterior`].
    fn encode(&self, pictures: &Self::Tensor, noise: Option<&Self::Tensor>)
    -> Result<Self::Tensor>;

    /// One U-Net call over all `rows`; the raw model output of each, in its sample's shape.
    fn denoise(&self, rows: &[Denoise<'_, Self::Tensor>]) -> Result<Vec<Self::Tensor>>;

    /// Pictures `[f, 3, H, W]`, nominally in [-1, 1], of scaled latents `[f, C, h, w]`.
    fn decode(&self, latents: &Self::Tensor) -> Result<Self::Tensor>;
}
