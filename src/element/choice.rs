//! Which backend runs the model, and why.

#[cfg(any(feature = "cuda", test))]
use std::path::Path;

use super::Backend;
use crate::error::{Error, Result};

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the CPU, by ONNX Runtime.
    Cpu,
    /// On the GPU with this number, by ONNX Runtime.
    Cuda(usize),
    /// On the GPU with this number, by TensorRT.
    TensorRt(usize),
}

#[cfg(any(feature = "cuda", test))]
impl Place {
    /// What `backend` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "onnxruntime-cpu",
            Self::Cuda(_) => "onnxruntime-cuda",
            Self::TensorRt(_) => "tensorrt",
        }
    }
}

/// What was chosen.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where the model runs.
    pub place: Place,
    /// Why, for people.
    pub reason: String,
}

/// What a machine has. Asked only as far as it matters, as some of it takes time.
pub trait Machine {
    /// How many GPUs there are.
    fn gpus(&self) -> Result<usize>;

    /// The number of the GPU that the element's neighbours use, if they use one.
    fn neighbours(&self) -> Option<usize>;

    /// Whether TensorRT is there.
    fn tensorrt(&self) -> Result<()>;

    /// Whether TensorRT serves the GPU with this number, and has engines of the model for what is asked of it, or may build
    /// them.
    fn engines(&self, gpu: usize) -> Result<()>;

    /// Whether ONNX Runtime is there and can use GPUs.
    fn runtime(&self) -> Result<()>;
}

/// What `backend` and the GPU asked for, if one is, come to on `machine`.
///
/// # Errors
/// When what is asked for by name is not there: what is missing and how to get it. `auto` takes TensorRT, then ONNX Runtime
/// on the GPU, then the CPU; but a GPU number that does not exist, and a library of TensorRT that was named and will not do,
/// are always errors where there are GPUs.
pub fn choose(backend: Backend, device: Option<usize>, machine: &impl Machine) -> Result<Choice> {
    let cpu = |reason: String| Choice {
        place: Place::Cpu,
        reason,
    };
    if backend == Backend::OnnxRuntimeCpu {
        return Ok(cpu("asked for".into()));
    }
    let auto = backend == Backend::Auto;
    let name = match backend {
        Backend::TensorRt => "tensorrt",
        _ => "onnxruntime-cuda",
    };
    let refused = |why: &str| Error::setting("backend", format!("{name} cannot be had: {why}"));
    if backend == Backend::TensorRt {
        // What no GPU would change comes first.
        machine.tensorrt().map_err(|error| match error {
            Error::Setting { .. } => error,
            other => refused(&other.to_string()),
        })?;
    }
    let count = match (machine.gpus(), auto) {
        (Ok(count), _) if count > 0 => count,
        (found, true) => return Ok(cpu(format!("no GPU: {}", why(found)))),
        (found, false) => {
            return Err(refused(&format!(
                "{}. It needs an NVIDIA GPU with its driver; without one, use auto or onnxruntime-cpu",
                why(found)
            )));
        }
    };
    if let Some(device) = device.filter(|device| *device >= count) {
        let have = match count {
            1 => "there is one, number 0".into(),
            _ => format!("there are {count}, numbers 0 to {}", count - 1),
        };
        return Err(Error::setting(
            "device-id",
            format!("there is no GPU {device}; {have}"),
        ));
    }
    let neighbours = || machine.neighbours().filter(|device| *device < count);
    let which = || match device {
        Some(device) => (device, "by device-id"),
        None => match neighbours() {
            Some(device) => (device, "as the neighbours"),
            None => (0, "the first"),
        },
    };
    let chosen = |why: &str, place: fn(usize) -> Place, (device, which): (usize, &str)| Choice {
        place: place(device),
        reason: format!("{why}; GPU {device}, {which}"),
    };
    if backend == Backend::OnnxRuntimeCuda {
        machine.runtime().map_err(|e| refused(&e.to_string()))?;
        return Ok(chosen("asked for", Place::Cuda, which()));
    }
    let which = which();
    let tensorrt = match backend {
        Backend::TensorRt => Ok(()),
        _ => match machine.tensorrt() {
            // A library that was named and will not do is no reason to take something else unasked.
            Err(error @ Error::Setting { .. }) => return Err(error),
            found => found,
        },
    };
    let not_tensorrt = match tensorrt.and_then(|()| machine.engines(which.0)) {
        Ok(()) => {
            let why = match auto {
                true => "TensorRT, a GPU that it serves and engines of this model are there",
                false => "asked for",
            };
            return Ok(chosen(why, Place::TensorRt, which));
        }
        // It says by itself which property is at fault.
        Err(error @ Error::Setting { .. }) if !auto => return Err(error),
        Err(error) if !auto => return Err(refused(&error.to_string())),
        Err(error) => error,
    };
    match machine.runtime() {
        Ok(()) => {
            let why = format!(
                "a GPU and an ONNX Runtime for it are there (not TensorRT: {not_tensorrt})"
            );
            Ok(chosen(&why, Place::Cuda, which))
        }
        Err(error) => Ok(cpu(format!(
            "there is a GPU, but not what runs models on it: {error}; nor TensorRT: {not_tensorrt}"
        ))),
    }
}

