//! One graph, made runnable.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{
    DynValue, Outlet, PrimitiveTensorElementType, Tensor, TensorElementType, TensorRef, ValueType,
};

use super::library::{self, Runtime};
use super::provider::Provider;
use crate::device::HostTensor;
use crate::error::{Error, Result};
use crate::model::{Component, ComponentFile, Dtype, Port};

/// ONNX Runtime's option for where the external data of a graph in memory lies.
const EXTERNAL_DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// Values for one input; they are converted to the type the graph wants.
#[derive(Clone, Copy)]
pub(super) enum Values<'a> {
    /// Floats.
    Floats(&'a [f32]),
    /// Whole numbers.
    Integers(&'a [i64]),
}

/// What an input is given: its shape and its values.
pub(super) type Input<'a> = (&'a [usize], Values<'a>);

/// A session and what goes in and comes out.
pub(super) struct Session {
    /// A run needs the session for itself.
    inner: Mutex<OrtSession>,
    component: Component,
    /// Holds what the session must not outlive.
    provider: Provider,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Session {
    /// Loads the graph of a component and its weights.
    pub fn open(file: &ComponentFile, provider: &Provider) -> Result<Self> {
        let runtime = library::runtime()?;
        let failed = |e: &dyn std::fmt::Display| not_ready(file, runtime, e);
        let provider = provider.for_session();
        let inner = builder(runtime, &provider)
            .and_then(|mut builder| builder.commit_from_file(&file.path))
            .map_err(|e| failed(&e))?;
        // Two parsers have read the graph now; they must have seen the same one.
        let inputs: Vec<_> = file.inputs.iter().map(|(_, port)| port.clone()).collect();
        let outputs: Vec<_> = [&file.output]
            .into_iter()
            .chain(&file.pooled)
            .cloned()
            .collect();
        let has = |found: &[Outlet], port: &Port| found.iter().any(|o| o.name() == port.name);
        if inner.inputs().len() != inputs.len()
            || !inputs.iter().all(|p| has(inner.inputs(), p))
            || !outputs.iter().all(|p| has(inner.outputs(), p))
        {
            return Err(failed(
                &"its inputs and outputs are not those its header lists",
            ));
        }
        Ok(Self {
            inner: Mutex::new(inner),
            component: file.component,
            provider,
            inputs,
            outputs,
        })
    }

    /// Loads a part of a component's graph, given as the bytes of an ONNX file. Its external data is looked for in the
    /// component's folder.
    pub fn from_memory(
        file: &ComponentFile,
        bytes: &[u8],
        inputs: &[&str],
        outputs: &[&str],
        provider: &Provider,
    ) -> Result<Self> {
        let runtime = library::runtime()?;
        let failed = |e: &dyn std::fmt::Display| not_ready(file, runtime, e);
        let folder = file.path.parent().unwrap_or(Path::new(""));
        let folder = folder.to_string_lossy();
        let provider = provider.for_session();
        let inner = builder(runtime, &provider)
            .and_then(|builder| Ok(builder.with_config_entry(EXTERNAL_DATA_FOLDER, &*folder)?))
            .and_then(|mut builder| builder.commit_from_memory(bytes))
            .map_err(|e| failed(&e))?;
        let ports = |found: &[Outlet], names: &[&str]| {
            let port = |name: &&str| found.iter().find(|o| o.name() == *name).and_then(port);
            names.iter().map(port).collect::<Option<Vec<_>>>()
        };
        let (Some(inputs), Some(outputs)) = (
            ports(inner.inputs(), inputs),
            ports(inner.outputs(), outputs),
        ) else {
            return Err(failed(
                &"a part of it has other inputs and outputs than expected",
            ));
        };
        Ok(Self {
            inner: Mutex::new(inner),
            component: file.component,
            provider,
            inputs,
            outputs,
        })
    }

    /// An error that says why, unless ONNX Runtime can read a graph that is made of pieces of `file`.
    pub fn can_read_parts_of(file: &ComponentFile) -> std::result::Result<(), String> {
        let external = !file.graph.external_files.is_empty();
        if external && !Self::finds_external_data().map_err(|e| e.to_string())? {
            return Err(
                "ONNX Runtime before 1.21 cannot read parts of a graph with external data".into(),
            );
        }
        Ok(())
    }

    /// Whether the external data of a graph in memory is found: ONNX Runtime 1.21 learnt it.
    fn finds_external_data() -> Result<bool> {
        let mut parts = library::runtime()?
            .version
            .split('.')
            .map(str::parse::<u32>);
        let mut part = || parts.next().and_then(|p| p.ok()).unwrap_or(0);
        Ok((part(), part()) >= (1, 21))
    }

    /// Which component it is, or is a part of.
    #[cfg(feature = "cuda")]
    pub fn component(&self) -> Component {
        self.component
    }

    /// What its inputs are, in the order [`run`](Self::run) wants them.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What its outputs are, in the order [`run`](Self::run) gives them.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// What it runs on.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Whether tensors go between the GPU and main memory while it runs.
    #[cfg(feature = "cuda")]
    pub fn copies(&self) -> bool {
        match &self.provider {
            Provider::Cpu => false,
            Provider::Cuda(provider) => provider.copies(),
        }
    }

    /// The session itself, for nobody else as long as it is held.
    pub fn lock(&self) -> MutexGuard<'_, OrtSession> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error of this component.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::engine(self.component.folder(), what)
    }

    /// Runs it once, on one tensor for each of its inputs; gives one for each of its outputs.
    pub fn run(&self, inputs: &[Input]) -> Result<Vec<HostTensor>> {
        let failed = |e: ort::Error| self.error(format!("ONNX Runtime: {e}"));
        let mut values: Vec<(Cow<str>, SessionInputValue)> = Vec::with_capacity(inputs.len());
        for (port, (shape, data)) in self.inputs.iter().zip(inputs) {
            if !takes(port, shape) {
                return Err(self.error(format!(
                    "its input {port} cannot take a tensor of shape {shape:?}"
                )));
            }
            values.push((
                port.name.as_str().into(),
                value(port.dtype, shape, *data)
                    .map_err(failed)?
                    .ok_or_else(|| {
                        self.error(format!("the type of its input {port} is unsupported"))
                    })?,
            ));
        }
        // Before the session, which who has the stream may be about to run.
        #[cfg(feature = "cuda")]
        let _alone = self.provider.alone();
        let mut session = self.lock();
        let found = session.run(values).map_err(failed)?;
        self.outputs
            .iter()
            .map(|port| {
                let output = found
                    .get(&port.name)
                    .ok_or_else(|| self.error(format!("it gave no output {port}")))?;
                tensor(output, port.dtype).map_err(failed)?.ok_or_else(|| {
                    self.error(format!("its output {port} has another type or shape"))
                })
            })
            .collect()
    }

    /// The same for a graph of which one output is wanted.
    pub fn run_one(&self, inputs: &[Input]) -> Result<HostTensor> {
        let mut outputs = self.run(inputs)?;
        Ok(outputs.swap_remove(0))
    }
}

/// A session with our options; its threads are the environment's.
fn builder(runtime: &Runtime, provider: &Provider) -> ort::Result<SessionBuilder> {
    let builder = OrtSession::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?;
    provider.configure(builder)
}

/// A session's input or output as a port; `None` where it is no tensor.
fn port(outlet: &Outlet) -> Option<Port> {
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return None;
    };
    Some(Port {
        name: outlet.name().to_owned(),
        dtype: match ty {
            TensorElementType::Float32 => Dtype::F32,
            TensorElementType::Float16 => Dtype::F16,
            TensorElementType::Float64 => Dtype::F64,
            TensorElementType::Int32 => Dtype::I32,
            TensorElementType::Int64 => Dtype::I64,
            _ => return None,
        },
        dims: shape.iter().map(|d| usize::try_from(*d).ok()).collect(),
    })
}

