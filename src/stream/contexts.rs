//! Pre-computation: what the U-Net needs beside the latent, once per prompt and step list instead of once per frame.

use crate::engine::{Model, Wording};
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
    wording: Wording,
    /// Height and width of the latents that `ready` is for.
    size: (usize, usize),
    /// The newest at the back.
    ready: Vec<(u32, M::Context)>,
}

impl<M: Model> Clone for Contexts<M> {
    fn clone(&self) -> Self {
        Self {
            wording: self.wording.clone(),
            size: self.size,
            ready: self.ready.clone(),
        }
    }
}

impl<M: Model> Contexts<M> {
    /// None yet, of this text.
    pub fn new(wording: impl Into<Wording>) -> Self {
        Self {
            wording: wording.into(),
            size: (0, 0),
            ready: Vec::new(),
        }
    }

    /// The text.
    pub fn wording(&self) -> &Wording {
        &self.wording
    }

    /// The length of the text, in tokens.
    pub fn tokens(&self) -> usize {
        self.wording.tokens()
    }

    /// What `before` has ready serves here too, if the text is the same and nothing is ready yet.
    pub fn inherit(&mut self, before: &Self) {
        if self.ready.is_empty() && self.wording.is(&before.wording) {
            self.clone_from(before);
        }
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
        let made = model.precompute(&missing, &self.wording, self.size, like)?;
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

/// The prompts in force, encoded in the same number of chunks, and what the U-Net needs for rows with them.
pub struct Conditioning<M: Model> {
    /// The prompt.
    pub prompt: Contexts<M>,
    /// The negative prompt.
    pub negative: Contexts<M>,
}

impl<M: Model> Clone for Conditioning<M> {
    fn clone(&self) -> Self {
        Self {
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
        }
    }
}

impl<M: Model> Conditioning<M> {
    /// Makes ready what `needs` names.
    pub fn prepare(&mut self, model: &M, needs: &Needs) -> Result<()> {
        self.prompt.prepare(model, needs)?;
        match needs.negative {
            true => self.negative.prepare(model, needs),
            false => Ok(()),
        }
    }
}

/// The prompts in force, and those that are not but that slots under way came in with. They are told apart by numbers.
pub(super) struct Texts<M: Model> {
    /// By ascending number; never empty.
    numbered: Vec<(u64, Conditioning<M>)>,
    newest: u64,
}

impl<M: Model> Texts<M> {
    pub fn new(conditioning: Conditioning<M>) -> Self {
        Self {
            numbered: vec![(0, conditioning)],
            newest: 0,
        }
    }

    /// Puts new ones in force. What is ready for a text that stays serves on.
    pub fn set(&mut self, mut conditioning: Conditioning<M>) {
        if let Ok(before) = self.get(self.newest) {
            conditioning.prompt.inherit(&before.prompt);
            conditioning.negative.inherit(&before.negative);
        }
        self.newest += 1;
        self.numbered.push((self.newest, conditioning));
    }

    /// The number of those in force.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// All numbers.
    pub fn all(&self) -> impl Iterator<Item = u64> + '_ {
        self.numbered.iter().map(|(number, _)| *number)
    }

    /// Forgets those that are neither in force nor `in_use`.
    pub fn keep(&mut self, in_use: impl Fn(u64) -> bool) {
        let newest = self.newest;
        (self.numbered).retain(|(number, _)| *number == newest || in_use(*number));
    }

    pub fn get(&self, number: u64) -> Result<&Conditioning<M>> {
        let mut all = self.numbered.iter();
        let found = all.find(|(known, _)| *known == number);
        found.map(|(_, conditioning)| conditioning).ok_or_else(lost)
    }

    /// Makes ready what `needs` names.
    pub fn prepare(&mut self, number: u64, model: &M, needs: &Needs) -> Result<()> {
        let mut all = self.numbered.iter_mut();
        let found = all.find(|(known, _)| *known == number);
        found.ok_or_else(lost)?.1.prepare(model, needs)
    }
}

fn lost() -> Error {
    Error::engine("stream", "lost the prompts of a frame; this is a bug")
}
