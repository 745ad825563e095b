//! A session at fixed addresses: the buffers that it reads and writes, for one shape.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use cudarc::driver::sys as cuda_sys;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::RunOptions;
use parking_lot::Mutex;

use super::binding::{Binding, Slot};
use super::options::Graphs;
use crate::device::cuda::{Cuda, CudaTensor, Element, Work};
use crate::engine::onnxruntime::provider::Provider;
use crate::engine::onnxruntime::session::{Session, takes};
use crate::error::{Error, Result};
use crate::model::{Dtype, Port};

/// How many sets of buffers a session keeps for a thread, of the shapes used last.
const KEPT: usize = 16;
/// Runs before one may be captured: in the first, cuDNN chooses algorithms and arenas grow; the second finds them so.
const WARM_UP: u64 = 2;
/// Of runs that are not captured, one in so many waits for the GPU: then ONNX Runtime frees what it copied from.
const WAITS: u64 = 32;

/// A session's sets of buffers, each for one shape and thread, with what its user keeps of it.
pub struct Bounds<S> {
    cuda: Cuda,
    session: Arc<Session>,
    /// The one used last at the back.
    entries: Mutex<Vec<Entry<S>>>,
    /// The most runs that followed each other in one frame.
    runs: AtomicUsize,
}

struct Entry<S> {
    /// The thread that uses it. Threads note down frames independently of each other, so what one has written to a set last
    /// could be overwritten by another one before its frame is run.
    thread: Weak<()>,
    key: Key,
    bound: Arc<Bound>,
    /// What its user noted down while the device had as many failures as `failures`.
    state: S,
    failures: u64,
}

#[derive(PartialEq, Eq)]
struct Key {
    number: usize,
    inputs: Vec<Vec<usize>>,
}

thread_local! {
    /// Lives as long as its thread.
    static ALIVE: Arc<()> = Arc::new(());
}

/// One set.
pub struct Bound {
    // Before the session that it belongs to, which must outlive it.
    binding: Mutex<Binding>,
    session: Arc<Session>,
    cuda: Cuda,
    inputs: Vec<CudaTensor>,
    output: CudaTensor,
    /// For runs that wait for the GPU, and for those that do not.
    options: [RunOptions; 2],
    runs: AtomicU64,
}

impl<S: Default> Bounds<S> {
    /// None yet, of `session`.
    pub fn new(cuda: &Cuda, session: &Arc<Session>) -> Self {
        Self {
            cuda: cuda.clone(),
            session: session.clone(),
            entries: Mutex::default(),
            runs: AtomicUsize::new(1),
        }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Calls `work` with the set for inputs of the shapes `inputs`, and with what is kept of it. Its first output has the
    /// shape `output`. Sets with different `number`s are different ones, for runs that follow each other in one frame.
    pub fn with<R>(
        &self,
        number: usize,
        inputs: Vec<Vec<usize>>,
        output: &[usize],
        work: impl FnOnce(&Arc<Bound>, &mut S) -> Result<R>,
    ) -> Result<R> {
        let thread = ALIVE.with(Arc::downgrade);
        let mut entries = self.entries.lock();
        entries.retain(|entry| entry.thread.strong_count() > 0);
        let key = Key { number, inputs };
        let mine = |entry: &Entry<S>| entry.thread.ptr_eq(&thread);
        let known = (entries.iter()).position(|entry| mine(entry) && entry.key == key);
        let mut entry = match known {
            Some(index) => entries.remove(index),
            None => Entry {
                bound: Arc::new(Bound::new(&self.cuda, &self.session, &key.inputs, output)?),
                state: S::default(),
                failures: 0,
                thread: thread.clone(),
                key,
            },
        };
        let failures = self.cuda.failures();
        if std::mem::replace(&mut entry.failures, failures) != failures {
            entry.state = S::default();
        }
        let result = work(&entry.bound, &mut entry.state);
        // Those of a whole frame, at least: else each would make room for the next, and none would be there again.
        let runs = self
            .runs
            .fetch_max(number + 1, Ordering::Relaxed)
            .max(number + 1);
        if entries.iter().filter(|entry| mine(entry)).count() >= KEPT.max(2 * runs)
            && let Some(oldest) = entries.iter().position(mine)
        {
            entries.remove(oldest);
        }
        entries.push(entry);
        result
    }
}

impl Bound {
    fn new(
        cuda: &Cuda,
        session: &Arc<Session>,
        inputs: &[Vec<usize>],
        output: &[usize],
    ) -> Result<Self> {
        let port = &session.outputs()[0];
        let memory = |port: &Port, shape: &[usize]| {
            if !takes(port, shape) {
                return Err(
                    session.error(format!("its tensor {port} cannot have the shape {shape:?}"))
                );
            }
            cuda.empty(shape, element(session, port)?)
        };
        let ports = session.inputs();
        let inputs = (ports.iter().zip(inputs))
            .map(|(port, shape)| memory(port, shape))
            .collect::<Result<Vec<_>>>()?;
        let output = memory(port, output)?;
        let slots = ports.iter().zip(&inputs);
        let slots: Vec<_> = slots.map(|(port, tensor)| slot(port, tensor)).collect();
        let failed = |e| failed(session, &e);
        // SAFETY: the tensors and the session are fields of the same struct as the binding, dropped after it.
        let binding = unsafe {
            let outputs = [slot(port, &output)];
            Binding::new(
                &session.lock(),
                &kind(session).map_err(failed)?,
                &slots,
                &outputs,
            )
        };
        Ok(Self {
            binding: Mutex::new(binding.map_err(failed)?),
            session: session.clone(),
            cuda: cuda.clone(),
            inputs,
            output,
            options: options(session).map_err(failed)?,
            runs: AtomicU64::new(0),
        })
    }

    /// Its inputs, in the session's order. Written by copies that are recorded before a run.
    pub fn inputs(&self) -> &[CudaTensor] {
        &self.inputs
    }

    /// What a run writes. The next one writes there too.
    pub fn output(&self) -> &CudaTensor {
        &self.output
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

impl Work for Bound {
    fn enqueue(&self) -> Result<()> {
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
pub fn element(session: &Session, port: &Port) -> Result<Element> {
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

fn slot<'a>(port: &'a Port, tensor: &'a CudaTensor) -> Slot<'a> {
    Slot {
        name: &port.name,
        element: port.dtype.number(),
        shape: tensor.shape(),
        address: tensor.pointer(),
        bytes: tensor.bytes(),
    }
}

fn kind(session: &Session) -> ort::Result<MemoryInfo<'static>> {
    let (device, number) = match session.provider() {
        Provider::Cpu => (AllocationDevice::CPU, 0),
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
