//! The list of commands that a frame is, and the graphs that lists become.
//!
//! Operations are noted down, not done, until somebody needs a result. A list whose like has come before is launched as
//! one CUDA graph: what differs from frame to frame (addresses, factors) is in a block of parameters on the device, which
//! is written anew for each list, and not in the graph.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaEvent, result, sys};

use super::context::{Gpu, Mark, failed};
use super::kernels::{Kernel, Kernels, Row};
use super::pinned::Pinned;
use super::pool::Buffer;
use super::tensor::CudaTensor;
use crate::device::SECTIONS;
use crate::error::{Error, Result};

/// Graphs kept: one for each number of slots under way, for sizes and kinds of frames seen lately.
const GRAPHS: usize = 16;
/// How often a list is done command by command before it is made a graph: engines settle in their first runs.
const TRIALS: usize = 3;
/// A list that could not be made a graph is tried again when it comes the next time that is a multiple of this.
const RETRY: usize = 1000;
/// Bytes of parameters that there is room for at first.
const ROOM: usize = 1 << 16;
/// What parameters begin at multiples of.
const ALIGNMENT: usize = 16;

/// Work of an engine, at fixed addresses, on the compute stream.
pub trait Work: Send + Sync {
    /// Puts all of it on the compute stream, without waiting for it, possibly while the stream is captured.
    fn enqueue(&self) -> Result<()>;

    /// Whether it can be captured in a graph by now.
    fn capturable(&self) -> bool;
}

enum Command {
    /// `rows` rows of parameters, the first `offset` bytes into the block; `longest` is what [`Kernel::geometry`] takes.
    Launch {
        kernel: Kernel,
        offset: usize,
        rows: u32,
        longest: u32,
    },
    Work(Arc<dyn Work>),
    /// An event: even numbers begin sections, odd ones end them.
    Mark(usize),
}

/// What of a command a graph holds.
#[derive(Clone)]
enum Node {
    Launch(Kernel, usize, u32, u32),
    Work(Weak<dyn Work>),
    Mark(usize),
}

impl Node {
    fn of(command: &Command) -> Self {
        match command {
            Command::Launch {
                kernel,
                offset,
                rows,
                longest,
            } => Self::Launch(*kernel, *offset, *rows, *longest),
            Command::Work(work) => Self::Work(Arc::downgrade(work)),
            Command::Mark(number) => Self::Mark(*number),
        }
    }

    fn is_of(&self, command: &Command) -> bool {
        match (self, command) {
            (
                Self::Launch(a, b, c, d),
                Command::Launch {
                    kernel,
                    offset,
                    rows,
                    longest,
                },
            ) => (a, b, c, d) == (kernel, offset, rows, longest),
            // The address alone: while `self` lives, no other work can have it.
            (Self::Work(mine), Command::Work(work)) => {
                std::ptr::addr_eq(mine.as_ptr(), Arc::as_ptr(work))
            }
            (Self::Mark(mine), Command::Mark(number)) => mine == number,
            _ => false,
        }
    }
}

/// A list that has come before.
struct Known {
    nodes: Vec<Node>,
    /// How often it came.
    times: usize,
    graph: Graph,
}

enum Graph {
    /// Not tried yet.
    Not,
    Made(Replay),
    /// It cannot be one.
    Refused,
}

/// How lists were done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Launches {
    /// As one graph.
    pub graphs: u64,
    /// Command by command.
    pub eager: u64,
}

/// What is on the stream: neither engines nor tensors must go before their work is done.
#[derive(Default)]
struct Running {
    commands: Vec<Command>,
    kept: Vec<CudaTensor>,
    /// When it is done, once all of it is there.
    end: Option<Mark>,
}

/// One thread's list.
#[derive(Default)]
pub(super) struct List {
    commands: Vec<Command>,
    parameters: Vec<u8>,
    /// What the commands read and write.
    kept: Vec<CudaTensor>,
    running: Running,
    /// When what is submitted next began.
    begun: Option<Mark>,
    block: Option<Block>,
    known: VecDeque<Known>,
    marks: Vec<CudaEvent>,
    took: [Option<Duration>; SECTIONS],
    launches: Launches,
    /// Why a list could not be made a graph.
    refusal: Option<String>,
}

