//! The kernels of `kernels/*.cu`: their code, their parameters and their launches.
//!
//! Those that work on tensors take an array of rows in device memory (see [`rows`]), so a captured graph goes on with
//! new numbers in the same memory. Nothing here allocates or waits after [`Kernels::load`].

mod cache;
pub mod frames;
mod image;
mod nvrtc;
pub mod rows;

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::error::{Error, Result};
pub use frames::{FrameToTensor, TensorToFrame};
pub use image::{SOURCE, compile};
pub use rows::{
    BlendRow, COSINE_PARTIAL_BYTES, CombineRow, CopyBytesRow, CopyRow, CosineRow, InterpolateRow,
    PosteriorRow, Row, SlerpRow,
};

/// Threads of a block; the kernels know it too.
const THREADS: u32 = 256;
/// The most blocks that share a row of `interpolate`: enough for any GPU at once, also where vectors are short.
const INTERPOLATE_BLOCKS: u32 = 4096;
/// The most rows of a launch.
pub const MAX_ROWS: u32 = 65535;

/// The type of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
}

/// A kernel by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kernel {
    Combine,
    CopyF16F16,
    CopyF16F32,
    CopyF32F16,
    CopyF32F32,
    CopyBytes,
    PosteriorF16,
    PosteriorF32,
    Cosine,
    Slerp,
    Blend,
    InterpolateF16,
    InterpolateF32,
    FrameToTensor,
    TensorToFrame,
    TensorToLargerFrame,
}

impl Kernel {
    /// All of them, in the order of the variants.
    pub const ALL: [Self; 16] = [
        Self::Combine,
        Self::CopyF16F16,
        Self::CopyF16F32,
        Self::CopyF32F16,
        Self::CopyF32F32,
        Self::CopyBytes,
        Self::PosteriorF16,
        Self::PosteriorF32,
        Self::Cosine,
        Self::Slerp,
        Self::Blend,
        Self::InterpolateF16,
        Self::InterpolateF32,
        Self::FrameToTensor,
        Self::TensorToFrame,
        Self::TensorToLargerFrame,
    ];

    /// The one that copies values of `from` to values of `to`.
    pub fn copy(from: Element, to: Element) -> Self {
        match (from, to) {
            (Element::F16, Element::F16) => Self::CopyF16F16,
            (Element::F16, Element::F32) => Self::CopyF16F32,
            (Element::F32, Element::F16) => Self::CopyF32F16,
            (Element::F32, Element::F32) => Self::CopyF32F32,
        }
    }

    /// The one that samples distributions given as values of `moments`.
    pub fn posterior(moments: Element) -> Self {
        match moments {
            Element::F16 => Self::PosteriorF16,
            Element::F32 => Self::PosteriorF32,
        }
    }

    /// The one that gives what lies between vectors as values of `out`.
    pub fn interpolate(out: Element) -> Self {
        match out {
            Element::F16 => Self::InterpolateF16,
            Element::F32 => Self::InterpolateF32,
        }
    }

    /// The name of its entry point.
    pub fn name(self) -> &'static str {
        match self {
            Self::Combine => "combine",
            Self::CopyF16F16 => "copy_f16_f16",
            Self::CopyF16F32 => "copy_f16_f32",
            Self::CopyF32F16 => "copy_f32_f16",
            Self::CopyF32F32 => "copy_f32_f32",
            Self::CopyBytes => "copy_bytes",
            Self::PosteriorF16 => "posterior_f16",
            Self::PosteriorF32 => "posterior_f32",
            Self::Cosine => "cosine",
            Self::Slerp => "slerp",
            Self::Blend => "blend",
            Self::InterpolateF16 => "interpolate_f16",
            Self::InterpolateF32 => "interpolate_f32",
            Self::FrameToTensor => "frame_to_tensor",
            Self::TensorToFrame => "tensor_to_frame",
            Self::TensorToLargerFrame => "tensor_to_larger_frame",
        }
    }

    /// The grid for `count` rows of which the longest has `longest` elements (of `copy_bytes`: bytes; of `interpolate`, whose
    /// blocks take one each: vectors). It follows from these numbers alone, so launches that agree in them can replay one
    /// graph.
    pub fn geometry(self, count: u32, longest: u32) -> Geometry {
        let (per_block, most) = match self {
            Self::Cosine => (32 * THREADS, rows::COSINE_BLOCKS),
            Self::CopyBytes => (16 * THREADS, u32::MAX),
            Self::InterpolateF16 | Self::InterpolateF32 => (1, INTERPOLATE_BLOCKS),
            _ => (8 * THREADS, u32::MAX),
        };
        Geometry {
            grid: (longest.div_ceil(per_block).clamp(1, most), count),
            block: THREADS,
            shared: 0,
        }
    }
}

/// How a kernel is spread over a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Blocks along x and y.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// The kernels, ready on one GPU.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    functions: [sys::CUfunction; Kernel::ALL.len()],
    origin: String,
}

// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Makes the kernels ready on the GPU of `context`, which becomes current in this thread: from the PTX that the
    /// plugin was built with, else compiled by NVRTC, or from the cache that keeps what NVRTC made.
    ///
    /// # Errors
    /// [`Error::Library`] when there is neither PTX that the driver takes nor an NVRTC library, saying what to install;
    /// [`Error::Engine`] when the code cannot be compiled or loaded.
    pub fn load(context: &Arc<CudaContext>) -> Result<Self> {
        context.bind_to_thread().map_err(|e| failed("the GPU", e))?;
        let capability = context
            .compute_capability()
            .map_err(|e| failed("the GPU", e))?;
        let (module, origin) = image::load(capability)?;
        let mut kernels = Self {
            context: context.clone(),
            module,
            functions: [std::ptr::null_mut(); Kernel::ALL.len()],
            origin,
        };
        for kernel in Kernel::ALL {
            let name = std::ffi::CString::new(kernel.name()).unwrap_or_default();
            // SAFETY: the module is loaded, and stays so as long as `kernels` lives. Asking for an attribute makes the
            // driver, which loads functions when they are first used, load this one now, not while a graph is captured.
            let function = unsafe {
                result::module::get_function(module, name).and_then(|function| {
                    let registers = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
                    result::function::get_function_attribute(function, registers)?;
                    Ok(function)
                })
            };
            kernels.functions[kernel as usize] = function.map_err(|e| failed(kernel.name(), e))?;
        }
        Ok(kernels)
    }

    /// Where the code came from, for people.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Turns the frame at `frame` into the tensor at `tensor`.
    ///
    /// # Errors
    /// When the driver refuses, or a 10-bit frame is at an odd address.
    ///
    /// # Safety
    /// The context of these kernels is current, `stream` is one of its streams, and when the kernel gets to run there is
    /// memory for what `plan` was made for.
    pub unsafe fn frame_to_tensor(
        &self,
        stream: sys::CUstream,
        plan: &FrameToTensor,
        frame: sys::CUdeviceptr,
        tensor: sys::CUdeviceptr,
    ) -> Result<()> {
        let arguments = plan.arguments(frame, tensor)?;
        // SAFETY: the kernel takes these arguments; the rest is the caller's word.
        unsafe { self.start(Kernel::FrameToTensor, stream, plan.geometry(), &arguments) }
    }

    /// Turns the tensor at `tensor` into the frame at `frame`.
    ///
    /// # Errors
    /// When the driver refuses, or a 10-bit frame is at an odd address.
    ///
    /// # Safety
    /// As for [`frame_to_tensor`](Self::frame_to_tensor).
    pub unsafe fn tensor_to_frame(
        &self,
        stream: sys::CUstream,
        plan: &TensorToFrame,
        tensor: sys::CUdeviceptr,
        frame: sys::CUdeviceptr,
    ) -> Result<()> {
        let arguments = plan.arguments(tensor, frame)?;
        // SAFETY: the kernel takes these arguments; the rest is the caller's word.
        unsafe { self.start(plan.kernel(), stream, plan.geometry(), &arguments) }
    }

    /// Launches any kernel that takes rows. May be called while `stream` is captured. Nothing is launched for no rows
    /// or rows without elements.
    ///
    /// # Errors
    /// When there are more rows than [`MAX_ROWS`], or the driver refuses.
    ///
    /// # Safety
    /// The context of these kernels is current, `stream` is one of its streams, and when the kernel gets to run there
    /// are `count` rows of `kernel`'s type at `rows`, whose pointers lead to as much memory as their lengths say. `longest` is
    /// what [`Kernel::geometry`] takes.
    pub unsafe fn launch(
        &self,
        kernel: Kernel,
        stream: sys::CUstream,
        rows: sys::CUdeviceptr,
        count: u32,
        longest: u32,
    ) -> Result<()> {
        if matches!(
            kernel,
            Kernel::FrameToTensor | Kernel::TensorToFrame | Kernel::TensorToLargerFrame
        ) {
            return Err(Error::engine(kernel.name(), "it takes a frame, not rows"));
        }
        if count > MAX_ROWS {
            return Err(Error::engine(
                kernel.name(),
                format!("{count} rows in one launch, expected {MAX_ROWS} or fewer"),
            ));
        }
        if count == 0 || longest == 0 {
            return Ok(());
        }
        // SAFETY: the kernel takes one pointer; the rest is the caller's word.
        unsafe { self.start(kernel, stream, kernel.geometry(count, longest), &rows) }
    }

    /// Launches a kernel whose only argument is an `A`.
    ///
    /// # Safety
    /// The kernel must take an `A`, and find what that leads to.
    unsafe fn start<A>(
        &self,
        kernel: Kernel,
        stream: sys::CUstream,
        geometry: Geometry,
        argument: &A,
    ) -> Result<()> {
        let mut arguments = [std::ptr::from_ref(argument).cast_mut().cast::<c_void>()];
        let Geometry {
            grid,
            block,
            shared,
        } = geometry;
        // SAFETY: the function is this module's; the driver copies the argument during the call.
        unsafe {
            result::launch_kernel(
                self.functions[kernel as usize],
                (grid.0, grid.1, 1),
                (block, 1, 1),
                shared,
                stream,
                &mut arguments,
            )
        }
        .map_err(|e| failed(kernel.name(), e))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // A context that is gone has taken its modules with it.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by `load`, and unloaded once.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// What failed, in the driver's words.
fn failed(what: &str, error: DriverError) -> Error {
    let name = error.error_name().ok().and_then(|name| name.to_str().ok());
    let text = error
        .error_string()
        .ok()
        .and_then(|text| text.to_str().ok());
    Error::engine(
        "CUDA",
        format!(
            "{what}: {} ({})",
            text.unwrap_or("unknown error"),
            name.unwrap_or("no name")
        ),
    )
}
