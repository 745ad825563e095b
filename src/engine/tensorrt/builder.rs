//! From a graph to an engine. TensorRT for RTX needs no GPU for it.

use std::ops::ControlFlow;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use trtx::host_memory::HostMemory;
use trtx::interfaces::MonitorProgress;
use trtx::trtx_sys::Dims64;
use trtx::{NetworkDefinition, OptProfileSelector};

use super::{gate, library, log};
use crate::error::{Error, Result};
use crate::model::Dtype;

/// Dimensions that a tensor of TensorRT may have.
const DIMENSIONS: usize = 8;

/// Where a graph is.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// In an ONNX file, with any external data beside it.
    File(&'a Path),
    /// In memory, with no external data.
    Memory(&'a [u8]),
}

/// An input of an engine, and the shapes it is built for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its name in the graph.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// The smallest dimensions.
    pub min: Vec<usize>,
    /// Those it is made fastest for.
    pub opt: Vec<usize>,
    /// The largest dimensions.
    pub max: Vec<usize>,
    /// Whether its first dimension is the number of rows of the call. TensorRT then knows that it is the same for all
    /// such inputs.
    pub rows: bool,
}

impl std::fmt::Display for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shape = |dims: &[usize]| {
            let dims: Vec<_> = dims.iter().map(usize::to_string).collect();
            dims.join("x")
        };
        let Self { min, opt, max, .. } = self;
        write!(f, "{} {} {}", self.name, self.dtype, shape(min))?;
        match min == max {
            true => Ok(()),
            false => write!(f, "..{}..{}", shape(opt), shape(max)),
        }
    }
}

/// A GPU's compute capability, of those that engines can be built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    major: u8,
    minor: u8,
}

impl ComputeCapability {
    /// All that the builder knows.
    pub const ALL: [Self; 6] = [
        Self { major: 7, minor: 5 },
        Self { major: 8, minor: 0 },
        Self { major: 8, minor: 6 },
        Self { major: 8, minor: 9 },
        Self {
            major: 12,
            minor: 0,
        },
        Self {
            major: 12,
            minor: 1,
        },
    ];

    #[cfg(not(feature = "tensorrt-enterprise"))]
    fn number(self) -> trtx::ComputeCapability {
        match (self.major, self.minor) {
            (7, 5) => trtx::ComputeCapability::kSM75,
            (8, 0) => trtx::ComputeCapability::kSM80,
            (8, 6) => trtx::ComputeCapability::kSM86,
            (8, 9) => trtx::ComputeCapability::kSM89,
            (12, 0) => trtx::ComputeCapability::kSM120,
            _ => trtx::ComputeCapability::kSM121,
        }
    }
}

impl std::fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ComputeCapability {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.into_iter().find(|c| c.to_string() == text.trim());
        known.ok_or_else(|| {
            let all = Self::ALL.map(|c| c.to_string());
            format!("expected a compute capability of {}", all.join(", "))
        })
    }
}

/// What compute capabilities stand for in a [`Key`](crate::engine::cache::Key).
pub fn capabilities_name(capabilities: &[ComputeCapability]) -> String {
    match capabilities {
        [] if cfg!(feature = "tensorrt-enterprise") => "8.0 and later".into(),
        [] => "any".into(),
        some => {
            let mut some = some.to_vec();
            some.sort();
            some.dedup();
            let some: Vec<_> = some.iter().map(ToString::to_string).collect();
            some.join(" ")
        }
    }
}

/// What is to be built.
#[derive(Debug)]
pub struct Job<'a> {
    /// What errors call it.
    pub name: &'a str,
    /// The graph.
    pub source: Source<'a>,
    /// All its inputs.
    pub inputs: &'a [Input],
    /// The compute capabilities it shall run on; none for all that one engine can serve, which is 8.0 and later.
    pub capabilities: &'a [ComputeCapability],
}

/// Is told how far a build is, on a thread of TensorRT's choice.
pub trait Progress: Send + Sync {
    /// Step `step` of `steps` of the phase `phase` is done. Phases are nested; this is the innermost. Breaking ends the
    /// build, at the next step.
    fn step(&self, phase: &str, step: usize, steps: usize) -> ControlFlow<()>;
}

/// An engine, as it is written to a file.
pub struct Engine(HostMemory<'static>);

impl AsRef<[u8]> for Engine {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} bytes)", self.as_ref().len())
    }
}

