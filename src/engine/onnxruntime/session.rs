//! One component's graph, made runnable.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, Tensor, TensorRef};

use super::library;
use crate::device::HostTensor;
use crate::error::{Error, Result};
use crate::model::{ComponentFile, Dtype, Port, Role};

/// Values for one input; they are converted to the type the graph wants.
#[derive(Clone, Copy)]
pub(super) enum Values<'a> {
    /// Floats.
    Floats(&'a [f32]),
    /// Whole numbers.
    Integers(&'a [i64]),
}

/// What an input is given: whose, its shape, its values.
pub(super) type Input<'a> = (Role, &'a [usize], Values<'a>);

/// A session and what it is for.
pub(super) struct Session {
    /// A run needs the session for itself.
    inner: Mutex<OrtSession>,
    file: ComponentFile,
}

impl Session {
    /// Loads the graph and its weights.
    pub fn open(file: &ComponentFile) -> Result<Self> {
        let runtime = library::runtime()?;
        let failed = |e: &dyn std::fmt::Display| {
            Error::engine(
                file.component.folder(),
                format!(
                    "{} cannot be made ready by ONNX Runtime {} ({}): {e}",
                    file.path.display(),
                    runtime.version,
                    runtime.path.display()
                ),
            )
        };
        // Threads are the environment's.
        let inner = OrtSession::builder(&runtime.environment)
            .map_err(|e| failed(&e))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|e| failed(&e))?
            .with_memory_pattern(true)
            .map_err(|e| failed(&e))?
            .commit_from_file(&file.path)
            .map_err(|e| failed(&e))?;
        // Two parsers have read the graph now; they must have seen the same one.
        let has = |found: &[Outlet], port: &Port| found.iter().any(|o| o.name() == port.name);
        if inner.inputs().len() != file.inputs.len()
            || !file.inputs.iter().all(|(_, p)| has(inner.inputs(), p))
            || !has(inner.outputs(), &file.output)
        {
            return Err(failed(
                &"its inputs and outputs are not those its header lists",
            ));
        }
        Ok(Self {
            inner: Mutex::new(inner),
            file: file.clone(),
        })
    }

    /// The component it runs.
    pub fn file(&self) -> &ComponentFile {
        &self.file
    }

    /// An error of this component.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::engine(self.file.component.folder(), what)
    }

    /// Runs it once. `inputs` names every role the graph has.
    pub fn run(&self, inputs: &[Input]) -> Result<HostTensor> {
        let failed = |e: ort::Error| self.error(format!("ONNX Runtime: {e}"));
        let mut values: Vec<(Cow<str>, SessionInputValue)> = Vec::with_capacity(inputs.len());
        for (role, port) in &self.file.inputs {
            let (_, shape, data) = inputs
                .iter()
                .find(|(r, ..)| r == role)
                .ok_or_else(|| self.error(format!("nothing is given for its input {port}")))?;
            let fits = |(want, have): (&Option<usize>, &usize)| want.is_none_or(|w| w == *have);
            if shape.len() != port.rank() || !port.dims.iter().zip(*shape).all(fits) {
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
        let mut session = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(values).map_err(failed)?;
        let port = &self.file.output;
        let output = outputs
            .get(&port.name)
            .ok_or_else(|| self.error(format!("it gave no output {port}")))?;
        tensor(output, port.dtype)
            .map_err(failed)?
            .ok_or_else(|| self.error(format!("its output {port} has another type or shape")))
    }
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
        _ => return Ok(None),
    };
    let shape: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    Ok(shape
        .filter(|s| s.iter().product::<usize>() == data.len())
        .map(|s| HostTensor::new(&s, data)))
}
