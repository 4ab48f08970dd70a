//! The digest of one step's token ids.

use sha2::{Digest, Sha256};

/// SHA-256 over the rows of a step, in order, all micro-batches one after the other.
///
/// A row contributes its slot count and then its ids, padding included, each as a little-endian `u32`. An arm feeds it
/// the ids as they enter the model; the harness feeds it its own tokens.
#[derive(Default)]
pub struct BatchDigest(Sha256);

impl BatchDigest {
    /// An empty digest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one row of token ids, padding included.
    pub fn row(&mut self, ids: &[u32]) {
        self.0.update((ids.len() as u32).to_le_bytes());
        for id in ids {
            self.0.update(id.to_le_bytes());
        }
    }

    /// The digest in hexadecimal.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, in hexadecimal, without the whole of it in memory.
///
/// # Errors
/// It cannot be read.
pub fn sha256_of_file(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::BufRead;
    let mut file = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(path)?);
    let mut hash = Sha256::new();
    loop {
        let part = file.fill_buf()?;
        if part.is_empty() {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(part);
        let read = part.len();
        file.consume(read);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_boundaries_matter() {
        let one = |rows: &[&[u32]]| {
            let mut d = BatchDigest::new();
            rows.iter().for_each(|r| d.row(r));
            d.finish()
        };
        assert_ne!(one(&[&[1, 2], &[3]]), one(&[&[1], &[2, 3]]));
        assert_eq!(one(&[&[1, 2]]).len(), 64);
    }
}
