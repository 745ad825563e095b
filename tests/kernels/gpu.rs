//! The kernels on a GPU, launched as the plugin launches them.

use std::sync::{Arc, LazyLock};

use cudarc::driver::{CudaContext, CudaStream, result, sys};
use gststreamdiffusion::device::cuda::kernels::Kernels;

use crate::case::{Case, Launch, Runner, parts};

/// The first GPU.
pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub kernels: Kernels,
}

/// The first GPU, which has to be there.
pub fn gpu() -> &'static Gpu {
    static GPU: LazyLock<Gpu> = LazyLock::new(|| {
        let context = CudaContext::new(0).unwrap();
        let kernels = Kernels::load(&context).unwrap();
        let (major, minor) = context.compute_capability().unwrap();
        println!(
            "{}, compute capability {major}.{minor}; kernels: {}",
            context.name().unwrap(),
            kernels.origin()
        );
        Gpu {
            stream: context.new_stream().unwrap(),
            kernels,
            context,
        }
    });
    GPU.context.bind_to_thread().unwrap();
    &GPU
}

/// Memory of the GPU, exactly as much as is asked for.
pub struct Memory(pub sys::CUdeviceptr);

impl Memory {
    pub fn new(size: usize) -> Self {
        // SAFETY: a context is current.
        Self(unsafe { result::malloc_sync(size.max(1)) }.unwrap())
    }

    pub fn of(bytes: &[u8]) -> Self {
        let memory = Self::new(bytes.len());
        memory.write(0, bytes);
        memory
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        if !bytes.is_empty() {
            // SAFETY: the callers stay inside.
            unsafe { result::memcpy_htod_sync(self.0 + at as u64, bytes) }.unwrap();
        }
    }

    pub fn read(&self, at: usize, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        if size > 0 {
            // SAFETY: the callers stay inside.
            unsafe { result::memcpy_dtoh_sync(&mut bytes, self.0 + at as u64) }.unwrap();
        }
        bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

impl Gpu {
    fn run_case(&self, case: &Case) -> Vec<Vec<u8>> {
        let memory: Vec<Memory> = case
            .buffers
            .iter()
            .map(|b| Memory::new(b.skew + b.bytes.len()))
            .collect();
        let place = |buffer: usize, offset: usize| {
            memory[buffer].0 + (case.buffers[buffer].skew + offset) as u64
        };
        let found = |address: u64| {
            let (buffer, offset) = parts(address);
            place(buffer, offset)
        };
        for (i, buffer) in case.buffers.iter().enumerate() {
            let mut bytes = buffer.bytes.clone();
            for (_, patch) in case.patches.iter().filter(|(within, _)| *within == i) {
                let value = place(patch.buffer, patch.offset);
                bytes[patch.at..patch.at + 8].copy_from_slice(&value.to_ne_bytes());
            }
            memory[i].write(buffer.skew, &bytes);
        }
        let stream = self.stream.cu_stream();
        for launch in &case.launches {
            // SAFETY: the cases keep to their buffers, and these live until the stream is done.
            let launched = unsafe {
                match launch {
                    Launch::Rows {
                        kernel,
                        rows,
                        count,
                        longest,
                    } => {
                        let rows = place(*rows, 0);
                        self.kernels.launch(*kernel, stream, rows, *count, *longest)
                    }
                    Launch::FrameToTensor {
                        plan,
                        frame,
                        tensor,
                    } => {
                        let (frame, tensor) = (found(*frame), found(*tensor));
                        self.kernels.frame_to_tensor(stream, plan, frame, tensor)
                    }
                    Launch::TensorToFrame {
                        plan,
                        tensor,
                        frame,
                    } => {
                        let (tensor, frame) = (found(*tensor), found(*frame));
                        self.kernels.tensor_to_frame(stream, plan, tensor, frame)
                    }
                }
            };
            launched.unwrap();
        }
        self.stream.synchronize().unwrap();
        case.buffers
            .iter()
            .zip(&memory)
            .map(|(buffer, memory)| memory.read(buffer.skew, buffer.bytes.len()))
            .collect()
    }
}

impl Runner for Gpu {
    fn run(&self, cases: &[Case]) -> Vec<Vec<Vec<u8>>> {
        cases.iter().map(|case| self.run_case(case)).collect()
    }
}
