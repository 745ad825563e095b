//! NVIDIA GPUs: tensors of f16 in device memory, arithmetic by our kernels, all of it ordered on one stream. Frames in main
//! memory come and go on two others.
//!
//! Operations are noted down and done when a result is needed ([`list`]), a frame's as one CUDA graph. Every thread has a
//! list of its own, so elements that share a model do not get in each other's way.

mod comparison;
mod context;
mod frames;
mod interpolate;
pub mod kernels;
mod list;
mod peer;
mod pinned;
mod pool;
mod staging;
mod submitted;
mod tensor;

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};
use std::time::Duration;

use cudarc::driver::result;
use half::f16;
use half::slice::HalfFloatSliceExt;
use parking_lot::{Mutex, MutexGuard};

pub use comparison::Comparison;
pub use frames::{Download, Upload};
pub use interpolate::Interpolated;
pub use list::{Launches, Work};
pub use peer::KeptContext;
pub use submitted::Submitted;
pub use tensor::{CudaTensor, Element};

use super::{Device, HostTensor, Update, apart, unlike};
use crate::error::{Error, Result};
use context::{Gpu, Restore, failed};
use kernels::{
    BlendRow, COSINE_PARTIAL_BYTES, CombineRow, CopyBytesRow, CopyRow, CosineRow, Kernel, Kernels,
    PosteriorRow, SlerpRow,
};
use list::List;

/// A GPU. Clones are the same one.
#[derive(Clone)]
pub struct Cuda(Arc<Inner>);

struct Inner {
    identity: usize,
    lists: Mutex<HashMap<Owner, Arc<Mutex<List>>>>,
    /// Held while something is put on the stream that must not be mixed with what another thread puts there.
    submission: Mutex<()>,
    /// How often what was noted down was not done.
    failures: AtomicU64,
    frames: frames::Frames,
    comparisons: comparison::Shelf,
    // After the lists, whose graphs use them.
    kernels: Kernels,
    gpu: Gpu,
    restore: Restore,
}

/// Whose list one is: a thread's, and whether it is that for what goes ahead of the others.
type Owner = (ThreadId, bool);

thread_local! {
    /// Whether the thread notes down what goes ahead.
    static AHEAD: Cell<bool> = const { Cell::new(false) };
}

/// The list of the calling thread that is in use.
fn owner() -> Owner {
    (thread::current().id(), AHEAD.get())
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.restore.save();
    }
}

impl Cuda {
    /// How many GPUs there are; an error that says what is missing where there is no driver.
    pub fn count() -> Result<usize> {
        context::count()
    }

