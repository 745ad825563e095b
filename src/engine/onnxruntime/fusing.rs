//! Graphs with fused operators, made ready to run: as they were exported where that cannot be.

use std::fmt;

use super::provider::Providers;
use super::session::Session;
use crate::error::Result;
use crate::model::{ComponentFile, Counts, Fused, Fusions};

/// What could not be had is told by its reason, and had in another way.
pub(super) type Attempt<T> = std::result::Result<T, String>;

/// What was made faster in graphs, or why it was not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Told {
    counts: Counts,
    /// Of graphs that have to run as they were exported.
    why: Vec<String>,
}

impl Told {
    /// Of one graph.
    pub fn of(fused: &Fused) -> Self {
        Self {
            counts: fused.counts(),
            why: Vec::new(),
        }
    }

    /// Of the graph of `file`, which is as it was exported though it was not to be, if a reason is given.
    pub fn exported(file: &ComponentFile, why: Option<String>) -> Self {
        let name = file.component.folder();
        Self {
            counts: Counts::default(),
            why: why
                .map(|why| format!("{name} as exported: {why}"))
                .into_iter()
                .collect(),
        }
    }

    /// What was made faster in these graphs and in others.
    pub fn and(mut self, other: Self) -> Self {
        self.counts = self.counts + other.counts;
        self.why.extend(other.why);
        self
    }
}

/// Goes behind whatever else is told of what runs the graphs, if there is anything to tell.
impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            attentions,
            softmaxes,
            channels_last,
            convolutions,
        } = self.counts;
        if attentions > 0 {
            write!(f, ", {attentions} of {softmaxes} attentions fused")?;
        }
        if channels_last > 0 {
            write!(
                f,
                ", {channels_last} of {convolutions} convolutions with channels last"
            )?;
        }
        self.why.iter().try_for_each(|why| write!(f, ", {why}"))
    }
}

/// What to try one after the other, before the graph as it was exported: an ONNX Runtime may have one operator and not
/// another.
pub(super) fn attempts(wanted: Fusions) -> Vec<Fusions> {
    match wanted {
        Fusions::NONE => Vec::new(),
        Fusions::ALL => vec![Fusions::ALL, Fusions::ATTENTION],
        other => vec![other],
    }
}

/// The graph of `file` with fused operators; an error says why there is none.
pub(super) fn fused(file: &ComponentFile, fusions: Fusions) -> Attempt<Fused> {
    let fused = Fused::open(&file.path, &file.graph, fusions).map_err(|e| e.to_string())?;
    can_be_read_in_parts(file)?;
    fused.ok_or_else(|| "nothing in the graph could be told for sure".into())
}

/// Loads the graph of `file` in one piece, made faster as `providers` ask.
pub(super) fn open(file: &ComponentFile, providers: &Providers) -> Result<(Session, Told)> {
    let mut why = None;
    for fusions in attempts(providers.fusions) {
        match fused(file, fusions).and_then(|fused| load(file, &fused, providers)) {
            Ok(loaded) => return Ok(loaded),
            // What was wanted most is told.
            Err(said) => why = why.or(Some(said)),
        }
    }
    // Whatever is wrong with it comes out here.
    let session = Session::open(file, &providers.frames)?;
    Ok((session, Told::exported(file, why)))
}

fn load(file: &ComponentFile, fused: &Fused, providers: &Providers) -> Attempt<(Session, Told)> {
    let inputs: Vec<_> = file
        .inputs
        .iter()
        .map(|(_, port)| port.name.as_str())
        .collect();
    let outputs = [file.output.name.as_str()];
    let session = (fused.model())
        .and_then(|model| Session::from_memory(file, &model, &inputs, &outputs, &providers.frames))
        .map_err(|e| e.to_string())?;
    Ok((session, Told::of(fused)))
}

/// An error unless ONNX Runtime can read a graph that is made of pieces of `file`.
pub(super) fn can_be_read_in_parts(file: &ComponentFile) -> Attempt<()> {
    let external = !file.graph.external_files.is_empty();
    if external && !Session::finds_external_data().map_err(|e| e.to_string())? {
        return Err(
            "ONNX Runtime before 1.21 cannot read parts of a graph with external data".into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_faster_is_told() {
        assert_eq!(Told::default().to_string(), "");
        let counts = |attentions, channels_last| Told {
            counts: Counts {
                attentions,
                softmaxes: 32,
                channels_last,
                convolutions: 66,
            },
            why: Vec::new(),
        };
        assert_eq!(counts(32, 0).to_string(), ", 32 of 32 attentions fused");
        let why = Told {
            why: vec!["vae_decoder as exported: it is so".into()],
            ..Told::default()
        };
        assert_eq!(
            counts(30, 66).and(counts(0, 1)).and(why).to_string(),
            ", 30 of 64 attentions fused, 67 of 132 convolutions with channels last, vae_decoder as exported: it is so"
        );
    }

    #[test]
    fn an_operator_that_is_missing_does_not_cost_the_other() {
        assert_eq!(attempts(Fusions::NONE), []);
        assert_eq!(attempts(Fusions::ALL), [Fusions::ALL, Fusions::ATTENTION]);
        assert_eq!(attempts(Fusions::ATTENTION), [Fusions::ATTENTION]);
    }
}
