//! A reader of protobuf's wire format over a file, which seeks past what nobody asks for: a 2 GB graph's header is
//! read without touching its weights.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// The most bytes of one string: names are short, so anything longer is not an ONNX graph's.
const STRING_LIMIT: u64 = 1 << 16;
/// How deep messages may nest: ONNX Runtime's own parser stops at 100.
const DEPTH_LIMIT: usize = 100;

/// One field's tag, its value still to be read (or skipped).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Field {
    /// Field number.
    pub number: u64,
    /// Where its tag begins.
    start: u64,
    kind: u8,
}

/// A cursor in a protobuf file; positions are bytes from its start.
pub(super) struct Reader<'a> {
    path: &'a Path,
    file: BufReader<File>,
    position: u64,
    size: u64,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Opens the regular file at `path`, of `limit` bytes at most.
    pub fn open(path: &'a Path, limit: u64) -> Result<Self> {
        let failed = |e: std::io::Error| Error::not_found(path, format!("cannot be read: {e}"));
        let meta = std::fs::metadata(path).map_err(failed)?;
        if !meta.is_file() {
            return Err(Error::invalid(path, "expected a regular file"));
        }
        if meta.len() >= limit {
            return Err(Error::invalid(
                path,
                format!(
                    "has {} bytes, expected fewer than {limit}, the most an ONNX file can have; larger weights go in external data",
                    meta.len()
                ),
            ));
        }
        Ok(Self {
            path,
            file: BufReader::new(File::open(path).map_err(failed)?),
            position: 0,
            size: meta.len(),
            depth: 0,
        })
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of `field`, which has just been read, its tag included.
    pub fn range(&self, field: Field) -> Range<u64> {
        field.start..self.position
    }

    /// The file itself, for who wants bytes of it that have been passed.
    pub fn into_file(self) -> File {
        self.file.into_inner()
    }

    /// An error about this file's content.
    pub fn invalid(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(self.path, what.to_string())
    }

    fn broken(&self, what: &str) -> Error {
        self.invalid(format!(
            "not an ONNX graph: {what} at byte {}",
            self.position
        ))
    }

    fn truncated(&self) -> Error {
        self.invalid(format!(
            "truncated: its content goes on after its end at byte {}",
            self.size
        ))
    }

    /// Reads the message that ends at `end`: `each` gets every field and must read or [`skip`](Self::skip) it.
    pub fn message(
        &mut self,
        end: u64,
        mut each: impl FnMut(&mut Self, Field) -> Result<()>,
    ) -> Result<()> {
        if self.depth == DEPTH_LIMIT {
            return Err(self.broken("messages nested too deeply"));
        }
        self.depth += 1;
        while self.position < end {
            let start = self.position;
            let tag = self.varint()?;
            let field = Field {
                number: tag >> 3,
                start,
                kind: (tag & 7) as u8,
            };
            if field.number == 0 {
                return Err(self.broken("a field numbered 0"));
            }
            each(self, field)?;
        }
        self.depth -= 1;
        if self.position > end {
            return Err(self.broken("a field that leaves its message"));
        }
        Ok(())
    }

    /// The position where the sub-message in `field` ends; its content is next.
    pub fn enter(&mut self, field: Field) -> Result<u64> {
        if field.kind != 2 {
            return Err(self.broken("a field of an unexpected kind"));
        }
        let length = self.varint()?;
        match self.position.checked_add(length) {
            Some(end) if end <= self.size => Ok(end),
            _ => Err(self.truncated()),
        }
    }

    /// The integer in `field`.
    pub fn integer(&mut self, field: Field) -> Result<i64> {
        if field.kind != 0 {
            return Err(self.broken("a field of an unexpected kind"));
        }
        Ok(self.varint()? as i64)
    }

    /// The integers in `field`, which may be one or a packed list of them.
    pub fn integers(&mut self, field: Field, out: &mut Vec<i64>) -> Result<()> {
        if field.kind == 0 {
            out.push(self.integer(field)?);
            return Ok(());
        }
        let end = self.enter(field)?;
        if end - self.position > STRING_LIMIT {
            return Err(self.broken("a list that is too long"));
        }
        while self.position < end {
            out.push(self.varint()? as i64);
        }
        Ok(())
    }

    /// The 32-bit float in `field`.
    pub fn float(&mut self, field: Field) -> Result<f32> {
        if field.kind != 5 {
            return Err(self.broken("a field of an unexpected kind"));
        }
        let mut bytes = [0; 4];
        self.exact(&mut bytes)?;
        Ok(f32::from_le_bytes(bytes))
    }

    /// The bytes in `field` if they are `limit` at most; else it goes past them.
    pub fn short(&mut self, field: Field, limit: u64) -> Result<Option<Vec<u8>>> {
        let end = self.enter(field)?;
        let length = end - self.position;
        if length > limit {
            self.pass(length)?;
            return Ok(None);
        }
        let mut bytes = vec![0; length as usize];
        self.exact(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// The text in `field`.
    pub fn string(&mut self, field: Field) -> Result<String> {
        let end = self.enter(field)?;
        let length = end - self.position;
        if length > STRING_LIMIT {
            return Err(self.broken("a name that is too long"));
        }
        let mut bytes = vec![0; length as usize];
        self.exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.broken("a name that is not UTF-8"))
    }

    /// Goes past `field`'s value.
    pub fn skip(&mut self, field: Field) -> Result<()> {
        let length = match field.kind {
            0 => return self.varint().map(|_| ()),
            1 => 8,
            2 => self.varint()?,
            5 => 4,
            _ => return Err(self.broken("a field of an unknown kind")),
        };
        self.pass(length)
    }

    /// Goes `length` bytes on.
    fn pass(&mut self, length: u64) -> Result<()> {
        match self.position.checked_add(length) {
            Some(end) if end <= self.size => {
                // Cannot overflow: the size is below 2 GiB.
                self.file
                    .seek_relative(length as i64)
                    .map_err(|e| self.invalid(format!("cannot be read: {e}")))?;
                self.position = end;
                Ok(())
            }
            _ => Err(self.truncated()),
        }
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let mut byte = [0];
            self.exact(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.broken("a number that is too long"))
    }

    fn exact(&mut self, out: &mut [u8]) -> Result<()> {
        self.file.read_exact(out).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => self.truncated(),
            _ => self.invalid(format!("cannot be read: {e}")),
        })?;
        self.position += out.len() as u64;
        Ok(())
    }
}