    /// The compute capability of the GPU with this number: major and minor. Makes no context on it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn compute_capability(ordinal: usize) -> Result<(u32, u32)> {
        context::count()?;
        context::compute_capability(ordinal)
    }

    /// The GPU with this number, counted from 0.
    ///
    /// # Errors
    /// [`Error::Library`] without a driver or a GPU, [`Error::Setting`] for a number too high.
    pub fn new(ordinal: usize) -> Result<Self> {
        // Looks for the driver first: nothing may be asked of it where it is not there.
        context::count()?;
        let _restore = Restore::new();
        let gpu = Gpu::new(ordinal)?;
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        Ok(Self(Arc::new(Inner {
            identity: NUMBER.fetch_add(1, Ordering::Relaxed),
            lists: Mutex::default(),
            submission: Mutex::default(),
            failures: AtomicU64::new(0),
            frames: frames::Frames::default(),
            comparisons: comparison::Shelf::default(),
            kernels: Kernels::load(&gpu.context)?,
            gpu,
            restore: Restore::default(),
        })))
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.0.gpu.context.ordinal()
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.0.gpu.name
    }

    /// The primary context (a `CUcontext`), valid while `self` lives.
    pub fn context_handle(&self) -> *mut c_void {
        self.0.gpu.context.cu_ctx().cast()
    }

    /// The compute stream (a `CUstream`), valid while `self` lives.
    pub fn stream(&self) -> *mut c_void {
        self.0.gpu.stream.cu_stream().cast()
    }

    /// Free and total memory of the GPU in bytes, whoever uses it.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let _restore = Restore::new();
        (self.0.gpu.context.mem_get_info()).map_err(|e| failed("tell its memory", e))
    }

    /// Bytes of device memory that tensors have from the driver, those kept for further use included.
    pub fn allocated(&self) -> usize {
        self.0.gpu.pool.total()
    }

    /// How the calling thread's frames were launched so far.
    pub fn launches(&self) -> Launches {
        let list = self.0.lists.lock().get(&owner()).cloned();
        list.map_or(Launches::default(), |list| list.lock().launches())
    }

    /// Why frames of the calling thread are not launched as one graph, where that was tried and failed.
    pub fn refusal(&self) -> Option<String> {
        let list = self.0.lists.lock().get(&owner()).cloned();
        list.and_then(|list| list.lock().refusal().map(str::to_owned))
    }

    /// An error that says what to do, if the GPU has failed in a way that nothing is done on it any more.
    pub fn check(&self) -> Result<()> {
        let _restore = Restore::new();
        match context::lost(&self.0.gpu.context) {
            Some(error) => Err(failed("go on", error)),
            None => Ok(()),
        }
    }

    /// Another number for each GPU that was opened, also when one was opened anew. What works on the stream of one of them
    /// is no use to another.
    pub fn identity(&self) -> usize {
        self.0.identity
    }

    /// A tensor of whatever its memory held before.
    ///
    /// # Errors
    /// [`Error::Engine`] when memory is used up, with what is needed and what is free, or when no memory could hold it.
    pub fn empty(&self, shape: &[usize], element: Element) -> Result<CudaTensor> {
        let buffer = self.0.gpu.pool.take(tensor::size(shape, element)?)?;
        Ok(CudaTensor::new(shape, element, buffer))
    }

    /// A tensor of `shape` with the values `data`, converted to `element`.
    pub fn upload_as(&self, shape: &[usize], data: &[f32], element: Element) -> Result<CudaTensor> {
        if shape.iter().product::<usize>() != data.len() {
            return Err(Error::engine(
                "CUDA",
                format!("{} values for a tensor of shape {shape:?}", data.len()),
            ));
        }
        let tensor = self.empty(shape, element)?;
        match element {
            Element::F32 => self.write(&tensor, data),
            Element::F16 => {
                let mut half = vec![f16::ZERO; data.len()];
                half.convert_from_f32_slice(data);
                self.write(&tensor, &half)
            }
            Element::I64 => {
                self.write(&tensor, &data.iter().map(|x| *x as i64).collect::<Vec<_>>())
            }
            Element::I32 => {
                self.write(&tensor, &data.iter().map(|x| *x as i32).collect::<Vec<_>>())
            }
        }?;
        Ok(tensor)
    }

    /// Writes `data` to a tensor that nothing which is noted down uses; it has been read when this returns.
    fn write<T>(&self, tensor: &CudaTensor, data: &[T]) -> Result<()> {
        self.0.gpu.enter()?;
        let _submission = self.0.submission.lock();
        let stream = self.0.gpu.stream.cu_stream();
        // SAFETY: the tensor has as many elements of this size. Pageable memory is copied before the call returns.
        unsafe { result::memcpy_htod_async(tensor.pointer(), data, stream) }
            .map_err(|e| failed("upload a tensor", e))
    }

    /// The values of a tensor, when all that the calling thread noted down is done.
    pub fn download(&self, tensor: &CudaTensor) -> Result<HostTensor> {
        self.finish()?;
        let data = match tensor.element() {
            Element::F32 => self.read(tensor, 0f32)?,
            Element::F16 => {
                let half = self.read(tensor, f16::ZERO)?;
                let mut data = vec![0.0; half.len()];
                half.convert_to_f32_slice(&mut data);
                data
            }
            Element::I64 => (self.read(tensor, 0i64)?.iter())
                .map(|x| *x as f32)
                .collect(),
            Element::I32 => (self.read(tensor, 0i32)?.iter())
                .map(|x| *x as f32)
                .collect(),
        };
        Ok(HostTensor::new(tensor.shape(), data))
    }

    fn read<T: Clone>(&self, tensor: &CudaTensor, zero: T) -> Result<Vec<T>> {
        let mut data = vec![zero; tensor.len()];
        let mark = {
            let _submission = self.0.submission.lock();
            let stream = self.0.gpu.stream.cu_stream();
            // SAFETY: the tensor has as many elements of this size, and they are waited for below.
            unsafe { result::memcpy_dtoh_async(&mut data, tensor.pointer(), stream) }
                .map_err(|e| failed("download a tensor", e))?;
            self.0.gpu.mark()?
        };
        mark.wait()?;
        Ok(data)
    }

    /// Notes down: copies `parts`, one after the other, to `to`, which has as many elements as all of them:
    /// `to = scale·from + shift`. All parts have one element type; types other than f16 and f32 are copied as they are.
    pub fn copy(
        &self,
        parts: &[&CudaTensor],
        to: &CudaTensor,
        scale: f32,
        shift: f32,
    ) -> Result<()> {
        let Some(first) = parts.first() else {
            return Ok(());
        };
        let fits = parts.iter().all(|part| part.element() == first.element())
            && parts.iter().map(|part| part.len()).sum::<usize>() == to.len();
        let Some(how) = Copying::new(first, to, scale, shift).filter(|_| fits) else {
            return Err(Error::engine(
                "CUDA",
                format!("cannot copy {parts:?} to {to:?} times {scale} plus {shift}"),
            ));
        };
        let mut out = to.pointer();
        let mut copies = Vec::with_capacity(parts.len());
        for part in parts {
            copies.push((part.pointer(), out, length(part)?));
            out += (part.len() * to.element().size()) as u64;
        }
        let list = self.list();
        let mut list = list.lock();
        how.launch(&mut list, &copies);
        list.keep(to);
        parts.iter().for_each(|part| list.keep(part));
        Ok(())
    }

    /// Whether [`copy_each`](Self::copy_each) copies elements of one type to those of another.
    pub fn copies(from: Element, to: Element) -> bool {
        Copying::kernel(from, to, from == to).is_some()
    }

    /// Notes down: copies the first tensor of each pair to the second one, which has as many elements, in as few launches as
    /// there are pairs of types.
    pub fn copy_each(&self, pairs: &[(CudaTensor, CudaTensor)]) -> Result<()> {
        let mut kinds: Vec<(Copying, Vec<Transfer>)> = Vec::new();
        for (from, to) in pairs {
            let how = Copying::new(from, to, 1.0, 0.0).filter(|_| from.len() == to.len());
            let how = how
                .ok_or_else(|| Error::engine("CUDA", format!("cannot copy {from:?} to {to:?}")))?;
            let copy = (from.pointer(), to.pointer(), length(from)?);
            match kinds.iter_mut().find(|(kind, _)| *kind == how) {
                Some((_, copies)) => copies.push(copy),
                None => kinds.push((how, vec![copy])),
            }
        }
        let list = self.list();
        let mut list = list.lock();
        for (how, copies) in &kinds {
            how.launch(&mut list, copies);
        }
        for (from, to) in pairs {
            list.keep(from);
            list.keep(to);
        }
        Ok(())
    }

    /// Notes down: latents from what an image encoder gives, means and logarithms of variances `[f, 2·C, h, w]`, as
    /// diffusers draws them: `out = (mean + exp(½·clamp(log variance, −30, 20))·noise − shift)·scale`, the mean where there
    /// is no noise. `out` and `noise` are f16 `[f, C, h, w]`.
    pub fn posterior(
        &self,
        moments: &CudaTensor,
        noise: Option<&CudaTensor>,
        out: &CudaTensor,
        scale: f32,
        shift: f32,
    ) -> Result<()> {
        let half = |t: &CudaTensor| t.element() == Element::F16 && t.len() == out.len();
        let element = moments.element().float();
        let fits = moments.len() == 2 * out.len() && half(out) && noise.is_none_or(half);
        let Some(element) = element.filter(|_| fits) else {
            return Err(Error::engine(
                "vae_encoder",
                format!("gave {moments:?}, expected twice the channels of {out:?}"),
            ));
        };
        let frames = out.shape().first().copied().unwrap_or(1).max(1);
        let len = length(out)? / frames as u32;
        let at = |tensor: &CudaTensor, elements: u64| {
            tensor.pointer() + elements * u64::from(len) * tensor.element().size() as u64
        };
        let row = |f: u64| PosteriorRow {
            moments: at(moments, 2 * f),
            noise: noise.map_or(0, |noise| at(noise, f)),
            out: at(out, f),
            scale,
            shift,
            len,
            unused: 0,
        };
        let rows: Vec<_> = (0..frames as u64).map(row).collect();
        let list = self.list();
        let mut list = list.lock();
        list.launch(Kernel::posterior(element), &rows, len);
        let tensors = [Some(moments), noise, Some(out)];
        tensors
            .into_iter()
            .flatten()
            .for_each(|tensor| list.keep(tensor));
        Ok(())
    }

    /// Notes down an engine's work, which reads and writes tensors of its own.
    pub fn run(&self, work: Arc<dyn Work>) -> Result<()> {
        self.list().lock().work(work);
        Ok(())
    }

    /// Has `work` note down operations in a list of their own, and does them, before all that the calling thread has noted
    /// down and not done: they must not depend on that, which stays as it is. If `work` fails, nothing of what it noted down is
    /// done. It must not go ahead itself.
    pub fn ahead<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        /// The way back to the other list, also after an error or a panic: then something is left here.
        struct Back<'a>(&'a Cuda);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                if self.0.list().lock().abandon() {
                    self.0.0.failures.fetch_add(1, Ordering::Relaxed);
                }
                AHEAD.set(false);
            }
        }
        debug_assert!(!AHEAD.get());
        AHEAD.set(true);
        let _back = Back(self);
        let result = work()?;
        let nothing = self.list().lock().is_empty();
        match nothing {
            true => Ok(result),
            false => self.finish().map(|()| result),
        }
    }

    /// Keeps other threads from putting anything on the compute stream as long as it is held: for who puts there what is not
    /// noted down, which the graph that another thread captures would take for its own. Nothing noted down may be done by the
    /// thread that holds it.
    pub fn exclusive(&self) -> MutexGuard<'_, ()> {
        self.0.submission.lock()
    }

    /// How often what was noted down, by whatever thread, was not done. Who relies on something noted down earlier has to
    /// look whether this is still the same.
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    /// Forgets what it keeps for the calling thread, which has no further use for it.
    pub fn release_thread(&self) {
        let thread = thread::current().id();
        let mut mine: Vec<_> = {
            let mut lists = self.0.lists.lock();
            (lists.extract_if(|(owner, _), _| *owner == thread)).collect()
        };
        for (_, list) in &mut mine {
            // Whoever was to hear of an error is gone.
            let _ = self.settle(&mut list.lock());
        }
        drop(mine);
        // Other threads go on with other sizes, or engines with other memory.
        self.0.gpu.pool.trim();
    }

    fn list(&self) -> Arc<Mutex<List>> {
        let mut lists = self.0.lists.lock();
        lists.entry(owner()).or_default().clone()
    }

    /// Notes down the sums `<a, b>`, `<a, a>` and `<b, b>` of two f16 tensors of one length; in f32 in the tensor that comes
    /// back.
    fn sums(&self, a: &CudaTensor, b: &CudaTensor) -> Result<CudaTensor> {
        half_alike("sums", &[a, b])?;
        let sums = self.empty(&[3], Element::F32)?;
        let partial = self.empty(&[COSINE_PARTIAL_BYTES / 4], Element::F32)?;
        let finished = self.upload_as(&[4], &[0.0; 4], Element::I32)?;
        let row = CosineRow {
            a: a.pointer(),
            b: b.pointer(),
            out: sums.pointer(),
            partial: partial.pointer(),
            finished: finished.pointer(),
            len: length(a)?,
            unused: 0,
        };
        let list = self.list();
        let mut list = list.lock();
        list.launch(Kernel::Cosine, &[row], row.len);
        for tensor in [a, b, &sums, &partial, &finished] {
            list.keep(tensor);
        }
        Ok(sums)
    }

    /// Notes down combinations of tensors, and keeps these.
    fn combine(&self, rows: &[CombineRow], kept: &[CudaTensor]) {
        let longest = rows.iter().map(|row| row.len).max().unwrap_or(0);
        let list = self.list();
        let mut list = list.lock();
        list.launch(Kernel::Combine, rows, longest);
        kept.iter().for_each(|tensor| list.keep(tensor));
    }
}

