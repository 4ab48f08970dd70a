//! Parameters from and to safetensors files, one tensor at a time.

use std::{
    borrow::Cow,
    cell::OnceCell,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use chronicals_kernels::{KernelPlan, gpu::Elem};
use safetensors::{Dtype, tensor::Metadata};

use crate::{
    backend::{Allocator, Backend, Component, View, cpu::CpuBackend},
    config::ModelConfig,
    error::Error,
    model::Capacity,
    params::{Layout, Tensor},
};

/// No honest header is larger; a damaged length would otherwise ask for that much memory.
const MAX_HEADER: u64 = 100 << 20;

/// Fills `values` with the tensors of `layout` from the file at `path` (F32 or BF16).
///
/// # Errors
/// The file is damaged, or a tensor is missing, misshapen, of another type, or not in the layout.
pub fn load<B: Backend>(b: &mut B, layout: &Layout, values: View, path: &Path) -> Result<(), Error> {
    let mut file = File::open(path).map_err(|e| Error::io(path, &e))?;
    let (start, meta) = read_header(&mut file, path)?;
    check_names(&meta, layout, path)?;
    for t in &layout.tensors {
        let data = read_tensor(&mut file, start, &meta, t, path)?;
        b.write(values.slice(t.offset, t.len()), &data)?;
    }
    Ok(())
}

fn read_header(file: &mut File, path: &Path) -> Result<(u64, Metadata), Error> {
    let damaged = |what: String| {
        Error::new(format!("not a whole safetensors file: {what}"), path.display().to_string())
            .hint("fetch or write the file again")
    };
    let size = file.metadata().map_err(|e| Error::io(path, &e))?.len();
    let mut head = [0u8; 8];
    file.read_exact(&mut head).map_err(|_| damaged("shorter than 8 bytes".into()))?;
    let n = u64::from_le_bytes(head);
    if n > MAX_HEADER || n + 8 > size {
        return Err(damaged(format!("it claims a header of {n} bytes in a file of {size}")));
    }
    let mut header = vec![0; n as usize];
    file.read_exact(&mut header).map_err(|e| Error::io(path, &e))?;
    let meta: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(e.to_string()))?;
    let data = size - 8 - n;
    for (name, info) in meta.tensors() {
        let (begin, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        if begin > end || end as u64 > data || bits != Some((end - begin) * 8) {
            return Err(damaged(format!("'{name}' is said to lie at bytes {begin}..{end} of {data}")));
        }
    }
    Ok((8 + n, meta))
}

fn check_names(meta: &Metadata, layout: &Layout, path: &Path) -> Result<(), Error> {
    // A tied head is often stored all the same, and old Llama files carry their rotary frequencies.
    let harmless = |name: &str| name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq");
    let mut names = meta.offset_keys();
    names.retain(|n| layout.get(n).is_none() && !harmless(n));
    match names.first() {
        Some(extra) => Err(Error::new(
            format!("tensor '{extra}' does not belong to this model ({} such in all)", names.len()),
            path.display().to_string(),
        )
        .hint("give the config.json that came with these weights")),
        None => Ok(()),
    }
}

fn read_tensor(
    file: &mut File,
    start: u64,
    meta: &Metadata,
    t: &Tensor,
    path: &Path,
) -> Result<Vec<f32>, Error> {
    let at = || format!("{} in {}", t.name, path.display());
    let info = meta.info(&t.name).ok_or_else(|| {
        Error::new("a tensor is missing", at()).hint("give the config.json that came with these weights")
    })?;
    if info.shape != t.shape {
        return Err(Error::new(format!("shape {:?}, expected {:?}", info.shape, t.shape), at())
            .hint("give the config.json that came with these weights"));
    }
    let (begin, end) = info.data_offsets;
    let mut bytes = vec![0; end - begin];
    file.seek(SeekFrom::Start(start + begin as u64)).map_err(|e| Error::io(path, &e))?;
    file.read_exact(&mut bytes).map_err(|e| Error::io(path, &e))?;
    match info.dtype {
        Dtype::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        Dtype::BF16 => {
            let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            Ok(bytes.as_chunks::<2>().0.iter().map(widen).collect())
        }
        other => Err(Error::new(format!("dtype {other:?} is not supported"), at())
            .hint("convert the weights to F32 or BF16")),
    }
}

/// A tensor of a backend, copied to the host only while it is being written.
struct Lazy<'a, B> {
    backend: &'a B,
    view: View,
    shape: &'a [usize],
    /// The writer's interface has no errors: the first one waits here.
    failed: &'a OnceCell<Error>,
}

impl<B: Backend> safetensors::View for &Lazy<'_, B> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.backend.read(self.view).unwrap_or_else(|e| {
            let _ = self.failed.set(e);
            vec![f32::NAN; self.view.len]
        });
        values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
    }
    fn data_len(&self) -> usize {
        4 * self.view.len
    }
}

/// Writes layouts with their values as one f32 safetensors file, atomically.
///
/// # Errors
/// The file cannot be written, or the device fails; a file that was there before is left as it was.
pub fn save<B: Backend>(b: &B, parts: &[(&Layout, View)], path: &Path) -> Result<(), Error> {
    let failed = &OnceCell::new();
    let lazies: Vec<(&str, Lazy<'_, B>)> = parts
        .iter()
        .flat_map(|&(layout, values)| {
            layout.tensors.iter().map(move |t| {
                let view = values.slice(t.offset, t.len());
                (t.name.as_str(), Lazy { backend: b, view, shape: &t.shape, failed })
            })
        })
        .collect();
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Temporary files are private; weights are for everybody whom the umask lets in.
    let open = std::fs::Permissions::from_mode(0o666);
    let temporary =
        tempfile::Builder::new().permissions(open).tempfile_in(dir).map_err(|e| Error::io(path, &e))?;
    safetensors::serialize_to_file(lazies.iter().map(|(n, l)| (*n, l)), None, temporary.path()).map_err(
        |e| {
            Error::new(format!("cannot write weights: {e}"), path.display().to_string())
                .hint("check the disk")
        },
    )?;
    if let Some(e) = failed.get() {
        return Err(e.clone());
    }
    temporary.persist(path).map_err(|e| Error::io(path, &e.error))?;
    Ok(())
}

/// Rounds every tensor of a file to bf16, to nearest even; they stay f32 in it.
///
/// # Errors
/// As [`load`] and [`save`], and when the config cannot be read.
pub fn round_to_bf16(config: &Path, path: &Path) -> Result<(), Error> {
    let c = ModelConfig::load(config)?;
    let layout = Layout::model(&c);
    let capacity = Capacity { tokens: 1, row_slots: 1 };
    let mut b = CpuBackend::new(&c, capacity, KernelPlan::default(), Default::default());
    let values = b.alloc(Component::Weights, layout.len());
    load(&mut b, &layout, values, path)?;
    for t in &layout.tensors {
        let view = values.slice(t.offset, t.len());
        let rounded = Elem::Bf16.decode(&Elem::Bf16.encode(&b.read(view)?));
        b.write(view, &rounded)?;
    }
    save(&b, &[(&layout, values)], path)
}