/// Whether a tensor of this shape can be at `port`.
pub(super) fn takes(port: &Port, shape: &[usize]) -> bool {
    let fits = |(want, have): (&Option<usize>, &usize)| want.is_none_or(|w| w == *have);
    shape.len() == port.rank() && port.dims.iter().zip(shape).all(fits)
}

fn not_ready(file: &ComponentFile, runtime: &Runtime, e: &dyn std::fmt::Display) -> Error {
    Error::engine(
        file.component.folder(),
        format!(
            "{} cannot be made ready by ONNX Runtime {} ({}): {e}",
            file.path.display(),
            runtime.version,
            runtime.path.display()
        ),
    )
}

/// A value of type `dtype` for a session, without a copy where `data` has that type; `None` for other types.
fn value<'a>(
    dtype: Dtype,
    shape: &'a [usize],
    data: Values<'a>,
) -> ort::Result<Option<SessionInputValue<'a>>> {
    fn owned<'a, T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
        shape: &[usize],
        data: Vec<T>,
    ) -> ort::Result<SessionInputValue<'a>> {
        Ok(Tensor::from_array((shape, data))?.into())
    }
    Ok(Some(match (dtype, data) {
        (Dtype::F32, Values::Floats(v)) => TensorRef::from_array_view((shape, v))?.into(),
        (Dtype::F16, Values::Floats(v)) => {
            let mut half = vec![f16::ZERO; v.len()];
            half.convert_from_f32_slice(v);
            owned(shape, half)?
        }
        (Dtype::F64, Values::Floats(v)) => owned(shape, v.iter().map(|x| f64::from(*x)).collect())?,
        (Dtype::I64, Values::Integers(v)) => TensorRef::from_array_view((shape, v))?.into(),
        (Dtype::I64, Values::Floats(v)) => owned(shape, v.iter().map(|x| *x as i64).collect())?,
        (Dtype::I32, Values::Floats(v)) => owned(shape, v.iter().map(|x| *x as i32).collect())?,
        // Token ids and timesteps are far below 2³¹: both are checked where they come from.
        (Dtype::I32, Values::Integers(v)) => owned(shape, v.iter().map(|x| *x as i32).collect())?,
        // Timesteps are whole numbers that some graphs take as floats.
        (Dtype::F32, Values::Integers(v)) => owned(shape, v.iter().map(|x| *x as f32).collect())?,
        (Dtype::F16, Values::Integers(v)) => {
            owned(shape, v.iter().map(|x| f16::from_f32(*x as f32)).collect())?
        }
        (Dtype::F64, Values::Integers(v)) => owned(shape, v.iter().map(|x| *x as f64).collect())?,
        _ => return Ok(None),
    }))
}

