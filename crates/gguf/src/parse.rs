//! Numbers, strings and values from a stream, within bounds.

use std::io::Read;

use crate::{
    Error, Result,
    metadata::{Array, Strings, Value},
};

/// The longest string, in bytes. Published chat templates stay under 100 kB.
const LONGEST_TEXT: u64 = 16 << 20;

/// The most bytes of everything before the tensors; the largest vocabularies published have under 30 MB.
const LONGEST_HEADER: u64 = 256 << 20;

/// The most values of a list.
const MOST_VALUES: u64 = 16 << 20;

/// A stream that counts what was read of it.
pub(crate) struct Source<R> {
    reader: R,
    /// Bytes that were read.
    pub(crate) position: u64,
    length: u64,
}

impl<R: Read> Source<R> {
    /// A stream of `length` bytes.
    pub(crate) fn new(reader: R, length: u64) -> Self {
        Self { reader, position: 0, length }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A string of at most `longest` bytes.
    pub(crate) fn text(&mut self, what: &str, longest: u64) -> Result<String> {
        let length = self.u64()?;
        if length > longest {
            let reason = format!("{what} of {length} bytes, expected at most {longest}");
            return Err(Error::file(format!("has {reason}: at byte {}", self.position)));
        }
        let bytes = self.bytes(length)?;
        let position = self.position;
        String::from_utf8(bytes)
            .map_err(|_| Error::file(format!("has {what} that is not UTF-8: before byte {position}")))
    }

    /// A value of the type with this number.
    pub(crate) fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(truth(key, self.array::<1>()?[0])?),
            8 => Value::Text(self.text(&format!("a value of {key:?}"), LONGEST_TEXT)?),
            9 => Value::Array(self.values(key)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(Error::at(key, format!("has values of the unknown type {kind}"))),
        })
    }

    fn values(&mut self, key: &str) -> Result<Array> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if count > MOST_VALUES {
            return Err(Error::at(key, format!("has {count} values, expected at most {MOST_VALUES}")));
        }
        Ok(match kind {
            0 => Array::Unsigned(self.numbers(count, |[n]: [u8; 1]| n.into())?),
            1 => Array::Signed(self.numbers(count, |n| i8::from_le_bytes(n).into())?),
            2 => Array::Unsigned(self.numbers(count, |n| u16::from_le_bytes(n).into())?),
            3 => Array::Signed(self.numbers(count, |n| i16::from_le_bytes(n).into())?),
            4 => Array::Unsigned(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::Signed(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::Float(self.numbers(count, f32::from_le_bytes)?),
            7 => {
                let flags: Vec<u8> = self.numbers(count, |[n]: [u8; 1]| n)?;
                Array::Bool(flags.into_iter().map(|flag| truth(key, flag)).collect::<Result<_>>()?)
            }
            8 => {
                let mut texts = Strings::default();
                for _ in 0..count {
                    texts.push(&self.text(&format!("a value of {key:?}"), LONGEST_TEXT)?);
                }
                Array::Texts(texts)
            }
            10 | 11 => {
                let numbers: Vec<u64> = self.numbers(count, u64::from_le_bytes)?;
                let signed = |n: u64| {
                    let wide = if kind == 11 { Some(n as i64) } else { i64::try_from(n).ok() };
                    wide.ok_or_else(|| Error::at(key, format!("has the value {n}, which is too large")))
                };
                Array::Long(numbers.into_iter().map(signed).collect::<Result<_>>()?)
            }
            12 => Array::Double(self.numbers(count, f64::from_le_bytes)?),
            9 => return Err(Error::at(key, "has a list of lists, which no model needs")),
            _ => return Err(Error::at(key, format!("has values of the unknown type {kind}"))),
        })
    }

    fn numbers<const N: usize, T>(&mut self, count: u64, of: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = self.bytes(count * N as u64)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| of(*chunk)).collect())
    }

    /// That many bytes. Memory is taken as they come in, not by their number.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        self.claim(count)?;
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(count).read_to_end(&mut bytes)?;
        if read as u64 != count {
            return Err(Error::file("became shorter while it was read"));
        }
        Ok(bytes)
    }

    /// Counts bytes that are about to be read.
    fn claim(&mut self, count: u64) -> Result<()> {
        self.position = self.position.saturating_add(count);
        if self.position > self.length {
            let reason = format!("is cut short: its header goes on after its {} bytes", self.length);
            return Err(Error::file(format!("{reason}; download it again")));
        }
        if self.position > LONGEST_HEADER {
            return Err(Error::file(format!("has a header of more than {LONGEST_HEADER} bytes")));
        }
        Ok(())
    }
}

fn truth(key: &str, byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::at(key, format!("is {other}, expected 0 or 1 for false or true"))),
    }
}