/// Where a copy comes from and goes to, and how many elements it has.
type Transfer = (u64, u64, u32);

/// How tensors are copied.
#[derive(Clone, PartialEq)]
struct Copying {
    kernel: Kernel,
    scale: f32,
    shift: f32,
    /// Bytes of an element, where bytes are copied.
    size: u32,
}

impl Copying {
    /// From a tensor like `from` to one like `to`; `None` if there is no way.
    fn new(from: &CudaTensor, to: &CudaTensor, scale: f32, shift: f32) -> Option<Self> {
        let (from, to) = (from.element(), to.element());
        let as_it_is = from == to && (scale, shift) == (1.0, 0.0);
        Some(Self {
            kernel: Self::kernel(from, to, as_it_is)?,
            scale,
            shift,
            size: from.size() as u32,
        })
    }

    /// What copies elements of one type to those of another.
    fn kernel(from: Element, to: Element, as_it_is: bool) -> Option<Kernel> {
        match (as_it_is, from.float(), to.float()) {
            (true, ..) => Some(Kernel::CopyBytes),
            (false, Some(from), Some(to)) => Some(Kernel::copy(from, to)),
            _ => None,
        }
    }

    /// Notes down these copies as one launch.
    fn launch(&self, list: &mut List, copies: &[Transfer]) {
        let &Self {
            kernel,
            scale,
            shift,
            size,
        } = self;
        let longest = copies.iter().map(|copy| copy.2).max().unwrap_or(0);
        if kernel == Kernel::CopyBytes {
            let row = |&(input, out, len): &Transfer| CopyBytesRow {
                input,
                out,
                bytes: len * size,
                unused: 0,
            };
            let rows: Vec<_> = copies.iter().map(row).collect();
            list.launch(kernel, &rows, longest * size);
        } else {
            let row = |&(input, out, len): &Transfer| CopyRow {
                input,
                out,
                scale,
                shift,
                len,
                unused: 0,
            };
            let rows: Vec<_> = copies.iter().map(row).collect();
            list.launch(kernel, &rows, longest);
        }
    }
}

