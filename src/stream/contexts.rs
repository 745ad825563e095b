//! Pre-computation: what the U-Net needs beside the latent, once per prompt and step list instead of once per frame.

use std::sync::Arc;

use crate::engine::{Context, Model, Text};
use crate::error::{Error, Result};

/// The contexts of one text, by timestep.
pub struct Contexts<X> {
    text: Arc<Text<X>>,
    ready: Vec<(u32, Context<X>)>,
}

impl<X> Contexts<X> {
    /// None yet, of `text`.
    pub fn new(text: Arc<Text<X>>) -> Self {
        Self {
            text,
            ready: Vec::new(),
        }
    }

    /// The text.
    #[cfg(test)]
    pub fn text(&self) -> &Arc<Text<X>> {
        &self.text
    }

    /// Goes over to `text`, unless it is the same as before.
    pub fn set_text(&mut self, text: Arc<Text<X>>) {
        if !Arc::ptr_eq(&self.text, &text) {
            *self = Self::new(text);
        }
    }

    /// Makes those of the timesteps `wanted` ready, for latents of `size` (height, width), if some are not.
    pub fn prepare(
        &mut self,
        model: &dyn Model<Tensor = X>,
        wanted: &[u32],
        size: (usize, usize),
    ) -> Result<()> {
        let is_ready = |timestep: &u32| self.ready.iter().any(|(known, _)| known == timestep);
        if wanted.iter().all(is_ready) {
            return Ok(());
        }
        // All anew, so that they share what only depends on the text; those no longer wanted go.
        let contexts = model.precompute(wanted, &self.text, size)?;
        if contexts.len() != wanted.len() {
            return Err(Error::engine("unet", "gave fewer contexts than timesteps"));
        }
        self.ready = wanted.iter().copied().zip(contexts).collect();
        Ok(())
    }

    /// The one of `timestep`, which must have been made ready.
    pub fn at(&self, timestep: u32) -> Result<&Context<X>> {
        self.ready
            .iter()
            .find(|(known, _)| *known == timestep)
            .map(|(_, context)| context)
            .ok_or_else(|| Error::engine("unet", format!("timestep {timestep} was not prepared")))
    }
}
