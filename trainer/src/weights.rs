//! Parameters from and to safetensors files, one tensor at a time.

use std::path::Path;

use chronicals_kernels::gpu::Elem;

use crate::{
    backend::{Backend, View},
    error::Error,
    formats::{
        self, Tensors,
        write::{self, Entry, Stored},
    },
    params::{Layout, Tensor},
};

/// Fills `values` with the tensors of `layout` from a file or folder, as [`formats::open`] finds it.
///
/// # Errors
/// The file is damaged, or a tensor is missing, misshapen, of another type, or not in the layout.
pub fn load<B: Backend>(b: &mut B, layout: &Layout, values: View, path: &Path) -> Result<(), Error> {
    let file = formats::open(path)?;
    check(&*file, layout)?;
    for t in &layout.tensors {
        b.write(values.slice(t.offset, t.len()), &read(&*file, &t.name)?)?;
    }
    Ok(())
}

/// A tensor, all of whose values are numbers.
///
/// # Errors
/// One is not, or it cannot be read.
pub fn read(file: &dyn Tensors, name: &str) -> Result<Vec<f32>, Error> {
    let values = file.read(name)?;
    // A fold runs at the speed of memory, a search does not.
    let whole = values.iter().fold(true, |all, x| all & x.is_finite());
    let odd = if whole { None } else { values.iter().position(|x| !x.is_finite()) };
    match odd {
        None => Ok(values),
        Some(i) => Err(Error::new(
            format!("value {i} of the weights is {}", values[i]),
            format!("{name} in {}", file.place()),
        )
        .hint("take weights from before the training that left these diverged")),
    }
}

/// As [`load`], from whichever of `files` has a tensor. What else they have is not looked at: files hold model and adapters together.
///
/// # Errors
/// A file is damaged, or a tensor is in none of them, misshapen or of another type.
pub fn load_from<B: Backend>(b: &mut B, layout: &Layout, values: View, files: &[&Path]) -> Result<(), Error> {
    let files = files.iter().map(|p| formats::open(p)).collect::<Result<Vec<_>, _>>()?;
    for t in &layout.tensors {
        let file = files.iter().find(|f| f.shape(&t.name).is_some()).or(files.first());
        let file =
            file.ok_or_else(|| Error::new("no file of weights", t.name.clone()).hint("name at least one"))?;
        check_tensor(&**file, t)?;
        b.write(values.slice(t.offset, t.len()), &read(&**file, &t.name)?)?;
    }
    Ok(())
}

/// Checks that a file has the tensors of a layout, each in its shape, and no others that belong to a model.
///
/// # Errors
/// It has not, or it has a head of its own where the embedding is the head; the first such tensor is named.
pub fn check(file: &dyn Tensors, layout: &Layout) -> Result<(), Error> {
    // A tied head is often stored all the same, and old Llama files carry their rotary frequencies.
    let harmless = |name: &str| name == HEAD || name.ends_with("rotary_emb.inv_freq");
    let mut names = file.names();
    names.retain(|n| layout.get(n).is_none() && !harmless(n));
    if let Some(extra) = names.first() {
        return Err(Error::new(
            format!("tensor '{extra}' does not belong to this model ({} such in all)", names.len()),
            file.place(),
        )
        .hint("give the config.json that came with these weights"));
    }
    layout.tensors.iter().try_for_each(|t| check_tensor(file, t))?;
    check_tied(file, layout)
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A head that is stored beside a tied embedding must be the embedding, or it would be left out unsaid.
fn check_tied(file: &dyn Tensors, layout: &Layout) -> Result<(), Error> {
    let tied = layout.get(EMBEDDING).is_some() && layout.get(HEAD).is_none();
    if !tied || file.shape(HEAD).is_none() || file.equal(EMBEDDING, HEAD)? {
        return Ok(());
    }
    Err(Error::new(
        format!("tie_word_embeddings: true, but '{HEAD}' is not equal to '{EMBEDDING}'"),
        file.place(),
    )
    .hint("set tie_word_embeddings: false in config.json to use the head that is stored, or take it out of the weights"))
}

fn check_tensor(file: &dyn Tensors, t: &Tensor) -> Result<(), Error> {
    let bad = |what: String| {
        Err(Error::new(what, format!("{} in {}", t.name, file.place()))
            .hint("give the config.json that came with these weights"))
    };
    match file.shape(&t.name) {
        None => bad("a tensor is missing".into()),
        Some(shape) if shape != t.shape => bad(format!("shape {shape:?}, expected {:?}", t.shape)),
        Some(_) => Ok(()),
    }
}

/// Tensors of layouts, read from a backend when they are written.
fn entries<'a, B: Backend>(b: &'a B, parts: &[(&'a Layout, View)]) -> Vec<Entry<'a>> {
    let of = |&(layout, values): &(&'a Layout, View)| {
        layout
            .tensors
            .iter()
            .map(move |t| Entry::new(&t.name, &t.shape, move || b.read(values.slice(t.offset, t.len()))))
    };
    parts.iter().flat_map(of).collect()
}

/// Reads every tensor, and looks for values that are no numbers.
///
/// # Errors
/// There are such, of which the first tensor is named; or the device fails.
pub fn check_finite<B: Backend>(b: &B, layout: &Layout, values: View) -> Result<(), Error> {
    for t in &layout.tensors {
        if b.read(values.slice(t.offset, t.len()))?.iter().any(|x| !x.is_finite()) {
            return Err(Error::new("training diverged: parameters are not finite", t.name.as_str())
                .hint("lower learning_rate, add warmup_steps, or set max_grad_norm"));
        }
    }
    Ok(())
}

/// Writes layouts with their values as one f32 safetensors file, atomically.
///
/// # Errors
/// The file cannot be written, or the device fails; a file that was there before is left as it was.
pub fn save<B: Backend>(b: &B, parts: &[(&Layout, View)], path: &Path) -> Result<(), Error> {
    write::tensors(&entries(b, parts), Stored::F32, path)
}

/// Rounds every tensor of a file to bf16, to nearest even, one tensor at a time; they stay f32 in it.
///
/// # Errors
/// The file is damaged or cannot be written; it is left as it was then.
pub fn round_to_bf16(path: &Path) -> Result<(), Error> {
    let file = formats::open(path)?;
    let rounded = |name: &str| Ok(Elem::Bf16.decode(&Elem::Bf16.encode(&file.read(name)?)));
    let shaped = file.names().into_iter().filter_map(|name| Some((name, file.shape(name)?)));
    let entries: Vec<Entry<'_>> =
        shaped.map(|(name, shape)| Entry::new(name, shape, move || rounded(name))).collect();
    write::tensors(&entries, Stored::F32, path)
}