/// The number of a tensor's elements, for a kernel.
fn length(tensor: &CudaTensor) -> Result<u32> {
    // Bytes must fit too.
    match u32::try_from(tensor.bytes()) {
        Ok(bytes) if bytes < 1 << 31 => Ok(tensor.len() as u32),
        _ => Err(Error::engine(
            "CUDA",
            format!("{tensor:?} is too large, expected less than 2 GB"),
        )),
    }
}

/// An error unless these are f16 tensors of one length: kernels take what they are given for that.
fn half_alike(what: &str, tensors: &[&CudaTensor]) -> Result<()> {
    let alike = |t: &&CudaTensor| t.element() == Element::F16 && t.len() == tensors[0].len();
    match tensors.iter().all(alike) {
        true => Ok(()),
        false => Err(Error::engine(
            "CUDA",
            format!("{what} of {tensors:?}, expected f16 tensors of one length"),
        )),
    }
}

/// An error unless `part` is f16, and so many of it make up `whole`.
fn repeats(what: &str, part: &CudaTensor, whole: &CudaTensor) -> Result<()> {
    let fits = part.element() == Element::F16
        && !part.is_empty()
        && whole.len().is_multiple_of(part.len());
    match fits {
        true => Ok(()),
        false => Err(Error::engine(
            "CUDA",
            format!("{what} of {whole:?} and {part:?}, expected f16 of which a whole number fits"),
        )),
    }
}