// SAFETY: graphs are the only part that is not Send by itself. They may be used by any thread, one at a time, and a list
// is behind a lock.
unsafe impl Send for List {}

impl List {
    /// Notes a launch of `kernel` over `rows`, which are of its type; `longest` is what [`Kernel::geometry`] takes.
    pub(super) fn launch<R: Row>(&mut self, kernel: Kernel, rows: &[R], longest: u32) {
        let offset = self.parameters.len().next_multiple_of(ALIGNMENT);
        self.parameters.resize(offset, 0);
        self.parameters.extend_from_slice(R::bytes(rows));
        self.commands.push(Command::Launch {
            kernel,
            offset,
            rows: rows.len() as u32,
            longest,
        });
    }

    /// Notes an engine's work.
    pub(super) fn work(&mut self, work: Arc<dyn Work>) {
        self.commands.push(Command::Work(work));
    }

    /// Notes the beginning or end of a section; gives how long it took the last time, once.
    pub(super) fn begin(&mut self, section: usize) -> Option<Duration> {
        self.commands.push(Command::Mark(2 * section));
        // What is still on the stream says nothing yet.
        (self.took[section] != Some(Duration::MAX))
            .then(|| self.took[section].take())
            .flatten()
    }

    pub(super) fn end(&mut self, section: usize) {
        self.commands.push(Command::Mark(2 * section + 1));
    }

    /// Whether nothing is noted down.
    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Forgets what is noted down and not on the stream yet; whether that was anything.
    pub(super) fn abandon(&mut self) -> bool {
        self.parameters.clear();
        self.kept.clear();
        !std::mem::take(&mut self.commands).is_empty()
    }

    /// Keeps a tensor until the list is done.
    pub(super) fn keep(&mut self, tensor: &CudaTensor) {
        self.kept.push(tensor.clone());
    }

    /// How lists were done so far.
    pub(super) fn launches(&self) -> Launches {
        self.launches
    }

    /// Why the last list that could not be made a graph could not.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Puts the list on the stream, which must be [`done`](Self::done) with what it had before; what it keeps stays kept until
    /// then. It is empty after an error too.
    pub(super) fn submit(&mut self, gpu: &Gpu, kernels: &Kernels) -> Result<()> {
        self.running.kept.append(&mut self.kept);
        if self.commands.is_empty() {
            return Ok(());
        }
        let commands = std::mem::take(&mut self.commands);
        let parameters = std::mem::take(&mut self.parameters);
        let done = self.run(gpu, kernels, &commands, &parameters);
        self.commands = Vec::with_capacity(commands.len());
        self.parameters = Vec::with_capacity(parameters.len());
        match done {
            Ok(()) => self.marked(&commands),
            // Events of a list that broke off say nothing.
            Err(_) => self.took = Default::default(),
        }
        self.running.commands.extend(commands);
        done
    }

    /// Where on the stream what is submitted next begins.
    pub(super) fn begin_at(&mut self, begun: Mark) {
        self.begun = Some(begun);
    }

    /// Where that was, once.
    pub(super) fn take_begun(&mut self) -> Option<Mark> {
        self.begun.take()
    }

    /// Where on the stream what was submitted ends.
    pub(super) fn end_at(&mut self, end: Mark) {
        self.running.end = Some(end);
    }

    /// Where on the stream what was submitted ends, once.
    pub(super) fn take_end(&mut self) -> Option<Mark> {
        self.running.end.take()
    }

