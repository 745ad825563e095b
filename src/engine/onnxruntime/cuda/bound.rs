//! A session at fixed addresses: the buffers that it reads and writes, for one shape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys as cuda_sys;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::RunOptions;
use parking_lot::Mutex;

use super::binding::{Binding, Slot};
use super::options::{CudaProvider, Graphs};
use super::processor::{self, Turn};
use crate::device::cuda::{Cuda, CudaTensor, Element, Work};
use crate::engine::cuda::{self, Program};
use crate::engine::onnxruntime::provider::Provider;
use crate::engine::onnxruntime::session::{Session, takes};
use crate::error::{Error, Result};
use crate::model::{Component, Dtype, Port};

/// Runs before one may be captured: in the first, cuDNN chooses algorithms and arenas grow; the second finds them so.
const WARM_UP: u64 = 2;
/// Of runs that are not captured, one in so many waits for the GPU: then ONNX Runtime frees what it copied from.
const WAITS: u64 = 32;

/// A session, bound.
struct Bound {
    // Before the session that it belongs to, which must outlive it.
    binding: Mutex<Binding>,
    session: Arc<Session>,
    cuda: Cuda,
    inputs: Vec<CudaTensor>,
    outputs: Vec<CudaTensor>,
    /// For runs that wait for the GPU, and for those that do not.
    options: [RunOptions; 2],
    runs: AtomicU64,
}

impl Bound {
    fn new(
        cuda: &Cuda,
        session: &Arc<Session>,
        inputs: &[Vec<usize>],
        outputs: &[Vec<usize>],
    ) -> Result<Self> {
        let tensor = |(port, shape): (&Port, &Vec<usize>)| {
            if !takes(port, shape) {
                return Err(
                    session.error(format!("its tensor {port} cannot have the shape {shape:?}"))
                );
            }
            cuda.empty(shape, element(session, port)?)
        };
        let memory = |ports: &[Port], shapes: &[Vec<usize>]| {
            let pairs = ports.iter().zip(shapes);
            pairs.map(tensor).collect::<Result<Vec<_>>>()
        };
        let inputs = memory(session.inputs(), inputs)?;
        let outputs = memory(session.outputs(), outputs)?;
        let failed = |e| failed(session, &e);
        // SAFETY: the tensors and the session are fields of the same struct as the binding, dropped after it.
        let binding = unsafe {
            Binding::new(
                &session.lock(),
                &kind(session).map_err(failed)?,
                &slots(session.inputs(), &inputs),
                &slots(session.outputs(), &outputs),
            )
        };
        Ok(Self {
            binding: Mutex::new(binding.map_err(failed)?),
            session: session.clone(),
            cuda: cuda.clone(),
            inputs,
            outputs,
            options: options(session).map_err(failed)?,
            runs: AtomicU64::new(0),
        })
    }

    fn try_run(&self, captured: bool) -> ort::Result<()> {
        let mut session = self.session.lock();
        let binding = self.binding.lock();
        let runs = self.runs.fetch_add(1, Ordering::Relaxed);
        let known = match self.session.provider() {
            Provider::Cuda(provider) => !matches!(provider.graphs, Graphs::None(_)),
            Provider::Cpu => true,
        };
        if !known || self.session.copies() {
            // Inputs that are read in main memory are taken there when they are bound. Old versions do not tell.
            binding.bind_inputs()?;
        }
        let waits = !captured && runs % WAITS == WAITS - 1;
        binding.run(&mut session, &self.options[usize::from(!waits)])
    }
}

impl Program for Session {
    fn component(&self) -> Component {
        Session::component(self)
    }

    fn elements(&self) -> Result<Vec<Element>> {
        let ports = self.inputs().iter();
        ports.map(|port| element(self, port)).collect()
    }

    fn bind(
        self: Arc<Self>,
        cuda: &Cuda,
        inputs: &[Vec<usize>],
        outputs: &[Vec<usize>],
    ) -> Result<Arc<dyn cuda::Bound>> {
        Ok(Arc::new(Bound::new(cuda, &self, inputs, outputs)?))
    }
}

impl cuda::Bound for Bound {
    fn inputs(&self) -> &[CudaTensor] {
        &self.inputs
    }

    fn outputs(&self) -> &[CudaTensor] {
        &self.outputs
    }
}

impl Bound {
    fn provider(&self) -> Option<&CudaProvider> {
        match self.session.provider() {
            Provider::Cuda(provider) => Some(provider),
            Provider::Cpu => None,
        }
    }
}

