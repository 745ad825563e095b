//! Attributes of nodes and values of small constants, as far as what can be fused is told by them. Large tensors are passed by.

use std::collections::HashMap;

use half::f16;

use crate::error::Result;
use crate::model::wire::{Field, Reader};

/// The most dimensions of a tensor.
pub(super) const DIMENSIONS: usize = 16;
/// The most values of a constant that are looked at: shapes, axes, factors and what normalises groups have fewer.
pub(super) const SMALL: usize = 64;
/// The most bytes of them, however they are written.
const SMALL_BYTES: u64 = 10 * SMALL as u64;

/// Numbers of onnx.proto for types of values.
pub(super) mod dtype {
    pub const F32: i64 = 1;
    pub const I32: i64 = 6;
    pub const I64: i64 = 7;
    pub const BOOL: i64 = 9;
    pub const F16: i64 = 10;
    pub const F64: i64 = 11;
}

/// Values of a small tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    /// Whole numbers.
    Integers(Vec<i64>),
    /// Floats of any width.
    Floats(Vec<f64>),
}

/// A constant tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Constant {
    /// Its dimensions, outermost first.
    pub dims: Vec<i64>,
    /// Type of its values, by its ONNX number.
    pub dtype: i64,
    /// Its values, if it is small and they are in the graph's own file.
    pub values: Option<Values>,
}

/// What an attribute is set to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attribute {
    Integer(i64),
    Float(f32),
    Integers(Vec<i64>),
    Text(String),
    Tensor(Constant),
    /// Of another kind, or too long to be looked at.
    Other,
}

/// The attributes of a node, by name.
#[derive(Debug, Default)]
pub(super) struct Attributes(HashMap<String, Attribute>);

impl Attributes {
    /// The attribute `name`, if it is set.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.0.get(name)
    }

    /// The whole number that `name` is set to, else `default`; `None` if it is set to something else.
    pub fn integer(&self, name: &str, default: i64) -> Option<i64> {
        match self.get(name) {
            None => Some(default),
            Some(Attribute::Integer(value)) => Some(*value),
            Some(_) => None,
        }
    }

    /// The text that `name` is set to, else `default`; `None` if it is set to something else.
    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> Option<&'a str> {
        match self.get(name) {
            None => Some(default),
            Some(Attribute::Text(text)) => Some(text),
            Some(_) => None,
        }
    }

    /// The whole numbers that `name` is set to.
    pub fn integers(&self, name: &str) -> Option<&[i64]> {
        match self.get(name)? {
            Attribute::Integers(values) => Some(values),
            _ => None,
        }
    }
}

/// Attributes and constants of a graph.
#[derive(Debug, Default)]
pub(super) struct Details {
    /// Version of the standard operator set.
    pub opset: i64,
    /// Those of each node, in the order of the file.
    pub nodes: Vec<Attributes>,
    /// Stored tensors, by name.
    pub constants: HashMap<String, Constant>,
}

// Field numbers are those of onnx.proto.
impl Details {
    /// Reads them from the file in `reader`.
    pub fn read(reader: &mut Reader) -> Result<Self> {
        let mut details = Self::default();
        let end = reader.size();
        reader.message(end, |r, field| match field.number {
            7 => details.graph(r, field),
            8 => details.import(r, field),
            _ => r.skip(field),
        })?;
        Ok(details)
    }

    fn import(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        let (mut domain, mut version) = (String::new(), 0);
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => domain = r.string(field)?,
                2 => version = r.integer(field)?,
                _ => r.skip(field)?,
            }
            Ok(())
        })?;
        if domain.is_empty() || domain == "ai.onnx" {
            self.opset = version;
        }
        Ok(())
    }

    fn graph(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => {
                    let attributes = attributes(r, field)?;
                    self.nodes.push(attributes);
                }
                5 => {
                    let (name, constant) = tensor(r, field)?;
                    self.constants.insert(name, constant);
                }
                _ => r.skip(field)?,
            }
            Ok(())
        })
    }
}