    /// To be called when the stream has finished what was submitted.
    pub(super) fn done(&mut self) {
        let Running {
            commands,
            kept,
            end,
        } = &mut self.running;
        commands.clear();
        kept.clear();
        *end = None;
        for section in 0..SECTIONS {
            if self.took[section] == Some(Duration::MAX) {
                self.took[section] = match &self.marks[..] {
                    marks if marks.len() > 2 * section + 1 => {
                        let elapsed = marks[2 * section].elapsed_ms(&marks[2 * section + 1]);
                        elapsed
                            .ok()
                            .map(|ms| Duration::from_secs_f32(ms.max(0.0) / 1e3))
                    }
                    _ => None,
                };
            }
        }
    }

    /// Remembers which sections the list had.
    fn marked(&mut self, commands: &[Command]) {
        for command in commands {
            if let Command::Mark(number) = command {
                self.took[number / 2] = Some(Duration::MAX);
            }
        }
    }

    fn run(
        &mut self,
        gpu: &Gpu,
        kernels: &Kernels,
        commands: &[Command],
        parameters: &[u8],
    ) -> Result<()> {
        if self.marks.is_empty() {
            let event = || {
                let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
                let event = gpu.context.new_event(timed);
                event.map_err(|e| failed("make an event", e))
            };
            self.marks = (0..2 * SECTIONS).map(|_| event()).collect::<Result<_>>()?;
        }
        let fits = self
            .block
            .as_ref()
            .is_some_and(|b| b.staging.size() >= parameters.len());
        if !fits {
            // Graphs hold the block's address.
            self.known.clear();
            self.block = Some(Block::new(gpu, parameters.len())?);
        }
        let Some(block) = &mut self.block else {
            return Ok(());
        };
        let base = block.write(gpu, parameters)?;

        let known = self.known.iter().position(|known| {
            known.nodes.len() == commands.len()
                && known.nodes.iter().zip(commands).all(|(n, c)| n.is_of(c))
        });
        let mut known = match known.and_then(|i| self.known.remove(i)) {
            Some(known) => known,
            None => Known {
                nodes: commands.iter().map(Node::of).collect(),
                times: 0,
                graph: Graph::Not,
            },
        };
        known.times += 1;
        let settled = |command: &Command| match command {
            Command::Work(work) => work.capturable(),
            _ => true,
        };
        let due = match known.graph {
            Graph::Not => true,
            Graph::Made(_) => false,
            // What another thread did meanwhile may have been in the way.
            Graph::Refused => known.times.is_multiple_of(RETRY),
        };
        if gpu.graphs && due && known.times > TRIALS && commands.iter().all(settled) {
            known.graph = match capture(gpu, kernels, &self.marks, commands, base) {
                Ok(graph) => Graph::Made(graph),
                Err(error) => {
                    self.refusal = Some(error.to_string());
                    Graph::Refused
                }
            };
        }
        let done = match &known.graph {
            Graph::Made(graph) => {
                self.launches.graphs += 1;
                graph.launch(gpu)
            }
            Graph::Not | Graph::Refused => {
                self.launches.eager += 1;
                enqueue(gpu, kernels, &self.marks, commands, base, false)
            }
        };
        self.known.push_front(known);
        self.known.truncate(GRAPHS);
        done
    }
}

/// Puts `commands` on the stream, one by one.
fn enqueue(
    gpu: &Gpu,
    kernels: &Kernels,
    marks: &[CudaEvent],
    commands: &[Command],
    base: sys::CUdeviceptr,
    captured: bool,
) -> Result<()> {
    let stream = gpu.stream.cu_stream();
    for command in commands {
        match command {
            Command::Launch {
                kernel,
                offset,
                rows,
                longest,
            } => {
                let at = base + *offset as u64;
                // SAFETY: the block holds rows of this kernel there, and the list keeps what they point to.
                unsafe { kernels.launch(*kernel, stream, at, *rows, *longest) }?;
            }
            Command::Work(work) => work.enqueue()?,
            Command::Mark(number) => {
                // In a graph, an event that can be looked at from outside.
                let flags = match captured {
                    true => sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL,
                    false => sys::CUevent_record_flags::CU_EVENT_RECORD_DEFAULT,
                };
                let event = marks[*number].cu_event();
                // SAFETY: event and stream are alive.
                let recorded = unsafe { sys::cuEventRecordWithFlags(event, stream, flags as u32) };
                recorded
                    .result()
                    .map_err(|e| failed("record an event", e))?;
            }
        }
    }
    Ok(())
}

