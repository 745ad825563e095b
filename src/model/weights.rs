//! How many parameters a graph has, from the dimensions of its weights. The weights themselves are never read.

use std::collections::BTreeMap;
use std::path::Path;

use super::wire::{Field, Reader};
use crate::error::Result;

/// Protobuf's own limit on one message.
const FILE_LIMIT: u64 = 1 << 31;
/// The most values one tensor may have.
const TENSOR_LIMIT: u64 = 1 << 36;

/// The weights of a graph and of the graphs in its nodes, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights {
    /// Nodes of the graph; those of graphs in its nodes and of functions are not counted.
    pub nodes: usize,
    /// Number of stored tensors (ONNX's initializers).
    pub tensors: usize,
    /// Values by their type's ONNX number.
    values: BTreeMap<i64, u64>,
}

impl Weights {
    /// Counts the weights of the ONNX file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not protobuf, or has a tensor with impossible dimensions.
    pub fn open(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path, FILE_LIMIT)?;
        let mut weights = Self::default();
        let end = reader.size();
        // Field numbers are those of onnx.proto.
        reader.message(end, |r, field| match field.number {
            7 => weights.graph(r, field, true),
            _ => r.skip(field),
        })?;
        Ok(weights)
    }

    /// The number of parameters: values of all types that weights come in, which leaves out the integers of 32 and 64
    /// bits, the truth values and texts that graphs store for shapes and such.
    pub fn parameters(&self) -> u64 {
        let parameters = self.values.iter().filter(|(t, _)| is_weight(**t));
        parameters.fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// The types of the parameters, each with how many of them it has, the most first.
    pub fn dtypes(&self) -> Vec<(String, u64)> {
        let mut found: Vec<_> = self
            .values
            .iter()
            .filter(|(dtype, n)| is_weight(**dtype) && **n > 0)
            .map(|(dtype, n)| (name(*dtype), *n))
            .collect();
        found.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        found
    }

    fn graph(&mut self, r: &mut Reader, field: Field, top: bool) -> Result<()> {
        let end = r.enter(field)?;
        r.message(end, |r, field| match field.number {
            1 => {
                self.nodes += usize::from(top);
                self.node(r, field)
            }
            5 => self.tensor(r, field),
            // Of a sparse tensor the values count, not where they are.
            15 => {
                let end = r.enter(field)?;
                r.message(end, |r, field| match field.number {
                    1 => self.tensor(r, field),
                    _ => r.skip(field),
                })
            }
            _ => r.skip(field),
        })
    }

    /// Looks for graphs in the attributes of a node: the branches of an `If`, the body of a `Loop`.
    fn node(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            if field.number != 5 {
                return r.skip(field);
            }
            let end = r.enter(field)?;
            r.message(end, |r, field| match field.number {
                6 | 11 => self.graph(r, field, false),
                _ => r.skip(field),
            })
        })
    }

    fn tensor(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        let (mut dims, mut dtype) = (Vec::new(), 0);
        let end = r.enter(field)?;
        r.message(end, |r, field| match field.number {
            1 => r.integers(field, &mut dims),
            2 => {
                dtype = r.integer(field)?;
                Ok(())
            }
            _ => r.skip(field),
        })?;
        let count = dims
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?))
            .filter(|n| *n <= TENSOR_LIMIT)
            .ok_or_else(|| {
                r.invalid(format!(
                    "a weight has dimensions {dims:?}, expected none below 0 and at most {TENSOR_LIMIT} values"
                ))
            })?;
        self.tensors += 1;
        let sum = self.values.entry(dtype).or_default();
        *sum = sum.saturating_add(count);
        Ok(())
    }
}

/// Whether weights come in this type: floats, and integers of 8 and 4 bits, which quantised weights are.
fn is_weight(dtype: i64) -> bool {
    !matches!(dtype, 0 | 4..=9 | 12 | 13)
}

/// The type's name in onnx.proto, in small letters with "float32" for its FLOAT and "float64" for its DOUBLE.
fn name(dtype: i64) -> String {
    let name = match dtype {
        1 => "float32",
        2 => "uint8",
        3 => "int8",
        10 => "float16",
        11 => "float64",
        14 => "complex64",
        15 => "complex128",
        16 => "bfloat16",
        17 => "float8e4m3fn",
        18 => "float8e4m3fnuz",
        19 => "float8e5m2",
        20 => "float8e5m2fnuz",
        21 => "uint4",
        22 => "int4",
        23 => "float4e2m1",
        n => return format!("ONNX type {n}"),
    };
    name.to_owned()
}