impl Turn for Bound {
    fn run(&self) {
        let processor = self.provider().and_then(CudaProvider::processor);
        if let (Err(error), Some(processor)) = (self.try_run(false), processor) {
            (processor.failing)(&failed(&self.session, &error));
        }
    }
}

impl Work for Bound {
    fn enqueue(&self) -> Result<()> {
        if self.provider().is_some_and(|p| p.processor().is_some()) {
            // SAFETY: lists keep work until it is done, and launch no graph of work that is gone.
            return unsafe { processor::put(&self.cuda, self) };
        }
        let captured = match self.session.provider() {
            Provider::Cuda(_) => capturing(&self.cuda)?,
            Provider::Cpu => false,
        };
        let _relaxed = captured.then(Relaxed::new);
        (self.try_run(captured)).map_err(|e| failed(&self.session, &e))
    }

    fn capturable(&self) -> bool {
        let Provider::Cuda(provider) = self.session.provider() else {
            return false;
        };
        provider.graphs == Graphs::Frame
            && !self.session.copies()
            && self.runs.load(Ordering::Relaxed) >= WARM_UP
    }
}

/// Whether what is put on the compute stream now is captured, not run.
fn capturing(cuda: &Cuda) -> Result<bool> {
    let mut status = cuda_sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream lives as long as `cuda`; one number is written.
    unsafe { cuda_sys::cuStreamIsCapturing(cuda.stream().cast(), &mut status) }
        .result()
        .map_err(|e| Error::engine("CUDA", format!("could not tell if it captures: {e}")))?;
    Ok(status != cuda_sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Lets the thread allocate memory while it captures: arenas may grow then too, and what is allocated stays.
struct Relaxed(cuda_sys::CUstreamCaptureMode);

impl Relaxed {
    fn new() -> Self {
        Self(exchange(
            cuda_sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
        ))
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        exchange(self.0);
    }
}

/// Sets how the thread's calls go with captures; gives how they did.
fn exchange(mut mode: cuda_sys::CUstreamCaptureMode) -> cuda_sys::CUstreamCaptureMode {
    // SAFETY: one value is read and written. It fails for modes that there are none of only.
    let _ = unsafe { cuda_sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    mode
}

/// The type of a port's elements on a GPU.
fn element(session: &Session, port: &Port) -> Result<Element> {
    Ok(match port.dtype {
        Dtype::F16 => Element::F16,
        Dtype::F32 => Element::F32,
        Dtype::I32 => Element::I32,
        Dtype::I64 => Element::I64,
        _ => {
            return Err(session.error(format!(
                "its tensor {port} is of a type that is not supported on a GPU; expected f16, f32, i32 or i64"
            )));
        }
    })
}

/// What ports are bound to, where these tensors are for them.
fn slots<'a>(ports: &'a [Port], tensors: &'a [CudaTensor]) -> Vec<Slot<'a>> {
    let slot = |(port, tensor): (&'a Port, &'a CudaTensor)| Slot {
        name: &port.name,
        element: port.dtype.number(),
        shape: tensor.shape(),
        address: tensor.pointer(),
        bytes: tensor.bytes(),
    };
    ports.iter().zip(tensors).map(slot).collect()
}

fn kind(session: &Session) -> ort::Result<MemoryInfo<'static>> {
    let (device, number) = match session.provider() {
        Provider::Cpu => (AllocationDevice::CPU, 0),
        Provider::Cuda(provider) if provider.processor().is_some() => (AllocationDevice::CPU, 0),
        Provider::Cuda(provider) => (AllocationDevice::CUDA, provider.device()),
    };
    MemoryInfo::new(device, number, AllocatorType::Device, MemoryType::Default)
}

fn options(session: &Session) -> ort::Result<[RunOptions; 2]> {
    /// Numbers of ONNX Runtime's own graphs.
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
    let (mut waiting, mut free) = (RunOptions::new()?, RunOptions::new()?);
    if let Provider::Cuda(provider) = session.provider()
        && provider.graphs == Graphs::Session
    {
        waiting.set("gpu_graph_id", &number)?;
        free.set("gpu_graph_id", &number)?;
        // A capture, which is the second run's, cannot wait.
        waiting.disable_device_sync()?;
    }
    free.disable_device_sync()?;
    Ok([waiting, free])
}

fn failed(session: &Session, e: &ort::Error) -> Error {
    session.error(format!("ONNX Runtime: {e}"))
}
