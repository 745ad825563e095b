//! CUDA contexts as GStreamer's elements pass them around.
//!
//! Ours is the GPU's primary context, in which engines work too, wrapped. Neighbours that take it over share memory with
//! us; what comes from another context is copied once.

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::sync::{LazyLock, Mutex, PoisonError};

use gst::glib;
use gst::glib::translate::{FromGlibPtrFull, ToGlibPtr, ToGlibPtrMut};
use gst::prelude::*;

use super::library::Functions;
use crate::error::{Error, Result};

/// The type of CUDA contexts among GStreamer's contexts.
pub const TYPE: &str = "gst.cuda.context";
const TYPE_NAME: &CStr = c"gst.cuda.context";

/// A `GstCudaContext`.
#[derive(Clone, PartialEq, Eq)]
pub struct Context(gst::Object);

impl Context {
    /// The primary context `handle` (a `CUcontext`) of the GPU with this number, which is alive as long as what `keep`
    /// gives. It is the same object for everyone in the process: contexts of one GPU enable access to each other, which
    /// one cannot have to itself.
    pub fn primary<K: Send + 'static>(
        functions: &Functions,
        number: usize,
        handle: *mut c_void,
        keep: impl FnOnce() -> K,
    ) -> Result<Self> {
        static WRAPPED: LazyLock<Mutex<HashMap<usize, glib::WeakRef<gst::Object>>>> =
            LazyLock::new(Mutex::default);
        let mut wrapped = WRAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = wrapped.get(&number).and_then(glib::WeakRef::upgrade) {
            return Ok(Self(context));
        }
        let failed = |what: &str| Error::engine("CUDA", format!("GStreamer's CUDA library {what}"));
        // SAFETY: takes nothing; finds the driver or says it cannot.
        if unsafe { (functions.gst_cuda_load_library)() } == glib::ffi::GFALSE {
            return Err(failed("does not find the driver"));
        }
        let device = c_int::try_from(number).map_err(|_| failed("has no such GPU"))?;
        // SAFETY: the driver's library is loaded, and the context is alive; it stays so, see below.
        let raw = unsafe {
            (functions.gst_cuda_memory_init_once)();
            (functions.gst_cuda_context_new_wrapped)(handle, device)
        };
        if raw.is_null() {
            return Err(failed("does not take the GPU's context"));
        }
        // SAFETY: a new object, whose reference is ours.
        let object: gst::Object = unsafe { gst::Object::from_glib_full(raw) };
        // The wrapper does not own the context, which must outlive it wherever it goes.
        // SAFETY: nobody else uses the name, and the value is never read.
        unsafe { object.set_data("streamdiffusion-primary-context", keep()) };
        wrapped.insert(number, object.downgrade());
        Ok(Self(object))
    }

    /// What `context`, which the element was given, says, if it is about CUDA.
    pub fn given(context: &gst::Context) -> Option<Self> {
        if context.context_type() != TYPE {
            return None;
        }
        let object = context.structure().get::<gst::Object>(TYPE).ok()?;
        (object.type_().name() == "GstCudaContext").then_some(Self(object))
    }

    /// The number of its GPU.
    pub fn device(&self) -> usize {
        let has = self.0.find_property("cuda-device-id").is_some();
        let number = has.then(|| self.0.property_value("cuda-device-id"));
        number
            .and_then(|value| value.get::<u32>().ok())
            .map_or(0, |number| number as usize)
    }

    /// The same for elements, on top of what they have been told already.
    ///
    /// It is not persistent, so that pipelines let go of it when they stop: they would keep the GPU's context alive, also
    /// a broken one.
    pub fn message(&self, before: Option<gst::Context>) -> gst::Context {
        let mut context = before.unwrap_or_else(|| gst::Context::new(TYPE, false));
        let structure = context.make_mut().structure_mut();
        let mut object = glib::Value::from_type(self.0.type_());
        // SAFETY: the value is of the object's own type, which elements ask for by name, and takes a reference; the
        // structure takes a copy of it.
        unsafe {
            glib::gobject_ffi::g_value_set_object(
                object.to_glib_none_mut().0,
                self.as_ptr().cast(),
            );
            gst::ffi::gst_structure_set_value(
                structure.as_mut_ptr(),
                TYPE_NAME.as_ptr(),
                object.to_glib_none().0,
            );
        }
        structure.set("cuda-device-id", self.device() as u32);
        context
    }

    /// The object, borrowed.
    pub fn as_ptr(&self) -> *mut gst::ffi::GstObject {
        self.0.to_glib_none().0
    }
}

#[cfg(test)]
pub mod tests {
    use cudarc::driver::sys;

    use super::*;
    use crate::device::cuda::Cuda;

    impl Context {
        /// To see whether it goes.
        pub fn weak(&self) -> glib::WeakRef<gst::Object> {
            self.0.downgrade()
        }
    }

    /// A context of its own on the GPU of `cuda`, as other elements make them. It is never destroyed.
    pub fn foreign(cuda: &Cuda) -> Context {
        let functions = Functions::get().unwrap();
        let number = c_int::try_from(cuda.ordinal()).unwrap();
        let (mut context, mut popped) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the driver is loaded, as `cuda` is there; the new context is taken off this thread again.
        unsafe {
            sys::cuCtxCreate_v2(&mut context, 0, number)
                .result()
                .unwrap();
            sys::cuCtxPopCurrent_v2(&mut popped).result().unwrap();
            (functions.gst_cuda_memory_init_once)();
            let raw = (functions.gst_cuda_context_new_wrapped)(context.cast(), number);
            assert!(!raw.is_null());
            Context(gst::Object::from_glib_full(raw))
        }
    }

    #[test]
    fn only_cuda_contexts_are_taken() {
        gst::init().unwrap();
        let mut context = gst::Context::new(TYPE, true);
        assert!(Context::given(&context).is_none());
        let structure = context.make_mut().structure_mut();
        structure.set(TYPE, gst::Bin::new());
        assert!(Context::given(&context).is_none());
        assert!(Context::given(&gst::Context::new("x-test", true)).is_none());
    }
}
