//! What an engine depends on.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Changes when engines of the same key could differ for a reason that no other field tells. 2: they never allocate while
/// they run.
const REVISION: u32 = 2;

/// All that an engine depends on. Engines of equal keys can stand for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Component of the model: `unet` and so on.
    pub component: String,
    /// How much of its graph: `whole`, or `live`, which leaves out what does not depend on the frame.
    pub part: String,
    /// SHA-256 over the component's files, as hexadecimal digits.
    pub source: String,
    /// Its inputs, each with type and smallest, best and largest shape.
    pub inputs: Vec<String>,
    /// Its output.
    pub output: String,
    /// What it was built by, with version.
    pub builder: String,
    /// The compute capabilities it was built for; `any` for all that its builder supports.
    pub compute_capability: String,
    /// The version of this list.
    #[serde(default)]
    pub revision: u32,
}

impl Key {
    /// A key without anything but the revision set.
    pub fn new(component: &str, part: &str) -> Self {
        Self {
            component: component.into(),
            part: part.into(),
            source: String::new(),
            inputs: Vec::new(),
            output: String::new(),
            builder: String::new(),
            compute_capability: "any".into(),
            revision: REVISION,
        }
    }

    /// The fields, each with its name and value.
    fn fields(&self) -> [(&'static str, String); 8] {
        [
            ("component", self.component.clone()),
            ("part", self.part.clone()),
            ("source", self.source.clone()),
            ("inputs", self.inputs.join(", ")),
            ("output", self.output.clone()),
            ("builder", self.builder.clone()),
            ("compute capability", self.compute_capability.clone()),
            ("revision", self.revision.to_string()),
        ]
    }

    /// SHA-256 over all of it, as hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let mut put = |text: &str| {
            // With its length before it, no text can run into the next.
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        for (name, value) in self.fields() {
            put(name);
            put(&value);
        }
        hexadecimal(&hash.finalize())
    }

    /// The name of its files, without extension.
    pub(super) fn stem(&self) -> String {
        let part = match self.part.as_str() {
            "whole" => String::new(),
            part => format!("-{part}"),
        };
        format!("{}{part}-{}", self.component, &self.hash()[..16])
    }

    /// In what `wanted` differs from this one, for people.
    pub(super) fn differences(&self, wanted: &Self) -> Vec<String> {
        let pairs = self.fields().into_iter().zip(wanted.fields());
        pairs
            .filter(|((_, have), (_, want))| have != want)
            .map(|((name, have), (_, want))| match name {
                // Nobody compares hashes by eye.
                "source" => "source: the component's files have changed since".to_owned(),
                "inputs" => format!("inputs: {}", self.other_inputs(wanted)),
                _ => format!("{name}: {have}, now {want}"),
            })
            .collect()
    }

    /// In which inputs `wanted` differs: the first of them, and how many more, as a U-Net has dozens that change together.
    fn other_inputs(&self, wanted: &Self) -> String {
        if self.inputs.len() != wanted.inputs.len() {
            let (have, want) = (self.inputs.len(), wanted.inputs.len());
            return format!("{have}, now {want}");
        }
        let pairs = self.inputs.iter().zip(&wanted.inputs);
        let mut others = pairs.filter(|(have, want)| have != want);
        let first = others.next();
        let first = first.map(|(have, want)| format!("{have}, now {want}"));
        let more = match others.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        first.unwrap_or_default() + &more
    }

    /// Whether an engine with these [`differences`](Self::differences) is worth naming for this one: it is of the same
    /// component and, but for one thing more at most, of the same files.
    pub(super) fn is_of_its_kind(&self, differences: &[String]) -> bool {
        let other_component = differences.iter().any(|d| d.starts_with("component: "));
        let other_files = differences.iter().any(|d| d.starts_with("source: "));
        !other_component && (!other_files || differences.len() == 1)
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            source: "ab".into(),
            inputs: vec!["x float16 1x4x64x64".into(), "y".into()],
            output: "out".into(),
            builder: "rtx 1.7.1.116".into(),
            ..Key::new("unet", "live")
        }
    }

    #[test]
    fn every_field_makes_another_key() {
        let first = key();
        let mut others = vec![first.clone(); 8];
        others[0].component = "vae_encoder".into();
        others[1].part = "whole".into();
        others[2].source = "ac".into();
        others[3].inputs[1] = "z".into();
        others[4].output = "o".into();
        others[5].builder = "rtx 1.7.1.117".into();
        others[6].compute_capability = "8.6".into();
        others[7].revision += 1;
        let mut hashes: Vec<_> = others.iter().chain([&first]).map(Key::hash).collect();
        for other in &others {
            assert_eq!(first.differences(other).len(), 1, "{other:?}");
        }
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), 9);
        assert_eq!(first.hash(), key().hash());
        assert!(first.differences(&key()).is_empty());
    }

    #[test]
    fn texts_cannot_run_into_each_other() {
        let (mut a, mut b) = (key(), key());
        (a.output, a.builder) = ("ab".into(), "c".into());
        (b.output, b.builder) = ("a".into(), "bc".into());
        assert_ne!(a.hash(), b.hash());
    }

    #[test]
    fn differences_are_told_in_words() {
        let have = key();
        let mut want = key();
        want.builder = "rtx 1.8.0.1".into();
        let told = have.differences(&want);
        assert_eq!(told, ["builder: rtx 1.7.1.116, now rtx 1.8.0.1"]);
        assert!(want.is_of_its_kind(&told));
        let mut sizes = have.clone();
        sizes.inputs = vec!["x float16 2x4x64x64".into(), "z".into()];
        let told = have.differences(&sizes);
        let expected = "inputs: x float16 1x4x64x64, now x float16 2x4x64x64 (and 1 more)";
        assert_eq!(told, [expected]);
        want.source = "cd".into();
        assert!(!want.is_of_its_kind(&have.differences(&want)));
        want.builder = have.builder.clone();
        assert!(want.is_of_its_kind(&have.differences(&want)));
    }
}
