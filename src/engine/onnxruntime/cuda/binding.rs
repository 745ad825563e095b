//! Runs at fixed addresses. ort's own `IoBinding` copies tensors that it does not own before it binds them, so the
//! bindings are made with ONNX Runtime's C interface.

use std::ffi::{CString, c_void};
use std::ptr::NonNull;

use ort::memory::MemoryInfo;
use ort::session::{RunOptions, Session};
use ort::{AsPointer, ortsys, sys};

/// What a port is bound to.
pub struct Slot<'a> {
    /// The port's name.
    pub name: &'a str,
    /// The type of its elements, by its ONNX number.
    pub element: i32,
    /// Its dimensions, outermost first.
    pub shape: &'a [usize],
    /// Where its first element is.
    pub address: u64,
    /// Its size.
    pub bytes: usize,
}

/// The ports of a session, bound to memory that stays where it is.
pub struct Binding {
    pointer: NonNull<sys::OrtIoBinding>,
    inputs: Vec<Bound>,
    outputs: Vec<Bound>,
}

struct Bound {
    name: CString,
    value: Value,
}

/// A tensor in memory that is somebody else's.
struct Value(NonNull<sys::OrtValue>);

// SAFETY: only pointers into ONNX Runtime, which does not tie these objects to a thread.
unsafe impl Send for Binding {}

impl Binding {
    /// Binds all `inputs` and `outputs` of `session` to memory of the kind `memory`.
    ///
    /// # Safety
    /// The session and the memory must stay until this is dropped, and nothing else may be in that memory.
    pub unsafe fn new(
        session: &Session,
        memory: &MemoryInfo,
        inputs: &[Slot],
        outputs: &[Slot],
    ) -> ort::Result<Self> {
        let mut pointer = std::ptr::null_mut();
        ortsys![unsafe CreateIoBinding(session.ptr().cast_mut(), &mut pointer)?];
        let mut binding = Self {
            pointer: NonNull::new(pointer).ok_or_else(|| ort::Error::new("it gave no binding"))?,
            inputs: Vec::with_capacity(inputs.len()),
            outputs: Vec::with_capacity(outputs.len()),
        };
        for slot in inputs {
            binding.inputs.push(Bound::new(memory, slot)?);
        }
        for slot in outputs {
            binding.outputs.push(Bound::new(memory, slot)?);
        }
        binding.bind_inputs()?;
        for Bound { name, value } in &binding.outputs {
            ortsys![unsafe BindOutput(binding.pointer.as_ptr(), name.as_ptr(), value.0.as_ptr())?];
        }
        Ok(binding)
    }

    /// Binds the inputs, again if they are. An input that the graph reads in main memory is copied there now.
    pub fn bind_inputs(&self) -> ort::Result<()> {
        for Bound { name, value } in &self.inputs {
            ortsys![unsafe BindInput(self.pointer.as_ptr(), name.as_ptr(), value.0.as_ptr())?];
        }
        Ok(())
    }

    /// Runs the session that this was made for.
    pub fn run(&self, session: &mut Session, options: &RunOptions) -> ort::Result<()> {
        ortsys![unsafe RunWithBinding(session.ptr_mut(), options.ptr(), self.pointer.as_ptr())?];
        Ok(())
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        ortsys![unsafe ReleaseIoBinding(self.pointer.as_ptr())];
    }
}

impl Bound {
    fn new(memory: &MemoryInfo, slot: &Slot) -> ort::Result<Self> {
        let name = CString::new(slot.name).map_err(|e| ort::Error::new(e.to_string()))?;
        let shape: Vec<i64> = slot.shape.iter().map(|d| *d as i64).collect();
        let data = slot.address as usize as *mut c_void;
        let mut value = std::ptr::null_mut();
        ortsys![
            unsafe CreateTensorWithDataAsOrtValue(
                memory.ptr(),
                data,
                slot.bytes,
                shape.as_ptr(),
                shape.len(),
                element(slot.element),
                &mut value
            )?
        ];
        let value = NonNull::new(value).ok_or_else(|| ort::Error::new("it gave no tensor"))?;
        Ok(Self {
            name,
            value: Value(value),
        })
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        ortsys![unsafe ReleaseValue(self.0.as_ptr())];
    }
}

fn element(number: i32) -> sys::ONNXTensorElementDataType {
    use sys::ONNXTensorElementDataType as Type;
    match number {
        1 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        6 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        7 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        10 => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        _ => Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
    }
}