/// Builds an engine. It takes some three times the memory of the weights.
///
/// # Errors
/// [`Error::Library`] if TensorRT or its parser is missing, [`Error::Engine`] with TensorRT's words if it refuses the
/// graph, or if `progress` ended it.
pub fn build(job: &Job, progress: Arc<dyn Progress>) -> Result<Engine> {
    let library = library::library()?;
    library::parser()?;
    let logger = log::logger()?;
    let ended = || Error::engine(job.name, "the build was ended, as asked");
    let waits = || progress.step("waiting for a build for other GPUs", 0, 1);
    let _pass = gate::pass(job.capabilities, waits).ok_or_else(ended)?;
    let monitor = Arc::new(Monitor {
        progress,
        phases: Mutex::default(),
        ended: Mutex::new(false),
    });
    let (built, heard) = log::listen(|| run(job, logger, monitor.clone()));
    built.map_err(|what| {
        if *monitor.ended.lock() {
            return ended();
        }
        let heard = match heard.is_empty() {
            true => String::new(),
            // The first is the cause, the others follow from it.
            false => format!(": {}", heard[0]),
        };
        Error::engine(
            job.name,
            format!("{library} cannot build an engine of it: {what}{heard}"),
        )
    })
}

fn run(
    job: &Job,
    logger: &'static trtx::Logger,
    monitor: Arc<Monitor>,
) -> std::result::Result<Engine, String> {
    let said = |e: trtx::Error| e.to_string();
    let mut builder = trtx::Builder::new(logger).map_err(said)?;
    let network = builder.create_network(0).map_err(said)?;
    let mut config = builder.create_config().map_err(said)?;
    let monitor: Box<dyn MonitorProgress> = Box::new(Forward(monitor));
    config.set_progress_monitor(monitor).map_err(said)?;
    set_flags(&mut config);
    set_capabilities(&mut config, job.capabilities)?;
    let mut parser = trtx::OnnxParser::new(network, logger).map_err(said)?;
    match job.source {
        // What the parser reports is printed at a level of its own; warnings will do.
        Source::File(path) => {
            let path = path
                .to_str()
                .ok_or_else(|| format!("{} is not UTF-8", path.display()))?;
            parser.parse_from_file(path, 2).map_err(said)?;
        }
        Source::Memory(bytes) => parser.parse(bytes).map_err(said)?,
    }
    let network = parser.network_mut();
    set_inputs(network, job.inputs)?;
    let mut profile = builder.creata_optimization_profile().map_err(said)?;
    for input in job.inputs {
        for (which, sizes) in [
            (OptProfileSelector::kMIN, &input.min),
            (OptProfileSelector::kOPT, &input.opt),
            (OptProfileSelector::kMAX, &input.max),
        ] {
            let sizes: Vec<i64> = sizes.iter().map(|size| *size as i64).collect();
            let sizes = Dims64::from_slice(&sizes);
            (profile.set_dimensions(&input.name, which, &sizes))
                .map_err(|_| format!("its input {input} cannot have this profile"))?;
        }
    }
    config
        .add_optimization_profile(&mut profile)
        .map_err(said)?;
    let memory = builder.build_serialized_network(network, &mut config);
    Ok(Engine(memory.map_err(said)?))
}

/// Engines shall never allocate while they run: their memory is planned before, and a frame that is captured in a CUDA
/// graph cannot allocate. Without this, TensorRT for RTX may do so for large tensors.
fn set_flags(config: &mut trtx::BuilderConfig) {
    #[cfg(not(feature = "tensorrt-enterprise"))]
    config.set_flag(trtx::BuilderFlag::kREQUIRE_USER_ALLOCATION);
    // The TensorRT of data centres has no such flag.
    #[cfg(feature = "tensorrt-enterprise")]
    let _ = config;
}

#[cfg(not(feature = "tensorrt-enterprise"))]
fn set_capabilities(
    config: &mut trtx::BuilderConfig,
    capabilities: &[ComputeCapability],
) -> std::result::Result<(), String> {
    if capabilities.is_empty() {
        return Ok(());
    }
    let failed = |_| {
        format!(
            "the compute capabilities {} cannot be in one engine",
            capabilities_name(capabilities)
        )
    };
    let count = capabilities.len() as i32;
    config.set_nb_compute_capabilities(count).map_err(failed)?;
    for (i, capability) in (0..).zip(capabilities) {
        let number = capability.number();
        config.set_compute_capability(number, i).map_err(failed)?;
    }
    Ok(())
}

/// TensorRT for data centres builds for the GPU at hand; its engines run on later ones too only if asked for.
#[cfg(feature = "tensorrt-enterprise")]
fn set_capabilities(
    config: &mut trtx::BuilderConfig,
    capabilities: &[ComputeCapability],
) -> std::result::Result<(), String> {
    if !capabilities.is_empty() {
        return Err("this flavour of TensorRT cannot build for chosen compute capabilities".into());
    }
    config.set_hardware_compatibility_level(trtx::HardwareCompatibilityLevel::kAMPERE_PLUS);
    Ok(())
}

