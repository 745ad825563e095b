//! Engines that run on a GPU.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::result;
use parking_lot::Mutex;
use trtx::trtx_sys::Dims64;
use trtx::{DataType, ExecutionContextAllocationStrategy, TensorIOMode};

use super::{library, log};
use crate::device::cuda::{Cuda, CudaTensor, Element, Work};
use crate::engine::cache::Cached;
#[cfg(not(feature = "tensorrt-enterprise"))]
use crate::engine::cache::Companion;
use crate::engine::cuda::{self, Program};
use crate::error::{Error, Result};
use crate::model::Component;

/// Runs before one may be captured in a graph: kernels for its shapes are compiled in the first.
const WARM_UP: u64 = 2;

/// An input or output of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Type of its values.
    pub element: Element,
    /// Its dimensions, outermost first; `None` where they vary.
    pub dims: Vec<Option<usize>>,
}

impl Tensor {
    fn takes(&self, shape: &[usize]) -> bool {
        let fits = |(want, have): (&Option<usize>, &usize)| want.is_none_or(|w| w == *have);
        self.dims.len() == shape.len() && self.dims.iter().zip(shape).all(fits)
    }
}

/// An engine on a GPU, ready to be bound to tensors.
///
/// TensorRT for RTX compiles kernels for the GPU and the shapes at hand when they are first run. Those are kept in a file
/// beside the engine, for the next start.
pub struct Executable {
    component: Component,
    name: String,
    cuda: Cuda,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Which output counts.
    output: usize,
    inner: Mutex<Inner>,
}

/// What TensorRT gave. Fields are dropped in this order, each before what it belongs to.
struct Inner {
    /// Memory for what is between the layers. All that is bound shares it, since it runs one after the other.
    scratch: Option<CudaTensor>,
    config: Rc<trtx::RuntimeConfig<'static>>,
    kernels: Kernels,
    engine: trtx::CudaEngine<'static>,
    _runtime: trtx::Runtime<'static>,
}

// SAFETY: TensorRT ties none of these to a thread. The Rc is what the bindings ask for; its clones are in contexts, which
// are made and dropped under the lock that all of this is behind.
unsafe impl Send for Inner {}

/// An engine at fixed addresses, for one set of shapes.
pub struct Bound {
    context: Mutex<Option<Context>>,
    inputs: Vec<CudaTensor>,
    outputs: Vec<CudaTensor>,
    /// What its context was given.
    _scratch: Option<CudaTensor>,
    executable: Arc<Executable>,
    runs: AtomicU64,
}

