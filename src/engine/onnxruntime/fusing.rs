//! Graphs with fused operators, made ready to run: as they were exported where that cannot be.

use std::fmt;

use super::provider::Provider;
use super::session::{Session, Values};
use crate::device::HostTensor;
use crate::error::Result;
use crate::model::{ComponentFile, Counts, Fused, Fusions, ModelFolder};

/// Pixels along a side where the model does not say, and at most: ONNX Runtime gives back no memory that a session had.
const SIZE: usize = 512;

/// What could not be had is told by its reason, and had in another way.
pub(super) type Attempt<T> = std::result::Result<T, String>;

/// What was made faster in graphs, or why it was not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Told {
    counts: Counts,
    /// Of graphs that could not be had as they were wanted.
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

    /// The same of the graph of `file`, which could not be had as it was wanted if a reason is given.
    pub fn less(mut self, file: &ComponentFile, why: Option<String>) -> Self {
        let name = file.component.folder();
        self.why
            .extend(why.map(|why| format!("{name} not as fast as it could be: {why}")));
        self
    }

    /// What was made faster in these graphs and in others.
    #[cfg(any(feature = "cuda", test))]
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
            gates,
        } = self.counts;
        if attentions > 0 {
            write!(f, ", {attentions} of {softmaxes} attentions fused")?;
        }
        if gates > 0 {
            write!(f, ", {gates} gated units fused")?;
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
pub(super) fn attempts(wanted: Option<Fusions>) -> Vec<Fusions> {
    let Some(wanted) = wanted else {
        return Vec::new();
    };
    let in_place = Fusions {
        attention: wanted.attention,
        ..Fusions::NONE
    };
    let mut attempts = vec![wanted, in_place, Fusions::NONE];
    attempts.dedup();
    attempts
}

/// The graph of `file` with fused operators; an error says why there is none.
pub(super) fn fused(file: &ComponentFile, fusions: Fusions) -> Attempt<Fused> {
    let fused = Fused::open(&file.path, &file.graph, fusions).map_err(|e| e.to_string())?;
    Session::can_read_parts_of(file)?;
    fused.ok_or_else(|| "nothing in the graph could be told for sure".into())
}

/// Loads the graph of `file` in one piece, with these fusions as far as they can be had. On a GPU they are tried with what
/// `call` makes up for the session.
pub(super) fn open(
    file: &ComponentFile,
    fusions: Option<Fusions>,
    provider: &Provider,
    call: impl Fn(&Session) -> Attempt<Option<Vec<HostTensor>>>,
) -> Result<(Session, Told)> {
    let load = |fused: Fused| {
        let (session, told) = load(file, &fused, provider)?;
        if provider.tries() {
            try_out(&session, || call(&session))?;
        }
        Ok((session, told))
    };
    let mut why = None;
    for fusions in attempts(fusions) {
        match fused(file, fusions).and_then(load) {
            Ok((session, told)) => return Ok((session, told.less(file, why))),
            // What was wanted most is told.
            Err(said) => why = why.or(Some(said)),
        }
    }
    // Whatever is wrong with it comes out here.
    let session = Session::open(file, provider)?;
    Ok((session, Told::default().less(file, why)))
}

/// Runs a session with fused operators once, on what `call` makes up, if it can make something up: a GPU may have an operator
/// for some sizes only, or none that works, and while frames come nothing takes its place any more.
pub(super) fn try_out(
    session: &Session,
    call: impl FnOnce() -> Attempt<Option<Vec<HostTensor>>>,
) -> Attempt<()> {
    let Some(call) = call()? else {
        return Ok(());
    };
    let inputs: Vec<_> = (call.iter())
        .map(|tensor| (tensor.shape(), Values::Floats(tensor.data())))
        .collect();
    let output = match session.run_one(&inputs).map_err(|e| e.to_string()) {
        Ok(output) => output,
        // The graph as exported needs more of it.
        Err(said) if is_of_memory(&said) => return Ok(()),
        Err(said) => return Err(said),
    };
    match output.data().iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err("it gave what is no number when it was tried".into()),
    }
}

/// Whether an error says that memory is used up, in ONNX Runtime's words, the driver's or a library's.
fn is_of_memory(said: &str) -> bool {
    let words = [
        "allocate memory",
        "out of memory",
        "ALLOC_FAILED",
        "ALLOCATION_FAILED",
    ];
    words.iter().any(|word| said.contains(word))
}