impl Device for Cuda {
    type Tensor = CudaTensor;
    type Comparison = Comparison;

    fn upload(&self, shape: &[usize], data: &[f32]) -> Result<CudaTensor> {
        self.upload_as(shape, data, Element::F16)
    }

    fn stack(&self, mut parts: Vec<CudaTensor>) -> Result<CudaTensor> {
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let first = parts.first();
        let mut shape = first.map_or(vec![0], |part| part.shape().to_vec());
        shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
        let stacked = self.empty(&shape, first.map_or(Element::F16, CudaTensor::element))?;
        self.copy(&parts.iter().collect::<Vec<_>>(), &stacked, 1.0, 0.0)?;
        Ok(stacked)
    }

    fn unstack(&self, tensor: CudaTensor) -> Vec<CudaTensor> {
        tensor.rows()
    }

    fn same_shape(&self, a: &CudaTensor, b: &CudaTensor) -> bool {
        a.shape() == b.shape()
    }

    fn compare(&self, a: &CudaTensor, b: &CudaTensor) -> Result<Comparison> {
        self.begin_comparison(a, b)
    }

    fn cosine(&self, comparison: Comparison) -> Result<f32> {
        comparison.cosine()
    }

    fn add_noise(
        &self,
        a: f32,
        latents: &CudaTensor,
        b: f32,
        noise: &CudaTensor,
    ) -> Result<CudaTensor> {
        half_alike("add_noise", &[latents])?;
        repeats("add_noise", noise, latents)?;
        let out = self.empty(latents.shape(), Element::F16)?;
        let row = CombineRow {
            a: latents.pointer(),
            d: noise.pointer(),
            out: out.pointer(),
            ka: a,
            kd: b,
            len: length(&out)?,
            period: length(noise)?,
            ..CombineRow::default()
        };
        self.combine(&[row], &[out.clone(), latents.clone(), noise.clone()]);
        Ok(out)
    }

