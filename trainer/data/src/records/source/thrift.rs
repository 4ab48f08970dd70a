//! Thrift's compact protocol, walked as the Parquet library walks it: what it would read is known before it reads.

/// Values in a list or a mapping that take no bytes: Parquet has none.
const MOST: u64 = 1024;
/// Values in one another. The library has 64 in what it does not know, below the structures that it knows.
pub(super) const DEEPEST: u8 = 96;

/// Types of values on the wire; of booleans in a structure, the first is true.
pub(super) const BOOLEANS: [u8; 2] = [1, 2];
pub(super) const BYTE: u8 = 3;
const INTEGERS: [u8; 3] = [4, 5, 6];
const DOUBLE: u8 = 7;
pub(super) const BINARY: u8 = 8;
pub(super) const LISTS: [u8; 2] = [9, 10];
const MAP: u8 = 11;
pub(super) const STRUCT: u8 = 12;
const UUID: u8 = 13;
/// An integer of 32 bits, as all of a page's header are.
pub(super) const INTEGER: u8 = 5;

/// Why a walk ends before its end.
pub(super) enum Stop {
    /// No such thing can stand here, or the bytes are at their end.
    Malformed,
    /// So many values that take no bytes: the library steps over them one by one, for days if there are many.
    Empty(u64),
    /// What the library would read, and may not.
    Refused(String),
}

/// What a walk goes over.
pub(super) trait Bytes {
    fn byte(&mut self) -> Result<u8, Stop>;
    fn skip(&mut self, n: u64) -> Result<(), Stop>;
}

impl Bytes for &[u8] {
    fn byte(&mut self) -> Result<u8, Stop> {
        let (first, rest) = self.split_first().ok_or(Stop::Malformed)?;
        *self = rest;
        Ok(*first)
    }

    fn skip(&mut self, n: u64) -> Result<(), Stop> {
        let n = usize::try_from(n).map_err(|_| Stop::Malformed)?;
        *self = self.get(n..).ok_or(Stop::Malformed)?;
        Ok(())
    }
}

pub(super) struct Walk<B>(pub B);

impl<B: Bytes> Walk<B> {
    /// An integer in pieces of seven bits, as many as there are. Of more than 64 bits the library makes something too.
    pub fn varint(&mut self) -> Result<u64, Stop> {
        let (mut value, mut shift) = (0, 0u32);
        loop {
            let byte = self.0.byte()?;
            value |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            shift = shift.wrapping_add(7);
        }
    }

    /// An integer with a sign. The library cuts off the bits that are too many.
    pub fn integer(&mut self) -> Result<i32, Stop> {
        let value = self.varint()?;
        Ok(((value >> 1) as i64 ^ -((value & 1) as i64)) as i32)
    }

    /// The fields of a structure. `take` gets the number and the type of each, and says whether it has read the value; if not, the
    /// value is stepped over.
    pub fn fields(
        &mut self,
        depth: u8,
        mut take: impl FnMut(&mut Self, i16, u8) -> Result<bool, Stop>,
    ) -> Result<(), Stop> {
        let mut number = 0i16;
        loop {
            let header = self.0.byte()?;
            let kind = header & 15;
            if kind == 0 {
                return Ok(());
            }
            number = match header >> 4 {
                0 => self.integer()? as i16,
                // A number that is too large is an error to the library, unless it steps over the structure.
                more => number.wrapping_add(more.into()),
            };
            if !take(self, number, kind)? {
                self.value(kind, depth)?;
            }
        }
    }

    /// How many values a list has, and their type; they follow.
    pub fn list(&mut self) -> Result<(u64, u8), Stop> {
        let header = self.0.byte()?;
        let n = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
        Ok((n, header & 15))
    }

    /// Steps over a value.
    pub fn value(&mut self, kind: u8, depth: u8) -> Result<(), Stop> {
        let Some(depth) = depth.checked_sub(1) else { return Err(Stop::Malformed) };
        match kind {
            kind if BOOLEANS.contains(&kind) => Ok(()),
            BYTE => self.0.skip(1),
            kind if INTEGERS.contains(&kind) => self.varint().map(drop),
            DOUBLE => self.0.skip(8),
            BINARY => self.varint().and_then(|n| self.0.skip(n)),
            kind if LISTS.contains(&kind) => {
                let (n, kind) = self.list()?;
                self.values(n, &[kind], depth)
            }
            MAP => match self.varint()? {
                0 => Ok(()),
                n => {
                    let kinds = self.0.byte()?;
                    self.values(n, &[kinds >> 4, kinds & 15], depth)
                }
            },
            STRUCT => self.fields(depth, |_, _, _| Ok(false)),
            UUID => self.0.skip(16),
            _ => Err(Stop::Malformed),
        }
    }

    /// `n` times values of `kinds`.
    fn values(&mut self, n: u64, kinds: &[u8], depth: u8) -> Result<(), Stop> {
        if n > MOST && kinds.iter().all(|kind| BOOLEANS.contains(kind)) {
            return Err(Stop::Empty(n));
        }
        (0..n).try_for_each(|_| kinds.iter().try_for_each(|kind| self.value(*kind, depth)))
    }
}
