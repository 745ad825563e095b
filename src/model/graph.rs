//! The header of an ONNX file: what goes in, what comes out, which other files it wants. Weights are never read.

use std::collections::HashSet;
use std::path::{Component as Part, Path, PathBuf};

use super::wire::{Field, Reader};
use crate::error::{Error, Result};

/// The most inputs and outputs of a graph; in old files every weight is an input too.
const PORTS: usize = 1 << 16;
/// Protobuf's own limit on one message.
pub(super) const FILE_LIMIT: u64 = 1 << 31;
/// The most samples one tensor may have: far above any weight, far below overflow.
const TENSOR_LIMIT: u64 = 1 << 36;
/// The largest dimension of an input or output.
const DIMENSION_LIMIT: i64 = 1 << 24;

/// Type of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 64-bit float.
    F64,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// Any other, by its ONNX number.
    Other(i32),
}

impl Dtype {
    fn new(number: i64) -> Self {
        match number {
            1 => Self::F32,
            6 => Self::I32,
            7 => Self::I64,
            10 => Self::F16,
            11 => Self::F64,
            n => Self::Other(i32::try_from(n).unwrap_or(0)),
        }
    }

    /// Its ONNX number.
    pub fn number(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::F16 => 10,
            Self::F64 => 11,
            Self::Other(n) => n,
        }
    }

    /// Whether it is one of the float types that are handled.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::F64)
    }

    /// Whether it is one of the integer types that are handled.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::I32 | Self::I64)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32 => f.write_str("float32"),
            Self::F16 => f.write_str("float16"),
            Self::F64 => f.write_str("float64"),
            Self::I32 => f.write_str("int32"),
            Self::I64 => f.write_str("int64"),
            Self::Other(n) => write!(f, "ONNX type {n}"),
        }
    }
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; `None` where any size will do.
    pub dims: Vec<Option<usize>>,
}

impl Port {
    /// Its number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The size of dimension `i` where the graph fixes it.
    pub fn fixed(&self, i: usize) -> Option<usize> {
        self.dims.get(i).copied().flatten()
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\" ({} [", self.name, self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match d {
                Some(d) => write!(f, "{d}")?,
                None => f.write_str("?")?,
            }
        }
        f.write_str("])")
    }
}

/// The header of an ONNX file.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Version of the file format.
    pub ir_version: i64,
    /// Version of the standard operator set, 0 where none is named.
    pub opset: i64,
    /// What must be given to run it (weights excluded), in the graph's order.
    pub inputs: Vec<Port>,
    /// What it computes, in the graph's order.
    pub outputs: Vec<Port>,
    /// The other files it reads, in no order, each checked to be in the graph's folder.
    pub external_files: Vec<PathBuf>,
}

/// A tensor that lives in another file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct External {
    location: String,
    offset: u64,
    /// Bytes from `offset`; 0 where neither the length nor the type's size is known.
    length: u64,
}

#[derive(Default)]
struct Scan {
    ir_version: i64,
    opset: i64,
    graphs: usize,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    initializers: HashSet<String>,
    external: HashSet<External>,
}

/// An input or output before it is known whether anyone cares for it.
#[derive(Default)]
struct Value {
    name: String,
    dtype: Option<Dtype>,
    dims: Option<Vec<Option<i64>>>,
}

impl Graph {
    /// Reads the header of the ONNX file at `path`, and checks the files it wants.
    pub fn open(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path, FILE_LIMIT)?;
        let mut scan = Scan::default();
        let end = reader.size();
        reader.message(end, |r, field| scan.model(r, field))?;
        if scan.graphs != 1 || scan.ir_version < 3 {
            return Err(reader.invalid(format!(
                "not an ONNX graph, or a truncated one: expected one graph of format version 3 or later, found {} of version {}",
                scan.graphs, scan.ir_version
            )));
        }
        let mut external_files = HashSet::new();
        for tensor in &scan.external {
            external_files.insert(tensor.check(path)?);
        }
        // Before format version 4, weights were inputs too.
        let inputs = scan
            .inputs
            .into_iter()
            .filter(|v| !scan.initializers.contains(&v.name));
        let ports = |values: &mut dyn Iterator<Item = Value>| {
            values
                .map(|v| v.port().map_err(|what| reader.invalid(what)))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            ir_version: scan.ir_version,
            opset: scan.opset,
            inputs: ports(&mut { inputs })?,
            outputs: ports(&mut scan.outputs.into_iter())?,
            external_files: external_files.into_iter().collect(),
        })
    }
}

