//! Which backend runs the model, and why.

use super::Backend;
use crate::error::{Error, Result};

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the CPU, by ONNX Runtime.
    Cpu,
    /// On the GPU with this number, by ONNX Runtime.
    Cuda(usize),
}

/// What was chosen.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// Where the model runs.
    pub place: Place,
    /// Why, for people.
    pub reason: String,
}

/// What a machine has. Asked in this order, and only as far as it matters.
pub trait Machine {
    /// How many GPUs there are.
    fn gpus(&self) -> Result<usize>;

    /// The number of the GPU that the element's neighbours use, if they use one.
    fn neighbours(&self) -> Option<usize>;

    /// Whether ONNX Runtime is there and can use GPUs.
    fn runtime(&self) -> Result<()>;
}

/// What `backend` and the GPU asked for, if one is, come to on `machine`.
///
/// # Errors
/// When what is asked for by name is not there: what is missing and how to get it. `auto` takes the CPU then, but a GPU
/// number that does not exist is always an error where there are GPUs.
pub fn choose(backend: Backend, device: Option<usize>, machine: &impl Machine) -> Result<Choice> {
    let cpu = |reason: String| Choice {
        place: Place::Cpu,
        reason,
    };
    if backend == Backend::OnnxRuntimeCpu {
        return Ok(cpu("asked for".into()));
    }
    let auto = backend == Backend::Auto;
    let count = match (machine.gpus(), auto) {
        (Ok(count), _) if count > 0 => count,
        (found, true) => return Ok(cpu(format!("no GPU: {}", why(found)))),
        (found, false) => {
            return Err(Error::setting(
                "backend",
                format!(
                    "onnxruntime-cuda cannot be had: {}. It needs an NVIDIA GPU with its driver; without one, use auto or onnxruntime-cpu",
                    why(found)
                ),
            ));
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
    match (machine.runtime(), auto) {
        (Ok(()), _) => {}
        (Err(error), true) => {
            return Ok(cpu(format!(
                "there is a GPU, but not what runs models on it: {error}"
            )));
        }
        (Err(error), false) => {
            return Err(Error::setting(
                "backend",
                format!("onnxruntime-cuda cannot be had: {error}"),
            ));
        }
    }
    let neighbours = || machine.neighbours().filter(|device| *device < count);
    let (device, which) = match device {
        Some(device) => (device, "by device-id"),
        None => match neighbours() {
            Some(device) => (device, "as the neighbours"),
            None => (0, "the first"),
        },
    };
    let asked = match auto {
        true => "a GPU and an ONNX Runtime for it are there",
        false => "asked for",
    };
    Ok(Choice {
        place: Place::Cuda(device),
        reason: format!("{asked}; GPU {device}, {which}"),
    })
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
        runtime: Result<()>,
    }

    impl Machine for Made {
        fn gpus(&self) -> Result<usize> {
            self.gpus.clone()
        }

        fn neighbours(&self) -> Option<usize> {
            self.neighbours
        }

        fn runtime(&self) -> Result<()> {
            self.runtime.clone()
        }
    }

    fn machine(gpus: usize) -> Made {
        Made {
            gpus: Ok(gpus),
            neighbours: None,
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
}
