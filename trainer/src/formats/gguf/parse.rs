//! The header of a GGUF file: metadata, and where tensors are. Every length is checked against what is left of the file before
//! anything is taken for it.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use super::blocks::Kind;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one kind.
    Array(Vec<Value>),
}

impl Value {
    /// A number that is not negative.
    pub fn unsigned(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => (*n).try_into().ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn float(&self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(*x),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// Text.
    pub fn text(&self) -> Option<&str> {
        if let Value::Text(t) = self { Some(t) } else { None }
    }

    /// Values of an array.
    pub fn array(&self) -> Option<&[Value]> {
        if let Value::Array(a) = self { Some(a) } else { None }
    }
}

/// A tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Outermost extent first, as Hugging Face has them; in the file it is last.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub kind: Kind,
    /// First byte, from the beginning of the data.
    pub offset: u64,
}

impl Info {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its data.
    pub fn bytes(&self) -> usize {
        self.len() / self.kind.values() * self.kind.bytes()
    }
}

/// Everything in front of the data.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Metadata.
    pub values: BTreeMap<String, Value>,
    /// Tensors.
    pub tensors: BTreeMap<String, Info>,
    /// First byte of the data.
    pub start: u64,
}

/// Arrays within arrays.
const MAX_DEPTH: usize = 4;

/// Values of all arrays together: a byte of the file may become a value of 32 bytes. Vocabularies of a million tokens, with their
/// scores, kinds and merges, are half of it.
const MAX_VALUES: u64 = 1 << 23;

/// Dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;

impl Header {
    /// Reads the header of a file of `size` bytes.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(from: impl Read, size: u64) -> Result<Self, String> {
        let mut r = Reader { from, at: 0, size, values: 0 };
        if r.bytes::<4>()? != *b"GGUF" {
            return Err("it does not begin with GGUF".into());
        }
        let version = r.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version} is not supported (2 or 3)"));
        }
        let (tensors, values) = (r.u64()?, r.u64()?);
        // The least that an entry takes.
        r.room(tensors, 24, "tensors")?;
        r.room(values, 12, "values")?;
        let mut header = Self::default();
        for _ in 0..values {
            let key = r.text()?;
            let kind = r.u32()?;
            let value = r.value(kind, 0).map_err(|e| format!("{e}, in '{key}'"))?;
            header.values.insert(key, value);
        }
        for _ in 0..tensors {
            let name = r.text()?;
            let info = r.info().map_err(|e| format!("{e}, in tensor '{name}'"))?;
            if header.tensors.insert(name.clone(), info).is_some() {
                return Err(format!("tensor '{name}' is there twice"));
            }
        }
        let align = header.values.get("general.alignment").map_or(Some(32), Value::unsigned).unwrap_or(0);
        if align == 0 || !align.is_power_of_two() || align > 1 << 20 {
            return Err(format!("an alignment of {align}"));
        }
        header.start = r.at.next_multiple_of(align);
        for (name, info) in &header.tensors {
            let end =
                header.start.checked_add(info.offset).and_then(|at| at.checked_add(info.bytes() as u64));
            if end.is_none_or(|end| end > size) {
                return Err(format!("tensor '{name}' ends behind the file's {size} bytes"));
            }
        }
        Ok(header)
    }
}

/// Reads little-endian values, and knows how much is left.
struct Reader<R> {
    from: R,
    at: u64,
    size: u64,
    /// In arrays so far.
    values: u64,
}

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|e| ended(&e))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// Checks that so many entries of at least so many bytes can follow.
    fn room(&self, count: u64, least: u64, what: &str) -> Result<(), String> {
        let left = self.size.saturating_sub(self.at);
        if count.checked_mul(least).is_none_or(|bytes| bytes > left) {
            return Err(format!("it claims {count} {what} where {left} bytes are left"));
        }
        Ok(())
    }

    fn text(&mut self) -> Result<String, String> {
        let n = self.u64()?;
        self.room(n, 1, "characters")?;
        let mut bytes = vec![0; n as usize];
        self.from.read_exact(&mut bytes).map_err(|e| ended(&e))?;
        self.at += n;
        String::from_utf8(bytes).map_err(|_| "text that is not UTF-8".into())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.bytes::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => self.array(depth)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(format!("a value of kind {other}")),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        if depth == MAX_DEPTH {
            return Err("arrays within arrays without end".into());
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            _ => 8,
        };
        self.room(count, least, "values")?;
        self.values = self.values.saturating_add(count);
        if self.values > MAX_VALUES {
            return Err(format!("arrays of more than {MAX_VALUES} values"));
        }
        (0..count).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>().map(Value::Array)
    }

    fn info(&mut self) -> Result<Info, String> {
        let n = self.u32()?;
        if n == 0 || n > MAX_DIMENSIONS {
            return Err(format!("{n} dimensions"));
        }
        let mut shape = (0..n).map(|_| self.u64()).collect::<Result<Vec<u64>, _>>()?;
        let total = shape.iter().try_fold(1u64, |t, d| t.checked_mul(*d)).filter(|t| *t < 1 << 48);
        let (innermost, kind, offset) = (shape[0], self.u32()?, self.u64()?);
        let kind =
            Kind::of(kind).map_err(|name| format!("its type {name} is not supported ({})", Kind::names()))?;
        if total.is_none_or(|t| t == 0) || !innermost.is_multiple_of(kind.values() as u64) {
            return Err(format!("extents {shape:?} of {}", kind.name()));
        }
        shape.reverse();
        Ok(Info { shape: shape.into_iter().map(|n| n as usize).collect(), kind, offset })
    }
}

fn ended(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "it ends within its header".into(),
        _ => e.to_string(),
    }
}
