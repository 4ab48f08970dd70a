//! A writer of GGUF, for files that no honest program writes.

/// A value of the metadata, encoded.
pub struct Value(pub u32, pub Vec<u8>);

pub fn text(t: &str) -> Value {
    Value(8, string(t))
}

pub fn number(n: u32) -> Value {
    Value(4, n.to_le_bytes().to_vec())
}

pub fn float(x: f32) -> Value {
    Value(6, x.to_le_bytes().to_vec())
}

pub fn truth(is: bool) -> Value {
    Value(7, vec![is.into()])
}

pub fn array(kind: u32, count: u64, bytes: &[u8]) -> Value {
    let mut all = kind.to_le_bytes().to_vec();
    all.extend(count.to_le_bytes());
    all.extend(bytes);
    Value(9, all)
}

pub fn texts<'a>(list: impl IntoIterator<Item = &'a str>) -> Value {
    let all: Vec<Vec<u8>> = list.into_iter().map(string).collect();
    array(8, all.len() as u64, &all.concat())
}

fn string(t: &str) -> Vec<u8> {
    let mut bytes = (t.len() as u64).to_le_bytes().to_vec();
    bytes.extend(t.as_bytes());
    bytes
}

/// A file to be.
#[derive(Default)]
pub struct Gguf {
    values: Vec<(String, Value)>,
    /// Name, extents as the file has them, type, bytes.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Gguf {
    pub fn value(mut self, key: &str, value: Value) -> Self {
        self.values.push((key.into(), value));
        self
    }

    pub fn tensor(self, name: &str, extents: &[u64], kind: u32, bytes: usize) -> Self {
        self.tensor_of(name, extents, kind, vec![0; bytes])
    }

    pub fn tensor_of(mut self, name: &str, extents: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push((name.into(), extents.to_vec(), kind, bytes));
        self
    }

    /// The metadata of a small model of one block, without tensors.
    pub fn small(architecture: &str) -> Self {
        let counts = [
            ("block_count", 1),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
        ];
        let file = Self::default().value("general.architecture", text(architecture));
        counts.into_iter().fold(file, |f, (key, n)| f.value(&format!("{architecture}.{key}"), number(n)))
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, Value(kind, bytes)) in &self.values {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut offset = 0u64;
        for (name, extents, kind, bytes) in &self.tensors {
            out.extend(string(name));
            out.extend((extents.len() as u32).to_le_bytes());
            extents.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (bytes.len() as u64).next_multiple_of(32);
        }
        for (.., bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }
}