/// Where `auto` goes on when the model could not be loaded at `place`: to what comes next in its order and is there, which
/// `runtime` tells of ONNX Runtime on GPUs. `None` where nothing comes after it, and where `error` is of the model in the
/// folder `model` itself, which is no better anywhere else.
#[cfg(any(feature = "cuda", test))]
pub fn after(
    place: Place,
    error: &Error,
    model: &Path,
    runtime: impl FnOnce() -> Result<()>,
) -> Option<Choice> {
    if is_of_model(error, model) {
        return None;
    }
    let failed = format!("{} could not load the model: {error}", place.name());
    let chosen = |place, reason| Some(Choice { place, reason });
    match place {
        Place::Cpu => None,
        Place::Cuda(_) => chosen(Place::Cpu, failed),
        Place::TensorRt(gpu) => match runtime() {
            Ok(()) => chosen(Place::Cuda(gpu), failed),
            Err(missing) => {
                let reason = format!("{failed}; nor is there onnxruntime-cuda: {missing}");
                chosen(Place::Cpu, reason)
            }
        },
    }
}

/// Whether `error` is of a file of the model in the folder `model`.
#[cfg(any(feature = "cuda", test))]
fn is_of_model(error: &Error, model: &Path) -> bool {
    let (Error::NotFound { path, .. } | Error::Invalid { path, .. }) = error else {
        return false;
    };
    let canonical = model.canonicalize();
    path.starts_with(model) || canonical.is_ok_and(|model| path.starts_with(model))
}

