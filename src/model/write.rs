//! A writer of protobuf's wire format, for models that are put together from bytes of another.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

/// Bytes of a message, or of several fields of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Message(Vec<Piece>);

#[derive(Debug, Clone)]
enum Piece {
    /// Bytes of the source file.
    Copied(Range<u64>),
    /// Other bytes.
    New(Vec<u8>),
}

impl Message {
    /// A message of these bytes.
    #[cfg(test)]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(vec![Piece::New(bytes)])
    }

    /// Appends fields as they are in the source file.
    pub fn copy(&mut self, range: &Range<u64>) {
        match self.0.last_mut() {
            // Neighbours are read at once.
            Some(Piece::Copied(last)) if last.end == range.start => last.end = range.end,
            _ => self.0.push(Piece::Copied(range.clone())),
        }
    }

    /// Appends field `number` with an integer.
    pub fn integer(&mut self, number: u64, value: i64) {
        self.tag(number, 0);
        self.varint(value as u64);
    }

    /// Appends field `number` with a 32-bit float.
    pub fn float(&mut self, number: u64, value: f32) {
        self.tag(number, 5);
        self.bytes(&value.to_le_bytes());
    }

    /// Appends field `number` with text.
    pub fn string(&mut self, number: u64, text: &str) {
        self.data(number, text.as_bytes());
    }

    /// Appends field `number` with bytes.
    pub fn data(&mut self, number: u64, bytes: &[u8]) {
        self.tag(number, 2);
        self.varint(bytes.len() as u64);
        self.bytes(bytes);
    }

    /// Appends field `number` with a message.
    pub fn message(&mut self, number: u64, message: Message) {
        self.tag(number, 2);
        self.varint(message.len());
        self.append(message);
    }

    /// Appends the fields of another message.
    pub fn append(&mut self, other: Message) {
        for piece in other.0 {
            match piece {
                Piece::Copied(range) => self.copy(&range),
                Piece::New(bytes) => self.bytes(&bytes),
            }
        }
    }

    /// Its bytes; `source` is the file that they are copied from.
    pub fn build(&self, mut source: &File) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.len() as usize);
        for piece in &self.0 {
            match piece {
                Piece::Copied(range) => {
                    source.seek(SeekFrom::Start(range.start))?;
                    let length = range.end - range.start;
                    if source.take(length).read_to_end(&mut out)? as u64 != length {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Piece::New(bytes) => out.extend_from_slice(bytes),
            }
        }
        Ok(out)
    }

    fn len(&self) -> u64 {
        let length = |piece: &Piece| match piece {
            Piece::Copied(range) => range.end - range.start,
            Piece::New(bytes) => bytes.len() as u64,
        };
        self.0.iter().map(length).sum()
    }

    fn tag(&mut self, number: u64, kind: u64) {
        self.varint(number << 3 | kind);
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.bytes(&[value as u8 | 0x80]);
            value >>= 7;
        }
        self.bytes(&[value as u8]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        match self.0.last_mut() {
            Some(Piece::New(last)) => last.extend_from_slice(bytes),
            _ => self.0.push(Piece::New(bytes.to_vec())),
        }
    }
}