/// Width and height in pixels that the model of `folder` is tried with on `provider`: those that it is usually run with, if they
/// are not large.
pub(super) fn trial_size(folder: &ModelFolder, provider: &Provider) -> (usize, usize) {
    let defaults = &folder.manifest().defaults;
    let side = match provider.is_processor() {
        // It takes long, and has no operators that depend on the size.
        true => folder.multiple(),
        false => defaults.size.unwrap_or(SIZE).min(SIZE),
    };
    let rounded = |pixels: usize| {
        let multiple = folder.multiple().max(1);
        (pixels / multiple).max(1) * multiple
    };
    folder.fixed_size().unwrap_or((
        rounded(defaults.width.unwrap_or(side).min(SIZE)),
        rounded(defaults.height.unwrap_or(side).min(SIZE)),
    ))
}

/// A tensor of made-up values in [-1, 1].
pub(super) fn waves(shape: &[usize]) -> HostTensor {
    let values = (0..shape.iter().product()).map(|i| (0.7 * i as f32).sin());
    HostTensor::new(shape, values.collect())
}

fn load(file: &ComponentFile, fused: &Fused, provider: &Provider) -> Attempt<(Session, Told)> {
    let inputs: Vec<_> = file
        .inputs
        .iter()
        .map(|(_, port)| port.name.as_str())
        .collect();
    let outputs = [file.output.name.as_str()];
    let session = (fused.model())
        .and_then(|model| Session::from_memory(file, &model, &inputs, &outputs, provider))
        .map_err(|e| e.to_string())?;
    Ok((session, Told::of(fused)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
                gates: 0,
            },
            why: Vec::new(),
        };
        assert_eq!(counts(32, 0).to_string(), ", 32 of 32 attentions fused");
        let why = Told {
            why: vec!["vae_decoder not as fast as it could be: it is so".into()],
            ..Told::default()
        };
        assert_eq!(
            counts(30, 66).and(counts(0, 1)).and(why).to_string(),
            ", 30 of 64 attentions fused, 67 of 132 convolutions with channels last, vae_decoder not as fast as it could be: it is so"
        );
    }

    #[test]
    fn a_graph_that_does_not_work_is_not_taken() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/sd2");
        let folder = ModelFolder::open(&folder).unwrap();
        let (width, height) = trial_size(&folder, &Provider::Cpu);
        assert!(width.is_multiple_of(folder.multiple()) && height >= folder.multiple());
        let encoder = Session::open(folder.vae_encoder(), &Provider::Cpu).unwrap();
        let tried = |tensor: HostTensor| try_out(&encoder, || Ok(Some(vec![tensor])));
        let pictures = waves(&[2, 3, 64, 64]);
        assert_eq!(tried(pictures.clone()), Ok(()));
        let largest = pictures
            .data()
            .iter()
            .fold(0f32, |most, x| most.max(x.abs()));
        assert!(largest > 0.9 && largest <= 1.0);
        // One value that is no number spreads.
        let mut spoilt = pictures;
        spoilt.data_mut()[7] = f32::NAN;
        let why = tried(spoilt).unwrap_err();
        assert!(why.contains("no number"), "{why}");
        let why = tried(waves(&[2, 4, 64, 64])).unwrap_err();
        assert!(why.contains("vae_encoder"), "{why}");
        let why = try_out(&encoder, || Err("nobody knows".into()));
        assert_eq!(why, Err("nobody knows".into()));
        // Which is not the graph's fault.
        assert_eq!(try_out(&encoder, || Ok(None)), Ok(()));
        let used_up = "BFCArena: Failed to allocate memory for requested buffer of size 4096";
        assert!(is_of_memory(used_up) && !is_of_memory("its tensor is in main memory"));
        assert!(is_of_memory(
            "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
        ));
    }

    #[test]
    fn an_operator_that_is_missing_does_not_cost_the_other() {
        let nothing = Fusions::NONE;
        assert_eq!(attempts(None), []);
        assert_eq!(attempts(Some(nothing)), [nothing]);
        assert_eq!(
            attempts(Some(Fusions::ATTENTION)),
            [Fusions::ATTENTION, nothing]
        );
        assert_eq!(
            attempts(Some(Fusions::ALL)),
            [Fusions::ALL, Fusions::ATTENTION, nothing]
        );
    }
}
