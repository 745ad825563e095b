//! Engines: a model folder's components made runnable on a device.

mod built;
#[cfg(feature = "tensorrt")]
pub mod cache;
#[cfg(feature = "cuda")]
pub mod cuda;
mod mix;
pub mod onnxruntime;
pub mod shared;
#[cfg(feature = "tensorrt")]
pub mod tensorrt;
mod text;

pub use built::{BuildProgress, Built, Calls};
pub use text::{Between, Blend, Numbers, Part, Text, Wording};

use crate::device::HostTensor;
use crate::error::{Error, Result};
use crate::model::Component;

/// To be told of each component just before it is loaded. What it answers with an error ends the loading.
pub type Telling<'a> = &'a dyn Fn(Component) -> Result<()>;

/// To be asked again and again while someone else in the process loads the same model. An error ends the wait.
pub type Waiting<'a> = &'a dyn Fn() -> Result<()>;

/// Waits as long as it takes.
pub fn patient() -> Result<()> {
    Ok(())
}

/// Says nothing of what is loaded.
pub fn silent(_: Component) -> Result<()> {
    Ok(())
}

/// One row group of a U-Net call: `f` frames that share step and text.
pub struct Denoise<'a, M: Model + ?Sized> {
    /// Noisy latents `[f, C, h, w]`.
    pub sample: &'a M::Tensor,
    /// The rest, the same for all `f` rows.
    pub context: &'a M::Context,
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
    /// How many chunks of text the U-Net takes, where it fixes that.
    pub chunks: Option<usize>,
    /// Whether the image encoder gives a distribution that may be sampled, and the model asks for it:
    /// `encode` then wants noise.
    pub samples_posterior: bool,
    /// What its engines were built for, where that is less than its graphs can do.
    pub built: Option<Built>,
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
        (self.built.as_ref()).map_or(Ok(()), |built| built.check_size(width, height))
    }

    /// Whether a stream's calls can be served in one run each; the error names the property at fault, what the engines were
    /// built for and what builds others.
    pub fn check_calls(&self, calls: Calls) -> Result<()> {
        (self.built.as_ref()).map_or(Ok(()), |built| built.check_calls(calls))
    }
}

/// A loaded model: its components. Shared between elements, so every method takes `&self`.
pub trait Model: Send + Sync + 'static {
    /// The device tensor it works on.
    type Tensor: Send + Sync + 'static;

    /// All that a row of a U-Net call needs beside its latent: everything that follows from timestep, text and size,
    /// computed ahead (arXiv 2312.12491, appendix A.2).
    type Context: Clone + Send + Sync + 'static;

    /// What it can do.
    fn limits(&self) -> &Limits;

    /// How many chunks of the text encoder's length `text` takes, at least one, whatever [`Limits::chunks`] says.
    fn chunks(&self, text: &str) -> Result<usize>;

    /// `text` encoded in `chunks` chunks: filled up with empty ones, cut where it takes more. It may have the
    /// [syntax of prompts](crate::model::prompt). `None` is no text: embeddings of zeros if the model was trained with
    /// those, else the empty text's. In main memory on every device: texts are small and rare, and made on another thread than
    /// frames.
    fn encode_text(&self, text: Option<&str>, chunks: usize) -> Result<Text<HostTensor>>;

    /// What rows with `text` need at each of `timesteps` (in the scheduler's training steps, 0…999), for latents of
    /// `size` (height, width). What does not depend on the timestep is shared with `like`, a context of the same text
    /// and size, and among those that are made. A text between two may be blended on the device.
    fn precompute(
        &self,
        timesteps: &[u32],
        text: &Wording,
        size: (usize, usize),
        like: Option<&Self::Context>,
    ) -> Result<Vec<Self::Context>>;

    /// Scaled latents `[f, C, H/s, W/s]` of pictures `[f, 3, H, W]` in [-1, 1]. `noise` has the latents' shape
    /// and is given if and only if [`Limits::samples_posterior`].
    fn encode(&self, pictures: &Self::Tensor, noise: Option<&Self::Tensor>)
    -> Result<Self::Tensor>;

    /// One U-Net call over all `rows`; the raw model output of each, in its sample's shape.
    fn denoise(&self, rows: &[Denoise<'_, Self>]) -> Result<Vec<Self::Tensor>>;

    /// Pictures `[f, 3, H, W]`, nominally in [-1, 1], of scaled latents `[f, C, h, w]`.
    fn decode(&self, latents: &Self::Tensor) -> Result<Self::Tensor>;

    /// To be called by a thread that had something computed and has no further use for it: a device may keep something for each
    /// thread.
    fn release_thread(&self) {}
}
