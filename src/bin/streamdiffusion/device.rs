//! Where a measurement is to be made: `--device`.

use gst::prelude::*;

use crate::failure::Failure;
use crate::settings::Setting;

/// What `stats` says of a model that no GPU runs.
const PROCESSOR: &str = "CPU";

/// What is to run the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The host's processor.
    Cpu,
    /// A GPU of NVIDIA's: the one with this number, or the element's own choice.
    Cuda(Option<u32>),
}

impl Device {
    /// Of `cpu`, `cuda` or `cuda:N`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").map(str::parse);
        match (text, number) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(None)),
            (_, Some(Ok(number))) if number <= i32::MAX as u32 => Ok(Self::Cuda(Some(number))),
            _ => Err("expected cpu, cuda, or cuda:N with the number of a GPU".into()),
        }
    }

    /// The properties that ask for it.
    pub fn settings(self) -> Vec<Setting> {
        match self {
            Self::Cpu => vec![Setting::new("backend", "onnxruntime-cpu")],
            // Whatever is fastest there.
            Self::Cuda(number) => {
                let number = number.map(|number| Setting::new("device-id", number));
                let auto = Setting::new("backend", "auto");
                [auto].into_iter().chain(number).collect()
            }
        }
    }

    /// An error that says why if `element`, which has been started, does not run there.
    pub fn check(self, element: &gst::Element) -> Result<(), Failure> {
        let stats = element.property::<gst::Structure>("stats");
        let text = |name: &str| stats.get::<String>(name).unwrap_or_default();
        match self {
            Self::Cuda(_) if text("device") == PROCESSOR => Err(Failure::new(format!(
                "--device cuda: {}",
                text("backend-reason")
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!(Device::parse("cpu"), Ok(Device::Cpu));
        assert_eq!(Device::parse("cuda"), Ok(Device::Cuda(None)));
        assert_eq!(Device::parse("cuda:3"), Ok(Device::Cuda(Some(3))));
        for wrong in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:x",
            "cuda:4294967295",
            "cpu:0",
        ] {
            let said = Device::parse(wrong).unwrap_err();
            assert!(said.contains("cuda:N"), "{said}");
        }
    }
}