/// Checks the network's inputs against those that are expected, and tells it which of their dimensions are fixed and
/// which are one and the same.
fn set_inputs(
    network: &mut NetworkDefinition,
    inputs: &[Input],
) -> std::result::Result<(), String> {
    let said = |e: trtx::Error| e.to_string();
    let count = network.nb_inputs();
    if usize::try_from(count) != Ok(inputs.len()) {
        return Err(format!(
            "its graph has {count} inputs, expected {}",
            inputs.len()
        ));
    }
    for i in 0..count {
        let mut tensor = network.input(i).map_err(said)?;
        let name = tensor.name(network).map_err(said)?;
        let input = inputs.iter().find(|input| input.name == name);
        let input = input.ok_or_else(|| format!("its graph has an unexpected input {name:?}"))?;
        let (Input { min, opt, max, .. }, rank) = (input, input.min.len());
        let ascending = |i: usize| min[i] > 0 && min[i] <= opt[i] && opt[i] <= max[i];
        let have = tensor.dimensions(network).map_err(said)?;
        if rank > DIMENSIONS
            || opt.len() != rank
            || max.len() != rank
            || have.len() != rank
            || !(0..rank).all(ascending)
        {
            return Err(format!(
                "its input {input} has {} dimensions in the graph, expected {rank}, each from its smallest to its largest",
                have.len()
            ));
        }
        let fixed = |i: usize| have[i] < 0 || (min[i] == max[i] && have[i] == min[i] as i64);
        if !(0..rank).all(fixed) {
            return Err(format!(
                "its input {input} has the shape {have:?} in the graph"
            ));
        }
        let dims: Vec<i64> = (0..rank)
            .map(|i| if min[i] == max[i] { min[i] as i64 } else { -1 })
            .collect();
        tensor.set_dimensions(network, &dims);
        if input.rows && dims.first() == Some(&-1) {
            tensor
                .set_dimension_name(network, 0, "rows")
                .map_err(said)?;
        }
    }
    Ok(())
}

/// What a build tells, put in order.
struct Monitor {
    progress: Arc<dyn Progress>,
    /// The phases that are under way, outermost first, with the number of their steps.
    phases: Mutex<Vec<(String, usize)>>,
    /// Whether the build was told to end.
    ended: Mutex<bool>,
}

/// The bindings want it in a box of its own.
struct Forward(Arc<Monitor>);

impl MonitorProgress for Forward {
    fn phase_start(&self, name: &str, _: Option<&str>, steps: i32) {
        let steps = usize::try_from(steps).unwrap_or(0);
        self.0.phases.lock().push((name.to_owned(), steps));
    }

    fn step_complete(&self, name: &str, step: i32) -> ControlFlow<()> {
        let steps = {
            let phases = self.0.phases.lock();
            let phase = phases.iter().rev().find(|(phase, _)| phase == name);
            phase.map_or(0, |(_, steps)| *steps)
        };
        // Steps count from 0.
        let step = usize::try_from(step).unwrap_or(0) + 1;
        let go_on = self.0.progress.step(name, step.min(steps), steps);
        if go_on.is_break() {
            *self.0.ended.lock() = true;
        }
        go_on
    }

    fn phase_finish(&self, name: &str) {
        let mut phases = self.0.phases.lock();
        if let Some(i) = phases.iter().rposition(|(phase, _)| phase == name) {
            phases.truncate(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compute_capabilities_are_read_and_named() {
        for capability in ComputeCapability::ALL {
            assert_eq!(capability.to_string().parse(), Ok(capability));
        }
        for wrong in ["", "9.0", "86", "8.6.1", "x"] {
            let error = wrong.parse::<ComputeCapability>().unwrap_err();
            assert!(error.contains("7.5, 8.0"), "{error}");
        }
        let some = ["12.0", "8.6", "8.6"].map(|c| c.parse().unwrap());
        assert_eq!(capabilities_name(&some), "8.6 12.0");
    }

    /// With the real library.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    #[test]
    fn engines_do_not_allocate_while_they_run() {
        library::library().unwrap();
        let mut builder = trtx::Builder::new(log::logger().unwrap()).unwrap();
        let mut config = builder.create_config().unwrap();
        let flag = trtx::BuilderFlag::kREQUIRE_USER_ALLOCATION;
        assert!(!config.flag(flag));
        set_flags(&mut config);
        assert!(config.flag(flag));
    }

    #[test]
    fn inputs_say_their_profile() {
        let mut input = Input {
            name: "x".into(),
            dtype: Dtype::F16,
            min: vec![1, 4, 64],
            opt: vec![2, 4, 64],
            max: vec![8, 4, 64],
            rows: true,
        };
        assert_eq!(input.to_string(), "x float16 1x4x64..2x4x64..8x4x64");
        input.opt = input.min.clone();
        input.max = input.min.clone();
        assert_eq!(input.to_string(), "x float16 1x4x64");
    }
}
