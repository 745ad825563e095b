//! Shapes and numbers between pictures and latents, the same on every device.

use crate::engine::Limits;
use crate::model::ModelFolder;

/// What a model's autoencoder does to shapes and values.
pub(in crate::engine) struct Geometry {
    /// What the model can do.
    pub limits: Limits,
    /// Whether the image encoder gives means and logarithms of variances.
    pub gives_posterior: bool,
    /// What a latent is multiplied by after it was encoded.
    pub scaling_factor: f32,
    /// What is taken from it before that.
    pub shift_factor: f32,
}

impl Geometry {
    /// That of `folder`.
    pub fn new(folder: &ModelFolder) -> Self {
        Self {
            limits: Limits {
                latent_channels: folder.latent_channels(),
                latent_scale: folder.latent_scale(),
                multiple: folder.multiple(),
                fixed_size: folder.fixed_size(),
                chunks: folder.chunks(),
                samples_posterior: folder.samples_posterior(),
                built: None,
            },
            gives_posterior: folder.gives_posterior(),
            scaling_factor: folder.scaling_factor() as f32,
            shift_factor: folder.shift_factor() as f32,
        }
    }

    /// The latents' shape for pictures of the shape `pictures`; an error says what is wrong with it.
    pub fn encoded(&self, pictures: &[usize]) -> Result<[usize; 4], String> {
        let scale = self.limits.latent_scale;
        let [f, 3, height, width] = *pictures else {
            return Err(format!(
                "was given pictures of shape {pictures:?}, expected [frames, 3, height, width]"
            ));
        };
        if height % scale != 0 || width % scale != 0 {
            return Err(format!(
                "was given pictures of {width}x{height}, expected multiples of {scale}"
            ));
        }
        let channels = self.limits.latent_channels;
        Ok([f, channels, height / scale, width / scale])
    }

    /// The shape of what the image encoder gives for one picture whose latents are to have the shape `latents`.
    pub fn parameters(&self, latents: &[usize; 4]) -> [usize; 3] {
        let [_, channels, height, width] = *latents;
        let kinds = 1 + usize::from(self.gives_posterior);
        [channels * kinds, height, width]
    }

    /// An error unless `noise` is of the shape `latents`, or absent where there is nothing to sample.
    pub fn check_noise(&self, noise: Option<&[usize]>, latents: &[usize; 4]) -> Result<(), String> {
        match (noise, self.limits.samples_posterior) {
            (None, false) => Ok(()),
            (Some(noise), true) if noise == latents => Ok(()),
            _ => Err(
                "expected noise of the latents' shape if and only if its output is sampled".into(),
            ),
        }
    }

    /// The shape of one picture of latents of the shape `latents`; an error says what is wrong with it.
    pub fn decoded(&self, latents: &[usize]) -> Result<[usize; 3], String> {
        let scale = self.limits.latent_scale;
        let [_, channels, height, width] = *latents else {
            return Err(format!(
                "was given latents of shape {latents:?}, expected [frames, channels, height, width]"
            ));
        };
        if channels != self.limits.latent_channels {
            return Err(format!("was given latents of {channels} channels"));
        }
        Ok([3, height * scale, width * scale])
    }
}
