//! Pre-computation: what the U-Net needs beside the latent, once per prompt and step list instead of once per frame.

use std::sync::Arc;

use crate::device::HostTensor;
use crate::engine::{Model, Text};
use crate::error::{Error, Result};

/// Timesteps whose contexts are kept: a whole schedule as a rule, since those of one text share most of what they hold.
const KEPT: usize = 64;

/// What a stream's rows are run with, besides prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The timesteps of the steps to come.
    pub timesteps: Vec<u32>,
    /// Height and width of latents.
    pub size: (usize, usize),
    /// Whether there are rows with the negative prompt.
    pub negative: bool,
}

/// The contexts of one text, by timestep.
pub struct Contexts<M: Model> {
    text: Arc<Text<HostTensor>>,
    /// Height and width of the latents that `ready` is for.
    size: (usize, usize),
    /// The newest at the back.
    ready: Vec<(u32, M::Context)>,
}

impl<M: Model> Clone for Contexts<M> {
    fn clone(&self) -> Self {
        Self {
            text: self.text.clone(),
            size: self.size,
            ready: self.ready.clone(),
        }
    }
}

impl<M: Model> Contexts<M> {
    /// None yet, of `text`.
    pub fn new(text: Arc<Text<HostTensor>>) -> Self {
        Self {
            text,
            size: (0, 0),
            ready: Vec::new(),
        }
    }

    /// The text.
    pub fn text(&self) -> &Arc<Text<HostTensor>> {
        &self.text
    }

    /// Makes those ready that `needs` names and that are not.
    pub fn prepare(&mut self, model: &M, needs: &Needs) -> Result<()> {
        if self.size != needs.size {
            self.ready.clear();
            self.size = needs.size;
        }
        let ready = |timestep: &u32| self.ready.iter().any(|(known, _)| known == timestep);
        let missing: Vec<u32> = (needs.timesteps.iter().copied())
            .filter(|timestep| !ready(timestep))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let like = self.ready.first().map(|(_, context)| context);
        let made = model.precompute(&missing, &self.text, self.size, like)?;
        if made.len() != missing.len() {
            return Err(Error::engine("unet", "gave fewer contexts than timesteps"));
        }
        // The oldest go first.
        let mut surplus = (self.ready.len() + missing.len()).saturating_sub(KEPT);
        self.ready.retain(|(timestep, _)| {
            let keep = surplus == 0 || needs.timesteps.contains(timestep);
            surplus -= usize::from(!keep);
            keep
        });
        self.ready.extend(missing.into_iter().zip(made));
        Ok(())
    }

    /// The one of `timestep`, which must have been made ready.
    pub fn at(&self, timestep: u32) -> Result<&M::Context> {
        self.ready
            .iter()
            .find(|(known, _)| *known == timestep)
            .map(|(_, context)| context)
            .ok_or_else(|| Error::engine("unet", format!("timestep {timestep} was not prepared")))
    }
}
