//! Tokenised samples on disk: one safetensors file that any language reads with a JSON parser.

use std::{collections::HashMap, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::digest::sha256_hex;

/// All samples of a data set as token ids.
///
/// On disk: `input_ids` (U32, `[N]`), `loss_mask` (U8, `[N]`, 1 where the token is a training target), `offsets`
/// (U64, `[samples + 1]`). The label of position `i` is token `i + 1` of the same sample when that token's mask is 1;
/// a sample's last position has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStore {
    /// Ids of all samples, end to end.
    pub input_ids: Vec<u32>,
    /// 1 where the token is a target.
    pub loss_mask: Vec<u8>,
    /// Sample `s` is `offsets[s]..offsets[s + 1]`.
    pub offsets: Vec<u64>,
}

/// Why a token store could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenStoreError {
    /// The file could not be read or written.
    #[error("token store {path}: {source}")]
    Io {
        /// File in question.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not a token store.
    #[error("token store {path}: {what}; delete the file, it is made again from the data set")]
    Malformed {
        /// File in question.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}

impl TokenStore {
    /// An empty store to push samples to.
    pub fn new() -> Self {
        Self { input_ids: Vec::new(), loss_mask: Vec::new(), offsets: vec![0] }
    }

    /// Appends a sample. Panics when the two slices differ in length.
    pub fn push(&mut self, ids: &[u32], loss_mask: &[u8]) {
        assert_eq!(ids.len(), loss_mask.len(), "a mask for every token");
        self.input_ids.extend_from_slice(ids);
        self.loss_mask.extend_from_slice(loss_mask);
        self.offsets.push(self.input_ids.len() as u64);
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// True when there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids and loss mask of sample `s`.
    pub fn sample(&self, s: usize) -> (&[u32], &[u8]) {
        let span = self.offsets[s] as usize..self.offsets[s + 1] as usize;
        (&self.input_ids[span.clone()], &self.loss_mask[span])
    }

    /// Token count of every sample.
    pub fn lengths(&self) -> Vec<usize> {
        self.offsets.windows(2).map(|w| (w[1] - w[0]) as usize).collect()
    }

    /// Hash of the contents, independent of the file's layout.
    pub fn sha256(&self) -> String {
        let mut bytes = le_bytes(&self.input_ids, u32::to_le_bytes);
        bytes.extend_from_slice(&self.loss_mask);
        bytes.extend(le_bytes(&self.offsets, u64::to_le_bytes));
        sha256_hex(&bytes)
    }

    /// Writes the store.
    pub fn save(&self, path: &Path) -> Result<(), TokenStoreError> {
        std::fs::write(path, self.to_bytes()).map_err(|source| io(path, source))
    }

    /// Reads and checks a store.
    pub fn load(path: &Path) -> Result<Self, TokenStoreError> {
        let bytes = std::fs::read(path).map_err(|source| io(path, source))?;
        Self::from_bytes(&bytes).map_err(|what| malformed(path, what))
    }

    /// The store as the bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let ids = le_bytes(&self.input_ids, u32::to_le_bytes);
        let offsets = le_bytes(&self.offsets, u64::to_le_bytes);
        let n = self.input_ids.len();
        let view = |dtype, len, data| TensorView::new(dtype, vec![len], data).expect("sizes agree");
        let tensors = [
            ("input_ids", view(Dtype::U32, n, &ids)),
            ("loss_mask", view(Dtype::U8, n, &self.loss_mask)),
            ("offsets", view(Dtype::U64, self.offsets.len(), &offsets)),
        ];
        safetensors::serialize(tensors, None::<HashMap<String, String>>)
            .expect("three tensors of known sizes")
    }

    /// The store that such bytes hold, or what is wrong with them.
    ///
    /// # Errors
    /// The bytes are no token store, or its parts do not fit together.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let get = |name: &str, dtype| {
            let t = file.tensor(name).map_err(|e| e.to_string())?;
            if t.dtype() == dtype { Ok(t.data()) } else { Err(format!("{name} is {:?}", t.dtype())) }
        };
        let store = Self {
            input_ids: get("input_ids", Dtype::U32)?
                .chunks_exact(4)
                .map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")))
                .collect(),
            loss_mask: get("loss_mask", Dtype::U8)?.to_vec(),
            offsets: get("offsets", Dtype::U64)?
                .chunks_exact(8)
                .map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
                .collect(),
        };
        let n = store.input_ids.len();
        let ordered = store.offsets.first() == Some(&0)
            && store.offsets.last() == Some(&(n as u64))
            && store.offsets.is_sorted();
        if !ordered || store.loss_mask.len() != n {
            return Err("offsets, ids and mask do not fit together".into());
        }
        Ok(store)
    }
}

impl Default for TokenStore {
    fn default() -> Self {
        Self::new()
    }
}

fn le_bytes<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| to(v)).collect()
}

fn io(path: &Path, source: std::io::Error) -> TokenStoreError {
    TokenStoreError::Io { path: path.display().to_string(), source }
}

fn malformed(path: &Path, what: String) -> TokenStoreError {
    TokenStoreError::Malformed { path: path.display().to_string(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.safetensors");
        let mut store = TokenStore::new();
        store.push(&[5, 6, 7], &[0, 1, 1]);
        store.push(&[9], &[1]);
        store.save(&path).unwrap();
        let back = TokenStore::load(&path).unwrap();
        assert_eq!(back, store);
        assert_eq!(back.sha256(), store.sha256());
        assert_eq!(back.sample(1), (&[9u32][..], &[1u8][..]));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert!(matches!(TokenStore::load(&path), Err(TokenStoreError::Malformed { .. })));
    }
}
