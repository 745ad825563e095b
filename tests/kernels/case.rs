//! What kernels are run on: buffers, addresses among them, launches.

use gststreamdiffusion::device::cuda::kernels::frames::{
    FrameToTensorArguments, TensorToFrameArguments,
};
use gststreamdiffusion::device::cuda::kernels::{
    BlendRow, CombineRow, CopyBytesRow, CopyRow, CosineRow, FrameToTensor, InterpolateRow, Kernel,
    PosteriorRow, Row, SlerpRow, TensorToFrame,
};

/// Runs kernels: the CPU, with or without sanitizers, or a GPU.
pub trait Runner {
    /// The bytes of all buffers of each case after its launches.
    fn run(&self, cases: &[Case]) -> Vec<Vec<Vec<u8>>>;
}

/// A test of kernels on the CPU, on the CPU under sanitizers, and on a GPU.
macro_rules! everywhere {
    ($($name:ident)*) => {
        $(mod $name {
            #[test]
            fn on_the_cpu() {
                super::$name(crate::host::plain());
            }

            #[test]
            fn sanitized() {
                super::$name(crate::host::sanitized());
            }

            #[test]
            #[ignore = "needs an NVIDIA GPU"]
            fn on_a_gpu() {
                super::$name(crate::gpu::gpu());
            }
        })*
    };
}
pub(crate) use everywhere;

/// A block of memory of its own.
pub struct Buffer {
    /// What is in it, before.
    pub bytes: Vec<u8>,
    /// How far from a multiple of 64 it begins.
    pub skew: usize,
}

/// An address that is patched in before a launch.
#[derive(Clone, Copy)]
pub struct Patch {
    /// Where it is written to.
    pub at: usize,
    /// The buffer it leads to, and the byte in it.
    pub buffer: usize,
    pub offset: usize,
}

/// A kernel and what it is given.
pub enum Launch {
    /// Rows in a buffer.
    Rows {
        kernel: Kernel,
        rows: usize,
        count: u32,
        longest: u32,
    },
    FrameToTensor {
        plan: FrameToTensor,
        frame: u64,
        tensor: u64,
    },
    TensorToFrame {
        plan: TensorToFrame,
        tensor: u64,
        frame: u64,
    },
}

/// One thing to run.
#[derive(Default)]
pub struct Case {
    pub buffers: Vec<Buffer>,
    /// Addresses in buffers, with the buffer they are in.
    pub patches: Vec<(usize, Patch)>,
    pub launches: Vec<Launch>,
}

/// What stands for an address until there are some: byte `offset` of buffer `buffer`.
pub fn address(buffer: usize, offset: usize) -> u64 {
    1 << 63 | (buffer as u64) << 32 | offset as u64
}

/// Buffer and byte of what [`address`] gave.
pub fn parts(address: u64) -> (usize, usize) {
    assert_eq!(address >> 63, 1, "not an address of a test");
    (
        (address >> 32 & 0x7fff_ffff) as usize,
        (address & 0xffff_ffff) as usize,
    )
}

/// Where a type has addresses.
pub trait Addresses: Row {
    const AT: &'static [usize];
}

impl Addresses for CombineRow {
    const AT: &'static [usize] = &[0, 8, 16, 24, 32];
}
impl Addresses for CopyRow {
    const AT: &'static [usize] = &[0, 8];
}
impl Addresses for CopyBytesRow {
    const AT: &'static [usize] = &[0, 8];
}
impl Addresses for PosteriorRow {
    const AT: &'static [usize] = &[0, 8, 16];
}
impl Addresses for CosineRow {
    const AT: &'static [usize] = &[0, 8, 16, 24, 32];
}
impl Addresses for SlerpRow {
    const AT: &'static [usize] = &[0, 8, 16, 24];
}
impl Addresses for BlendRow {
    const AT: &'static [usize] = &[0, 8, 16];
}
impl Addresses for InterpolateRow {
    const AT: &'static [usize] = &[0, 8, 16];
}
impl Addresses for FrameToTensorArguments {
    const AT: &'static [usize] = &[0, 8, 16, 24];
}
impl Addresses for TensorToFrameArguments {
    const AT: &'static [usize] = &[0, 8, 16, 24];
}

/// The bytes of `rows`, and the addresses in them.
pub fn patched<R: Addresses>(rows: &[R]) -> (Vec<u8>, Vec<Patch>) {
    let bytes = R::bytes(rows).to_vec();
    let mut patches = Vec::new();
    for row in 0..rows.len() {
        for at in R::AT {
            let at = row * size_of::<R>() + at;
            let value = u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
            if value != 0 {
                let (buffer, offset) = parts(value);
                patches.push(Patch { at, buffer, offset });
            }
        }
    }
    (bytes, patches)
}

impl Case {
    /// A buffer that begins `skew` bytes after a multiple of 64.
    pub fn skewed(&mut self, bytes: &[u8], skew: usize) -> usize {
        self.buffers.push(Buffer {
            bytes: bytes.to_vec(),
            skew,
        });
        self.buffers.len() - 1
    }

    /// A buffer.
    pub fn buffer(&mut self, bytes: &[u8]) -> usize {
        self.skewed(bytes, 0)
    }

    /// A launch on these rows.
    pub fn launch<R: Addresses>(&mut self, kernel: Kernel, rows: &[R], longest: usize) {
        let (bytes, patches) = patched(rows);
        let buffer = self.buffer(&bytes);
        self.patches
            .extend(patches.into_iter().map(|patch| (buffer, patch)));
        self.launches.push(Launch::Rows {
            kernel,
            rows: buffer,
            count: rows.len() as u32,
            longest: longest as u32,
        });
    }
}