// Field numbers are those of onnx.proto.
impl Scan {
    fn model(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        match field.number {
            1 => self.ir_version = r.integer(field)?,
            7 => {
                self.graphs += 1;
                self.graph(r, field, true)?;
            }
            8 => {
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
            }
            // Training graphs: ONNX Runtime ignores them when it infers, but they may hold tensors.
            20 => {
                let end = r.enter(field)?;
                r.message(end, |r, field| match field.number {
                    1 | 2 => self.graph(r, field, false),
                    _ => r.skip(field),
                })?;
            }
            // Functions: nodes and attributes' defaults.
            25 => {
                let end = r.enter(field)?;
                r.message(end, |r, field| match field.number {
                    7 => self.node(r, field),
                    11 => self.attribute(r, field),
                    _ => r.skip(field),
                })?;
            }
            _ => r.skip(field)?,
        }
        Ok(())
    }

    fn graph(&mut self, r: &mut Reader, field: Field, top: bool) -> Result<()> {
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => self.node(r, field)?,
                5 => {
                    let name = self.tensor(r, field)?;
                    if top {
                        self.initializers.insert(name);
                    }
                }
                11 | 12 if top => {
                    if self.inputs.len() + self.outputs.len() == PORTS {
                        return Err(r.invalid(format!(
                            "has more than {PORTS} inputs and outputs, which no component does"
                        )));
                    }
                    let value = value(r, field)?;
                    match field.number {
                        11 => self.inputs.push(value),
                        _ => self.outputs.push(value),
                    }
                }
                15 => {
                    let name = self.sparse(r, field)?;
                    if top {
                        self.initializers.insert(name);
                    }
                }
                _ => r.skip(field)?,
            }
            Ok(())
        })
    }

    fn node(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                // A node that holds, or names a file with, code compiled for one accelerator.
                4 => {
                    if r.string(field)? == "EPContext" {
                        return Err(r.invalid(
                            "holds a compiled engine (operator EPContext), which is code; expected a plain graph",
                        ));
                    }
                }
                5 => self.attribute(r, field)?,
                _ => r.skip(field)?,
            }
            Ok(())
        })
    }

    fn attribute(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        let end = r.enter(field)?;
        r.message(end, |r, field| match field.number {
            5 | 10 => self.tensor(r, field).map(|_| ()),
            6 | 11 => self.graph(r, field, false),
            22 | 23 => self.sparse(r, field).map(|_| ()),
            _ => r.skip(field),
        })
    }

    fn sparse(&mut self, r: &mut Reader, field: Field) -> Result<String> {
        let mut name = String::new();
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => name = self.tensor(r, field)?,
                2 => drop(self.tensor(r, field)?),
                _ => r.skip(field)?,
            }
            Ok(())
        })?;
        Ok(name)
    }

    fn tensor(&mut self, r: &mut Reader, field: Field) -> Result<String> {
        let (mut name, mut dims, mut dtype) = (String::new(), Vec::new(), 0);
        let (mut is_external, mut entries) = (false, Vec::new());
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => r.integers(field, &mut dims)?,
                2 => dtype = r.integer(field)?,
                8 => name = r.string(field)?,
                13 => {
                    let (mut key, mut value) = (String::new(), String::new());
                    let end = r.enter(field)?;
                    r.message(end, |r, field| {
                        match field.number {
                            1 => key = r.string(field)?,
                            2 => value = r.string(field)?,
                            _ => r.skip(field)?,
                        }
                        Ok(())
                    })?;
                    entries.push((key, value));
                }
                14 => is_external = r.integer(field)? == 1,
                _ => r.skip(field)?,
            }
            Ok(())
        })?;
        let count = dims
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?))
            .filter(|n| *n <= TENSOR_LIMIT)
            .ok_or_else(|| {
                r.invalid(format!(
                    "tensor {name:?} has dimensions {dims:?}, expected none below 0 and at most {TENSOR_LIMIT} values"
                ))
            })?;
        // Entries are looked at whether or not the tensor says it is external: what a runtime makes of the
        // contradiction is not ours to guess.
        if is_external || !entries.is_empty() {
            let entry = |key| entries.iter().rfind(|(k, _)| k == key).map(|(_, v)| v);
            let number = |key| {
                entry(key)
                    .map(|v| {
                        v.parse::<u64>().map_err(|_| {
                            r.invalid(format!(
                                "tensor {name:?}: {key} of its external data is {v:?}, expected a whole number"
                            ))
                        })
                    })
                    .transpose()
            };
            let location = entry("location").cloned().ok_or_else(|| {
                r.invalid(format!(
                    "tensor {name:?}: its external data has no location"
                ))
            })?;
            self.external.insert(External {
                offset: number("offset")?.unwrap_or(0),
                length: number("length")?.unwrap_or(count * bytes_of(dtype)),
                location,
            });
        }
        Ok(name)
    }
}