fn attributes(r: &mut Reader, field: Field) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    let end = r.enter(field)?;
    r.message(end, |r, field| {
        if field.number != 5 {
            return r.skip(field);
        }
        let (mut name, mut value, mut list) = (String::new(), Attribute::Other, Vec::new());
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => name = r.string(field)?,
                2 => value = Attribute::Float(r.float(field)?),
                3 => value = Attribute::Integer(r.integer(field)?),
                4 => value = text(r, field)?,
                5 => value = Attribute::Tensor(tensor(r, field)?.1),
                8 => r.integers(field, &mut list)?,
                _ => r.skip(field)?,
            }
            Ok(())
        })?;
        if (1..=SMALL).contains(&list.len()) {
            value = Attribute::Integers(list);
        }
        attributes.0.insert(name, value);
        Ok(())
    })?;
    Ok(attributes)
}

/// A name that an attribute is set to; texts that are longer than names are not looked at.
fn text(r: &mut Reader, field: Field) -> Result<Attribute> {
    let bytes = r.short(field, SMALL_BYTES)?;
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(text.map_or(Attribute::Other, Attribute::Text))
}

/// Name and content of the tensor in `field`.
fn tensor(r: &mut Reader, field: Field) -> Result<(String, Constant)> {
    let (mut name, mut dims, mut dtype) = (String::new(), Vec::new(), 0);
    let (mut raw, mut integers, mut floats) = (None, Vec::new(), Vec::new());
    let mut elsewhere = false;
    let end = r.enter(field)?;
    r.message(end, |r, field| {
        match field.number {
            1 => r.integers(field, &mut dims)?,
            2 => dtype = r.integer(field)?,
            8 => name = r.string(field)?,
            4 => floats.push(r.short(field, SMALL_BYTES)?),
            5 | 7 => integers.push(r.short(field, SMALL_BYTES)?),
            9 => raw = r.short(field, SMALL_BYTES)?,
            13 | 14 => {
                elsewhere = true;
                r.skip(field)?;
            }
            _ => r.skip(field)?,
        }
        Ok(())
    })?;
    let count = dims.iter().try_fold(1usize, |n, d| {
        n.checked_mul(usize::try_from(*d).ok()?)
            .filter(|n| *n <= SMALL)
    });
    let values = match (count, elsewhere) {
        (Some(count), false) => match (raw, &integers[..], &floats[..]) {
            (Some(raw), [], []) => of_raw(dtype, &raw),
            (None, [Some(bytes)], []) => of_varints(dtype, bytes),
            (None, [], [Some(bytes)]) if dtype == dtype::F32 => of_raw(dtype, bytes),
            _ => None,
        }
        .filter(|values| values.len() == count),
        _ => None,
    };
    Ok((
        name,
        Constant {
            dims,
            dtype,
            values,
        },
    ))
}

/// Values as the file holds them, little-endian.
fn of_raw(dtype: i64, bytes: &[u8]) -> Option<Values> {
    fn each<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let chunks = bytes.chunks(N);
        chunks.map(|c| Some(value(c.try_into().ok()?))).collect()
    }
    Some(match dtype {
        dtype::F32 => Values::Floats(each(bytes, |b| f64::from(f32::from_le_bytes(b)))?),
        dtype::F16 => Values::Floats(each(bytes, |b| f16::from_le_bytes(b).to_f64())?),
        dtype::F64 => Values::Floats(each(bytes, f64::from_le_bytes)?),
        dtype::I32 => Values::Integers(each(bytes, |b| i64::from(i32::from_le_bytes(b)))?),
        dtype::I64 => Values::Integers(each(bytes, i64::from_le_bytes)?),
        _ => return None,
    })
}

/// Values as a packed list of variable length.
fn of_varints(dtype: i64, bytes: &[u8]) -> Option<Values> {
    let (mut found, mut value, mut shift) = (Vec::new(), 0u64, 0);
    for byte in bytes {
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            found.push(value as i64);
            (value, shift) = (0, 0);
        }
    }
    if shift != 0 {
        return None;
    }
    match dtype {
        dtype::I32 | dtype::I64 => Some(Values::Integers(found)),
        // The bits of each, in a whole number.
        dtype::F16 => {
            let bits = found.iter().map(|bits| u16::try_from(*bits).ok());
            let floats = bits.map(|bits| Some(f16::from_bits(bits?).to_f64()));
            Some(Values::Floats(floats.collect::<Option<_>>()?))
        }
        _ => None,
    }
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Integers(values) => values.len(),
            Self::Floats(values) => values.len(),
        }
    }
}