/// The f32 tensor of a session's output of type `dtype`; `None` where its shape makes no sense.
fn tensor(output: &DynValue, dtype: Dtype) -> ort::Result<Option<HostTensor>> {
    let (shape, data) = match dtype {
        Dtype::F32 => {
            let (shape, data) = output.try_extract_tensor::<f32>()?;
            (shape, data.to_vec())
        }
        Dtype::F16 => {
            let (shape, half) = output.try_extract_tensor::<f16>()?;
            let mut data = vec![0.0; half.len()];
            half.convert_to_f32_slice(&mut data);
            (shape, data)
        }
        Dtype::F64 => {
            let (shape, data) = output.try_extract_tensor::<f64>()?;
            (shape, data.iter().map(|x| *x as f32).collect())
        }
        // Timesteps and the like: far below 2²⁴, so exact as f32.
        Dtype::I64 => {
            let (shape, data) = output.try_extract_tensor::<i64>()?;
            (shape, data.iter().map(|x| *x as f32).collect())
        }
        Dtype::I32 => {
            let (shape, data) = output.try_extract_tensor::<i32>()?;
            (shape, data.iter().map(|x| *x as f32).collect())
        }
        Dtype::Other(_) => return Ok(None),
    };
    let shape: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    Ok(shape
        .filter(|s| s.iter().product::<usize>() == data.len())
        .map(|s| HostTensor::new(&s, data)))
}
