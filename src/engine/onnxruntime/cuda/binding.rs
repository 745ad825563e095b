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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::onnxruntime::library;
    use crate::engine::onnxruntime::provider::Provider;
    use crate::engine::onnxruntime::session::{Session as Graph, Values};
    use crate::model::ModelFolder;

    fn slot<'a>(name: &'a str, shape: &'a [usize], data: &mut [f32]) -> Slot<'a> {
        Slot {
            name,
            element: 1,
            shape,
            address: data.as_mut_ptr() as u64,
            bytes: size_of_val(data),
        }
    }

    /// On the host, whose memory is as good as a GPU's here.
    #[test]
    fn runs_read_and_write_where_they_are_bound() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/sd2");
        let folder = ModelFolder::open(&folder).unwrap();
        library::runtime().unwrap();
        let graph = Graph::open(folder.vae_encoder(), &Provider::Cpu).unwrap();
        let [input, output] = [&graph.inputs()[0].name, &graph.outputs()[0].name];
        let scale = folder.latent_scale();
        let (wide, small) = ([2, 3, 4 * scale, 4 * scale], [2, 4, 4, 4]);
        let mut pictures = vec![0f32; wide.iter().product()];
        let mut latents = vec![f32::NAN; small.iter().product()];
        let memory = MemoryInfo::default();
        let binding = |inputs: &[Slot], outputs: &[Slot]| {
            // SAFETY: all of it outlives the bindings, and has the sizes that the slots say.
            unsafe { Binding::new(&graph.lock(), &memory, inputs, outputs) }
        };
        let bound = binding(
            &[slot(input, &wide, &mut pictures)],
            &[slot(output, &small, &mut latents)],
        )
        .unwrap();
        let mut options = RunOptions::new().unwrap();
        options.disable_device_sync().unwrap();
        for run in 0..3 {
            for (i, x) in pictures.iter_mut().enumerate() {
                *x = (0.1 * i as f32 + run as f32).sin();
            }
            let expected = graph
                .run_one(&[(&wide, Values::Floats(&pictures))])
                .unwrap();
            bound.run(&mut graph.lock(), &options).unwrap();
            // Read past the compiler, which does not know that they were written.
            let found: Vec<f32> = (latents.iter())
                .map(|x| unsafe { std::ptr::read_volatile(x) })
                .collect();
            assert_eq!(found, expected.data(), "run {run}");
        }
        latents.fill(0.0);
        // Other shapes than the graph gives, unknown names, too little memory.
        let wrong = binding(
            &[slot(input, &wide, &mut pictures)],
            &[slot(output, &[2, 4, 2, 8], &mut latents)],
        );
        assert!(wrong.unwrap().run(&mut graph.lock(), &options).is_err());
        assert!(binding(&[slot("none", &wide, &mut pictures)], &[]).is_err());
        assert!(binding(&[slot(input, &wide, &mut pictures[1..])], &[]).is_err());
    }
}