fn why(found: Result<usize>) -> String {
    match found {
        Ok(_) => "none was found".into(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Made {
        gpus: Result<usize>,
        neighbours: Option<usize>,
        tensorrt: Result<()>,
        /// Of each GPU.
        engines: Vec<Result<()>>,
        runtime: Result<()>,
    }

    impl Machine for Made {
        fn gpus(&self) -> Result<usize> {
            self.gpus.clone()
        }

        fn neighbours(&self) -> Option<usize> {
            self.neighbours
        }

        fn tensorrt(&self) -> Result<()> {
            self.tensorrt.clone()
        }

        fn engines(&self, gpu: usize) -> Result<()> {
            self.engines[gpu].clone()
        }

        fn runtime(&self) -> Result<()> {
            self.runtime.clone()
        }
    }

    fn machine(gpus: usize) -> Made {
        Made {
            gpus: Ok(gpus),
            neighbours: None,
            tensorrt: Err(Error::Library("no TensorRT here".into())),
            engines: vec![Ok(()); gpus],
            runtime: Ok(()),
        }
    }

    fn bare() -> Made {
        Made {
            gpus: Err(Error::Library("no libcuda here".into())),
            ..machine(0)
        }
    }

    fn without_runtime() -> Made {
        Made {
            runtime: Err(Error::Library("no provider here".into())),
            ..machine(1)
        }
    }

    /// With TensorRT, whose engines are there for these of its GPUs.
    fn with_engines(engines: &[bool]) -> Made {
        let lack = || Error::setting("steps", "no engine for so many; \"the command\" builds it");
        let of = |there: &bool| there.then_some(()).ok_or_else(lack);
        Made {
            tensorrt: Ok(()),
            engines: engines.iter().map(of).collect(),
            ..machine(engines.len())
        }
    }

    #[track_caller]
    fn place(backend: Backend, device: Option<usize>, machine: &Made) -> Place {
        choose(backend, device, machine).unwrap().place
    }

    #[track_caller]
    fn refused(backend: Backend, device: Option<usize>, machine: &Made, parts: &[&str]) {
        let message = choose(backend, device, machine).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn auto_takes_a_gpu_if_all_is_there() {
        let auto = |device, machine: &Made| place(Backend::Auto, device, machine);
        assert_eq!(auto(None, &machine(2)), Place::Cuda(0));
        assert_eq!(auto(Some(1), &machine(2)), Place::Cuda(1));
        let beside = Made {
            neighbours: Some(1),
            ..machine(2)
        };
        assert_eq!(auto(None, &beside), Place::Cuda(1));
        assert_eq!(auto(Some(0), &beside), Place::Cuda(0));
        for machine in [bare(), machine(0), without_runtime()] {
            assert_eq!(auto(None, &machine), Place::Cpu);
        }
    }

    #[test]
    fn the_reason_is_told() {
        let reason = |machine: &Made| choose(Backend::Auto, None, machine).unwrap().reason;
        assert!(reason(&bare()).contains("no libcuda here"));
        assert!(reason(&machine(0)).contains("none was found"));
        assert!(reason(&without_runtime()).contains("no provider here"));
        assert!(reason(&machine(1)).contains("GPU 0"));
    }

    #[test]
    fn what_is_asked_for_and_missing_is_an_error() {
        let cuda = Backend::OnnxRuntimeCuda;
        refused(
            cuda,
            None,
            &bare(),
            &["property backend", "no libcuda here", "driver", "auto"],
        );
        refused(cuda, None, &without_runtime(), &["no provider here"]);
        for backend in [cuda, Backend::Auto] {
            let parts = ["property device-id", "no GPU 2", "there are 2"];
            refused(backend, Some(2), &machine(2), &parts);
            refused(backend, Some(1), &machine(1), &["there is one, number 0"]);
        }
        assert_eq!(place(cuda, None, &machine(1)), Place::Cuda(0));
    }

    #[test]
    fn the_cpu_needs_nothing() {
        let cpu = Backend::OnnxRuntimeCpu;
        assert_eq!(place(cpu, Some(7), &bare()), Place::Cpu);
        assert_eq!(place(cpu, None, &machine(1)), Place::Cpu);
    }

    #[test]
    fn auto_takes_tensorrt_first_where_its_engines_are() {
        let auto = |device, machine: &Made| place(Backend::Auto, device, machine);
        assert_eq!(auto(None, &with_engines(&[true])), Place::TensorRt(0));
        let second = with_engines(&[false, true]);
        assert_eq!(auto(None, &second), Place::Cuda(0));
        assert_eq!(auto(Some(1), &second), Place::TensorRt(1));
        let beside = Made {
            neighbours: Some(1),
            ..with_engines(&[false, true])
        };
        assert_eq!(auto(None, &beside), Place::TensorRt(1));
        let alone = Made {
            runtime: Err(Error::Library("no provider here".into())),
            ..with_engines(&[true])
        };
        assert_eq!(auto(None, &alone), Place::TensorRt(0));
        let neither = Made {
            runtime: Err(Error::Library("no provider here".into())),
            ..with_engines(&[false])
        };
        assert_eq!(auto(None, &neither), Place::Cpu);
        let reason = |machine: &Made| choose(Backend::Auto, None, machine).unwrap().reason;
        assert!(reason(&with_engines(&[true])).starts_with("TensorRT, "));
        assert!(
            reason(&with_engines(&[false])).contains("not TensorRT: property steps: no engine")
        );
        assert!(reason(&machine(1)).contains("not TensorRT: no TensorRT here"));
        for part in ["no provider here", "no engine for so many"] {
            assert!(reason(&neither).contains(part), "{}", reason(&neither));
        }
    }

    #[test]
    fn a_library_that_was_named_and_will_not_do_is_an_error() {
        let lack = || Error::setting("tensorrt-library", "/x cannot be used: it is not TensorRT");
        let named = Made {
            tensorrt: Err(lack()),
            ..machine(1)
        };
        for backend in [Backend::TensorRt, Backend::Auto] {
            let message = choose(backend, None, &named).unwrap_err().to_string();
            assert_eq!(message, lack().to_string());
        }
        // Who asks for something else does not need it.
        assert_eq!(
            place(Backend::OnnxRuntimeCuda, None, &named),
            Place::Cuda(0)
        );
        assert_eq!(place(Backend::OnnxRuntimeCpu, None, &named), Place::Cpu);
    }

    #[test]
    fn auto_goes_on_to_the_next_backend_when_a_model_cannot_be_loaded() {
        let memory = Error::engine("unet", "out of memory");
        let model = Path::new("/models/m");
        let next = |place, there: bool| {
            let lack = || Error::Library("no provider here".into());
            after(place, &memory, model, || {
                there.then_some(()).ok_or_else(lack)
            })
        };
        let second = next(Place::TensorRt(1), true).unwrap();
        assert_eq!(second.place, Place::Cuda(1));
        assert_eq!(
            second.reason,
            "tensorrt could not load the model: unet: out of memory"
        );
        let without = next(Place::TensorRt(1), false).unwrap();
        assert_eq!(without.place, Place::Cpu);
        for part in ["tensorrt could not", "out of memory", "no provider here"] {
            assert!(without.reason.contains(part), "{}", without.reason);
        }
        let third = next(Place::Cuda(1), true).unwrap();
        assert_eq!(third.place, Place::Cpu);
        assert!(third.reason.starts_with("onnxruntime-cuda could not load"));
        assert_eq!(next(Place::Cpu, true), None);
    }

    #[test]
    fn a_broken_model_is_not_tried_elsewhere() {
        let model = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/models/../models/demo"
        ));
        let tried = |error: &Error| after(Place::Cuda(0), error, model, || Ok(())).is_some();
        let inside = model.join("unet/model.onnx");
        let canonical = model.canonicalize().unwrap().join("unet/model.onnx");
        for path in [&inside, &canonical] {
            assert!(!tried(&Error::not_found(path, "is missing")));
            assert!(!tried(&Error::invalid(path, "is no graph")));
        }
        // An engine that must not be used is the cache's.
        let engine = Path::new("/home/me/.cache/engines/unet.engine");
        assert!(tried(&Error::invalid(
            engine,
            "is not the engine that was built"
        )));
        assert!(tried(&Error::engine("CUDA", "out of memory")));
        assert!(tried(&Error::Library("no cuDNN".into())));
    }

    #[test]
    fn tensorrt_that_is_asked_for_and_missing_is_an_error() {
        let tensorrt = Backend::TensorRt;
        let parts = [
            "property backend",
            "tensorrt cannot be had",
            "no TensorRT here",
        ];
        // With or without a GPU: a GPU would not help.
        refused(tensorrt, None, &machine(1), &parts);
        refused(tensorrt, None, &bare(), &parts);
        let without_gpu = Made {
            tensorrt: Ok(()),
            ..bare()
        };
        let parts = [
            "tensorrt cannot be had",
            "no libcuda here",
            "driver",
            "auto",
        ];
        refused(tensorrt, None, &without_gpu, &parts);
        let parts = ["property steps", "\"the command\" builds it"];
        refused(tensorrt, None, &with_engines(&[false]), &parts);
        let unserved = Made {
            engines: vec![Err(Error::Library("does not serve 9.0".into()))],
            ..with_engines(&[true])
        };
        let parts = [
            "property backend",
            "tensorrt cannot be had: does not serve 9.0",
        ];
        refused(tensorrt, None, &unserved, &parts);
        let parts = ["property device-id", "no GPU 3"];
        refused(tensorrt, Some(3), &with_engines(&[true]), &parts);
        // It needs no ONNX Runtime that can use GPUs.
        let alone = Made {
            runtime: Err(Error::Library("no provider here".into())),
            ..with_engines(&[true])
        };
        assert_eq!(place(tensorrt, None, &alone), Place::TensorRt(0));
        let reason = choose(tensorrt, None, &alone).unwrap().reason;
        assert_eq!(reason, "asked for; GPU 0, the first");
    }
}