fn bytes_of(dtype: i64) -> u64 {
    match dtype {
        2 | 3 | 9 => 1,
        4 | 5 | 10 | 16 => 2,
        1 | 6 | 12 => 4,
        7 | 11 | 13 | 14 => 8,
        15 => 16,
        _ => 0,
    }
}

fn value(r: &mut Reader, field: Field) -> Result<Value> {
    let mut value = Value::default();
    let end = r.enter(field)?;
    r.message(end, |r, field| {
        match field.number {
            1 => value.name = r.string(field)?,
            2 => {
                let end = r.enter(field)?;
                r.message(end, |r, field| match field.number {
                    1 => tensor_type(r, field, &mut value),
                    _ => r.skip(field),
                })?;
            }
            _ => r.skip(field)?,
        }
        Ok(())
    })?;
    Ok(value)
}

fn tensor_type(r: &mut Reader, field: Field, value: &mut Value) -> Result<()> {
    let end = r.enter(field)?;
    r.message(end, |r, field| {
        match field.number {
            1 => value.dtype = Some(Dtype::new(r.integer(field)?)),
            2 => {
                let dims = value.dims.insert(Vec::new());
                let end = r.enter(field)?;
                r.message(end, |r, field| {
                    if field.number != 1 {
                        return r.skip(field);
                    }
                    let mut size = None;
                    let end = r.enter(field)?;
                    r.message(end, |r, field| {
                        match field.number {
                            1 => size = Some(r.integer(field)?),
                            _ => r.skip(field)?,
                        }
                        Ok(())
                    })?;
                    dims.push(size);
                    if dims.len() > 16 {
                        return Err(r.invalid("an input or output has more than 16 dimensions"));
                    }
                    Ok(())
                })?;
            }
            _ => r.skip(field)?,
        }
        Ok(())
    })
}

impl Value {
    fn port(self) -> std::result::Result<Port, String> {
        let (Some(dtype), Some(dims)) = (self.dtype, self.dims) else {
            return Err(format!(
                "{:?}: expected a tensor of a known number of dimensions",
                self.name
            ));
        };
        let dims = dims
            .into_iter()
            .map(|d| match d {
                None => Ok(None),
                Some(d) if (1..=DIMENSION_LIMIT).contains(&d) => Ok(Some(d as usize)),
                Some(d) => Err(format!(
                    "{:?} has a dimension of {d}, expected 1 to {DIMENSION_LIMIT}",
                    self.name
                )),
            })
            .collect::<std::result::Result<_, _>>()?;
        Ok(Port {
            name: self.name,
            dtype,
            dims,
        })
    }
}

impl External {
    /// The file of this tensor, once it is sure that it is a file of the folder of `graph` and long enough.
    fn check(&self, graph: &Path) -> Result<PathBuf> {
        let bad = |what: &str| {
            Error::invalid(graph, format!("external data {:?}: {what}", self.location))
        };
        let relative = Path::new(&self.location);
        // '*' begins ONNX Runtime's marker for "the offset is a memory address"; '\\' and ':' mean other folders
        // and drives on Windows.
        let odd = |c: char| c.is_control() || matches!(c, '*' | '\\' | ':');
        if self.location.is_empty()
            || self.location.chars().any(odd)
            || !relative
                .components()
                .all(|p| matches!(p, Part::Normal(_) | Part::CurDir))
        {
            return Err(bad(
                "expected a plain relative path that stays in the graph's folder",
            ));
        }
        let mut file = graph.parent().unwrap_or(Path::new("")).to_owned();
        let mut parts = relative.components().peekable();
        while let Some(part) = parts.next() {
            file.push(part);
            // A file may be a link, as in download caches; a folder that is one could lead anywhere.
            if parts.peek().is_some() && file.is_symlink() {
                return Err(bad("expected no link among its folders"));
            }
        }
        let size = match std::fs::metadata(&file) {
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(_) => return Err(bad("expected a regular file")),
            Err(e) => {
                return Err(Error::not_found(
                    &file,
                    format!(
                        "cannot be read: {e}; it holds weights of {}",
                        graph.display()
                    ),
                ));
            }
        };
        match self.offset.checked_add(self.length) {
            Some(end) if end <= size => Ok(file),
            _ => Err(Error::invalid(
                &file,
                format!(
                    "has {size} bytes, expected at least {} + {}, which {} reads",
                    self.offset,
                    self.length,
                    graph.display()
                ),
            )),
        }
    }
}