struct Context(trtx::ExecutionContext<'static>);

// SAFETY: used by one thread at a time, behind a lock; see `Inner` for the Rc in it.
unsafe impl Send for Context {}

impl Executable {
    /// Puts an engine on a GPU.
    ///
    /// # Errors
    /// [`Error::Library`] without TensorRT, [`Error::Engine`] with TensorRT's words if the engine cannot run on this GPU.
    pub fn open(cached: &Cached, cuda: &Cuda) -> Result<Arc<Self>> {
        Self::load(cached, cuda).map(Arc::new)
    }

    /// The same, with its inputs in the order of `inputs`, and the output `output` as the one that counts.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if its inputs and outputs have other names.
    pub fn open_with(
        cached: &Cached,
        cuda: &Cuda,
        inputs: &[String],
        output: &str,
    ) -> Result<Arc<Self>> {
        let mut engine = Self::load(cached, cuda)?;
        let order = ordered(&engine.inputs, inputs);
        let found = (engine.outputs.iter()).position(|tensor| tensor.name == output);
        let (Some(order), Some(found)) = (order, found) else {
            return Err(Error::engine(
                &engine.name,
                format!(
                    "{} has other inputs and outputs than this version of the plugin gives it; build it again",
                    cached.path.display()
                ),
            ));
        };
        engine.inputs = order;
        engine.output = found;
        Ok(Arc::new(engine))
    }

    fn load(cached: &Cached, cuda: &Cuda) -> Result<Self> {
        let library = library::library()?;
        let logger = log::logger()?;
        let name = cached.record.key.component.clone();
        let component = Component::ALL.into_iter().find(|c| c.folder() == name);
        let component = component.ok_or_else(|| {
            Error::invalid(&cached.path, format!("is of an unknown component, {name}"))
        })?;
        enter(cuda)?;
        let (opened, heard) = log::listen(|| -> trtx::Result<_> {
            let mut runtime = trtx::Runtime::new(logger)?;
            let mut engine = runtime.deserialize_cuda_engine(&cached.bytes)?;
            let mut config = engine.create_runtime_config()?;
            config.set_execution_context_allocation_strategy(
                ExecutionContextAllocationStrategy::kUSER_MANAGED,
            );
            let kernels = Kernels::set_up(&mut config, cached, cuda)?;
            Ok((runtime, engine, config, kernels))
        });
        let (_runtime, engine, config, kernels) = opened.map_err(|e| {
            let heard = heard.first().map_or(e.to_string(), Clone::clone);
            Error::engine(
                &name,
                format!(
                    "{library} cannot run {} on {}: {heard}",
                    cached.path.display(),
                    cuda.name()
                ),
            )
        })?;
        let (inputs, outputs) = tensors(&engine).map_err(|what| Error::engine(&name, what))?;
        Ok(Self {
            inputs,
            outputs,
            output: 0,
            component,
            cuda: cuda.clone(),
            inner: Mutex::new(Inner {
                scratch: None,
                config: Rc::new(config),
                kernels,
                engine,
                _runtime,
            }),
            name,
        })
    }

    /// Its inputs, in the order in which they are bound.
    pub fn inputs(&self) -> &[Tensor] {
        &self.inputs
    }

    /// Its outputs, in the engine's order.
    pub fn outputs(&self) -> &[Tensor] {
        &self.outputs
    }

    /// Binds it to memory for inputs of these shapes, in the order of [`inputs`](Self::inputs).
    ///
    /// # Errors
    /// [`Error::Engine`] if the engine was not built for these shapes, or there is no memory.
    pub fn bind(self: &Arc<Self>, shapes: &[Vec<usize>]) -> Result<Arc<Bound>> {
        let failed = |what: String| Error::engine(&self.name, what);
        let said = |e: trtx::Error| Error::engine(&self.name, format!("TensorRT: {e}"));
        if shapes.len() != self.inputs.len() {
            return Err(failed(format!(
                "has {} inputs, expected {}",
                self.inputs.len(),
                shapes.len()
            )));
        }
        enter(&self.cuda)?;
        let mut inner = self.inner.lock();
        let config = inner.config.clone();
        let make = || inner.engine.create_execution_context_with_config(config);
        let (made, heard) = log::listen(make);
        let mut context = made.map_err(|e| {
            failed(format!(
                "TensorRT: {e}: {}",
                heard.first().map_or("", |s| s)
            ))
        })?;
        let mut inputs = Vec::with_capacity(shapes.len());
        for (tensor, shape) in self.inputs.iter().zip(shapes) {
            let dims: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
            let set = tensor.takes(shape).then(|| {
                let dims = Dims64::from_slice(&dims);
                log::listen(|| context.set_input_shape(&tensor.name, &dims))
            });
            match set {
                Some((Ok(()), _)) => {}
                // Its own words tell the profile.
                Some((Err(_), heard)) => {
                    return Err(failed(format!(
                        "the engine was not built for its input {:?} of shape {shape:?}: {}",
                        tensor.name,
                        heard.first().map_or("", String::as_str)
                    )));
                }
                None => {
                    return Err(failed(format!(
                        "the engine's input {:?} is {:?}, expected {shape:?}",
                        tensor.name, tensor.dims
                    )));
                }
            }
            let memory = self.cuda.empty(shape, tensor.element)?;
            // SAFETY: the memory has the shape's size, and lives as long as the context.
            unsafe {
                context.set_tensor_address(&tensor.name, memory.pointer() as usize as *mut _)
            }
            .map_err(said)?;
            inputs.push(memory);
        }
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for tensor in &self.outputs {
            let dims = context.tensor_shape(&tensor.name).map_err(said)?;
            let rank = usize::try_from(dims.nbDims).unwrap_or(0).min(dims.d.len());
            let shape: Option<Vec<usize>> = (dims.d[..rank].iter())
                .map(|size| usize::try_from(*size).ok())
                .collect();
            let shape = shape.ok_or_else(|| {
                failed(format!(
                    "the shape of its output {:?} does not follow from the inputs'",
                    tensor.name
                ))
            })?;
            let memory = self.cuda.empty(&shape, tensor.element)?;
            // SAFETY: as above.
            unsafe {
                context.set_tensor_address(&tensor.name, memory.pointer() as usize as *mut _)
            }
            .map_err(said)?;
            outputs.push(memory);
        }
        let needed = context.update_device_memory_size_for_shapes();
        let scratch = match &inner.scratch {
            Some(scratch) if scratch.bytes() >= needed => Some(scratch.clone()),
            _ if needed == 0 => None,
            // Whatever is bound to the smaller one keeps that.
            _ => Some(self.cuda.empty(&[needed.div_ceil(4)], Element::F32)?),
        };
        if let Some(scratch) = &scratch {
            // SAFETY: it has this size, and lives as long as the context.
            unsafe {
                context.set_device_memory_v2(
                    scratch.pointer() as usize as *mut _,
                    scratch.bytes() as i64,
                );
            }
            inner.scratch = Some(scratch.clone());
        }
        Ok(Arc::new(Bound {
            context: Mutex::new(Some(Context(context))),
            inputs,
            outputs,
            _scratch: scratch,
            executable: self.clone(),
            runs: AtomicU64::new(0),
        }))
    }

    /// Keeps the kernels that were compiled so far for the next start. To be called when frames have run; where it does
    /// not work, they are compiled again.
    pub fn keep_kernels(&self) {
        self.inner.lock().kernels.keep();
    }
}

impl Program for Executable {
    fn component(&self) -> Component {
        self.component
    }

    fn elements(&self) -> Result<Vec<Element>> {
        Ok(self.inputs.iter().map(|tensor| tensor.element).collect())
    }

    fn bind(
        self: Arc<Self>,
        _: &Cuda,
        inputs: &[Vec<usize>],
        outputs: &[Vec<usize>],
    ) -> Result<Arc<dyn cuda::Bound>> {
        let bound = Executable::bind(&self, inputs)?;
        match (bound.outputs().get(self.output), outputs) {
            (Some(found), [wanted]) if found.shape() == wanted => Ok(bound),
            (found, _) => Err(Program::error(
                &*self,
                format!(
                    "gives a tensor of shape {:?}, expected {outputs:?}",
                    found.map(CudaTensor::shape)
                ),
            )),
        }
    }
}

impl cuda::Bound for Bound {
    fn inputs(&self) -> &[CudaTensor] {
        &self.inputs
    }

    fn outputs(&self) -> &[CudaTensor] {
        std::slice::from_ref(&self.outputs[self.executable.output])
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        self.keep_kernels();
        // What is freed now belongs to this context.
        let _ = enter(&self.cuda);
    }
}

impl Bound {
    /// Its inputs, in the engine's order. Written by copies that are noted down before a run.
    pub fn inputs(&self) -> &[CudaTensor] {
        &self.inputs
    }

    /// What a run writes, in the engine's order. The next one writes there too.
    pub fn outputs(&self) -> &[CudaTensor] {
        &self.outputs
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = enter(&self.executable.cuda);
        // Contexts share what only one thread may touch at a time.
        let _inner = self.executable.inner.lock();
        *self.context.lock() = None;
    }
}

impl Work for Bound {
    fn enqueue(&self) -> Result<()> {
        let mut context = self.context.lock();
        let Some(Context(context)) = context.as_mut() else {
            return Err(Error::engine(&self.executable.name, "was dropped"));
        };
        self.runs.fetch_add(1, Ordering::Relaxed);
        let stream = self.executable.cuda.stream();
        // SAFETY: the stream is the device's, and all tensors are bound to memory that `self` keeps.
        let (run, heard) = log::listen(|| unsafe { context.enqueue_v3(stream) });
        run.map_err(|e| {
            let heard = heard.first().map_or(e.to_string(), Clone::clone);
            Error::engine(&self.executable.name, format!("TensorRT: {heard}"))
        })
    }

    fn capturable(&self) -> bool {
        self.runs.load(Ordering::Relaxed) >= WARM_UP
    }
}

/// The tensors `found` in the order of `names`; `None` unless these are their names.
fn ordered(found: &[Tensor], names: &[String]) -> Option<Vec<Tensor>> {
    let named = |name: &String| found.iter().find(|tensor| tensor.name == *name).cloned();
    let ordered: Option<Vec<_>> = names.iter().map(named).collect();
    ordered.filter(|_| names.len() == found.len())
}

/// Makes the device's context the thread's, in which TensorRT allocates.
fn enter(cuda: &Cuda) -> Result<()> {
    // SAFETY: the context lives as long as `cuda`.
    unsafe { result::ctx::set_current(cuda.context_handle().cast()) }
        .map_err(|e| Error::engine("CUDA", format!("could not enter its context: {e}")))
}

/// The inputs and outputs of an engine.
fn tensors(
    engine: &trtx::CudaEngine<'static>,
) -> std::result::Result<(Vec<Tensor>, Vec<Tensor>), String> {
    let said = |e: trtx::Error| e.to_string();
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for i in 0..engine.nb_io_tensors().map_err(said)? {
        let name = engine.io_tensor_name(i).map_err(said)?;
        let element = match engine.tensor_data_type(&name).map_err(said)? {
            DataType::kFLOAT => Element::F32,
            DataType::kHALF => Element::F16,
            DataType::kINT32 => Element::I32,
            DataType::kINT64 => Element::I64,
            other => {
                return Err(format!(
                    "its tensor {name:?} is of type {other:?}; expected f16, f32, i32 or i64"
                ));
            }
        };
        if engine.is_shape_inference_io(&name).map_err(said)? {
            return Err(format!(
                "its tensor {name:?} holds sizes of others, which would be read in main memory"
            ));
        }
        let shape = engine.tensor_shape(&name).map_err(said)?;
        let dims = shape
            .iter()
            .map(|size| usize::try_from(*size).ok())
            .collect();
        let to = match engine.tensor_io_mode(&name).map_err(said)? {
            TensorIOMode::kINPUT => &mut inputs,
            _ => &mut outputs,
        };
        to.push(Tensor {
            name,
            element,
            dims,
        });
    }
    Ok((inputs, outputs))
}

/// Kernels that TensorRT for RTX compiled for this GPU, and the file that they are kept in.
#[cfg(not(feature = "tensorrt-enterprise"))]
struct Kernels {
    cache: Arc<trtx::RuntimeCache>,
    file: Companion,
    /// Bytes that are kept already.
    kept: usize,
}

#[cfg(not(feature = "tensorrt-enterprise"))]
impl Kernels {
    fn set_up(
        config: &mut trtx::RuntimeConfig<'static>,
        cached: &Cached,
        cuda: &Cuda,
    ) -> trtx::Result<Self> {
        // A frame is captured in a graph of the device's own. Kernels are compiled when shapes are first run, not beside
        // it: what is captured is then what stays.
        config.set_cuda_graph_strategy(trtx::CudaGraphStrategy::kDISABLED)?;
        config.set_dynamic_shapes_kernel_specialization_strategy(
            trtx::DynamicShapesKernelSpecializationStrategy::kEAGER,
        );
        let cache = Arc::new(config.create_runtime_cache()?);
        let file = Companion::new(&cached.path, cuda.name());
        let mut kept = 0;
        if let Some(bytes) = file.read() {
            // TensorRT refuses those of another version or GPU; then they are compiled anew.
            match cache.deserialize(&bytes) {
                Ok(()) => kept = bytes.len(),
                Err(_) => cache.reset()?,
            }
        }
        config.set_runtime_cache(cache.clone())?;
        Ok(Self { cache, file, kept })
    }

    fn keep(&mut self) {
        let Ok(bytes) = self.cache.serialize() else {
            return;
        };
        // Kernels are only ever added.
        if bytes.len() > self.kept && self.file.write(&bytes).is_ok() {
            self.kept = bytes.len();
        }
    }
}

/// The TensorRT of data centres compiles kernels when an engine is built.
#[cfg(feature = "tensorrt-enterprise")]
struct Kernels;

#[cfg(feature = "tensorrt-enterprise")]
impl Kernels {
    fn set_up(_: &mut trtx::RuntimeConfig<'static>, _: &Cached, _: &Cuda) -> trtx::Result<Self> {
        Ok(Self)
    }

    fn keep(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str) -> Tensor {
        Tensor {
            name: name.into(),
            element: Element::F16,
            dims: vec![None, Some(4)],
        }
    }

    #[test]
    fn inputs_are_put_in_the_order_in_which_they_are_given() {
        let found = [tensor("a"), tensor("b"), tensor("c")];
        let names = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let order = ordered(&found, &names(&["c", "a", "b"])).unwrap();
        assert_eq!(order, [tensor("c"), tensor("a"), tensor("b")]);
        for other in [&["c", "a"][..], &["c", "a", "d"], &["a", "b", "c", "d"]] {
            assert_eq!(ordered(&found, &names(other)), None, "{other:?}");
        }
    }

    #[test]
    fn shapes_must_agree_where_they_are_fixed() {
        assert!(tensor("x").takes(&[7, 4]));
        assert!(!tensor("x").takes(&[7, 5]));
        assert!(!tensor("x").takes(&[7, 4, 1]));
    }
}