    fn slerp(&self, share: f64, a: &CudaTensor, b: &CudaTensor) -> Result<CudaTensor> {
        if a.shape() != b.shape() {
            return Err(apart(a.shape(), b.shape()));
        }
        let sums = self.sums(a, b)?;
        let out = self.empty(a.shape(), Element::F16)?;
        let row = SlerpRow {
            a: a.pointer(),
            b: b.pointer(),
            out: out.pointer(),
            sums: sums.pointer(),
            t: share as f32,
            len: length(a)?,
        };
        let list = self.list();
        let mut list = list.lock();
        list.launch(Kernel::Slerp, &[row], row.len);
        for tensor in [a, b, &sums, &out] {
            list.keep(tensor);
        }
        Ok(out)
    }

    fn step(&self, updates: Vec<Update<'_, CudaTensor>>) -> Result<()> {
        let mut rows = Vec::with_capacity(updates.len());
        let mut kept = Vec::new();
        for update in updates {
            let Update {
                k,
                x,
                prediction,
                reference,
                noise,
            } = update;
            if prediction.len() != x.len() || reference.is_some_and(|r| r.len() != x.len()) {
                return Err(Error::engine(
                    "unet",
                    "its output has another shape than its sample",
                ));
            }
            half_alike("step", &[x, prediction])?;
            half_alike("step", &[reference.unwrap_or(x), x])?;
            if let Some(noise) = noise {
                repeats("step", noise, x)?;
            }
            // Others may share the old one's memory.
            let next = self.empty(x.shape(), Element::F16)?;
            let null = |tensor: Option<&CudaTensor>| tensor.map_or(0, CudaTensor::pointer);
            rows.push(CombineRow {
                a: x.pointer(),
                b: prediction.pointer(),
                c: null(reference),
                d: null(noise),
                out: next.pointer(),
                ka: k.sample,
                kb: k.prediction,
                kc: k.reference,
                kd: k.noise,
                len: length(&next)?,
                period: noise.map_or(Ok(0), length)?,
            });
            kept.extend([prediction, &next].map(CudaTensor::clone));
            kept.extend([reference, noise].into_iter().flatten().cloned());
            kept.push(std::mem::replace(x, next));
        }
        self.combine(&rows, &kept);
        Ok(())
    }

    fn blend(&self, shares: &[f32], over: &CudaTensor, under: &CudaTensor) -> Result<CudaTensor> {
        let half = |t: &CudaTensor| t.element() == Element::F16;
        let rows = over.shape().first().copied().unwrap_or(0);
        if over.shape() != under.shape() || shares.len() != rows || !(half(over) && half(under)) {
            return Err(unlike(over.shape(), under.shape(), shares.len()));
        }
        let out = self.empty(over.shape(), Element::F16)?;
        let len = length(&out)? / rows.max(1) as u32;
        let at = |tensor: &CudaTensor, row: usize| {
            tensor.pointer() + row as u64 * u64::from(len) * Element::F16.size() as u64
        };
        let row = |(row, share): (usize, &f32)| BlendRow {
            a: at(over, row),
            b: at(under, row),
            out: at(&out, row),
            share: *share,
            len,
        };
        let rows: Vec<_> = shares.iter().enumerate().map(row).collect();
        let list = self.list();
        let mut list = list.lock();
        list.launch(Kernel::Blend, &rows, len);
        for tensor in [over, under, &out] {
            list.keep(tensor);
        }
        Ok(out)
    }

    fn timed<R>(&self, section: usize, work: impl FnOnce() -> R) -> (R, Option<Duration>) {
        let took = self.list().lock().begin(section);
        let result = work();
        self.list().lock().end(section);
        (result, took)
    }
}