/// A graph of `commands`.
fn capture(
    gpu: &Gpu,
    kernels: &Kernels,
    marks: &[CudaEvent],
    commands: &[Command],
    base: sys::CUdeviceptr,
) -> Result<Replay> {
    // Other threads may allocate meanwhile.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    (gpu.stream.begin_capture(mode)).map_err(|e| failed("capture a frame", e))?;
    let capture = Capture(gpu);
    let enqueued = enqueue(gpu, kernels, marks, commands, base, true);
    match (enqueued, capture.end()) {
        (Ok(()), graph) => Replay::new(gpu, graph?),
        (Err(error), graph) => {
            if let Ok(graph) = graph {
                // SAFETY: it is nobody else's; the first error is the one to tell.
                let _ = unsafe { result::graph::destroy(graph) };
            }
            Err(error)
        }
    }
}

/// A capture that has begun; it ends with this, whatever happens.
struct Capture<'a>(&'a Gpu);

impl Capture<'_> {
    /// Ends it; what was captured.
    fn end(self) -> Result<sys::CUgraph> {
        // SAFETY: the stream is alive, and captured by this thread.
        let graph = unsafe { result::stream::end_capture(self.0.stream.cu_stream()) };
        std::mem::forget(self);
        match graph.map_err(|e| failed("capture a frame", e))? {
            graph if graph.is_null() => Err(Error::engine("CUDA", "captured no frame")),
            graph => Ok(graph),
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // SAFETY: as in `end`, which was not called. The graph is nobody else's.
        unsafe {
            if let Ok(graph) = result::stream::end_capture(self.0.stream.cu_stream())
                && !graph.is_null()
            {
                let _ = result::graph::destroy(graph);
            }
        }
    }
}

/// A graph that can be launched.
struct Replay {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    context: Arc<CudaContext>,
}

impl Replay {
    fn new(gpu: &Gpu, graph: sys::CUgraph) -> Result<Self> {
        let context = gpu.context.clone();
        // SAFETY: the graph has just been captured.
        match unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) } {
            Ok(exec) => Ok(Self {
                graph,
                exec,
                context,
            }),
            Err(error) => {
                // SAFETY: it is nobody else's; the first error is the one to tell.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(failed("make a graph of a frame", error))
            }
        }
    }

    fn launch(&self, gpu: &Gpu) -> Result<()> {
        // SAFETY: both are alive, and lists are used by one thread at a time.
        unsafe { result::graph::launch(self.exec, gpu.stream.cu_stream()) }
            .map_err(|e| failed("launch a frame", e))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: nobody else's; the driver lets a launch under way end. Errors can only be earlier ones.
            unsafe {
                let _ = result::graph::exec_destroy(self.exec);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}

/// Parameters, on the device and on their way there.
struct Block {
    device: Buffer,
    staging: Pinned,
}

impl Block {
    fn new(gpu: &Gpu, size: usize) -> Result<Self> {
        let size = size.max(ROOM).next_power_of_two();
        Ok(Self {
            device: gpu.pool.take(size)?,
            staging: Pinned::new(gpu, size)?,
        })
    }

    /// Has `parameters` written to the device, before what comes next on the stream; gives their address. Whoever used the
    /// block before must be done: every list is waited for before the next one is submitted.
    fn write(&mut self, gpu: &Gpu, parameters: &[u8]) -> Result<sys::CUdeviceptr> {
        let base = self.device.pointer();
        let staging = &mut self.staging.bytes()[..parameters.len()];
        staging.copy_from_slice(parameters);
        if !staging.is_empty() {
            // SAFETY: the device's block is as large, and the staging memory is left alone until the copy is done.
            unsafe { result::memcpy_htod_async(base, staging, gpu.stream.cu_stream()) }
                .map_err(|e| failed("write parameters", e))?;
        }
        Ok(base)
    }
}
