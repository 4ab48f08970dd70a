//! What records look like. A format is one file: the keys that it demands and how it reads them.

mod alpaca;
mod completion;
mod conversation;
mod text;

use super::{
    Record,
    fields::{FieldError, Fields, Role, quoted},
};

/// A shape of records.
#[derive(Debug)]
pub struct Format {
    /// Name, e.g. `alpaca`.
    pub name: &'static str,
    /// What every record has.
    pub(super) required: &'static [Role],
    pub(super) read: fn(&Fields) -> Result<Record, FieldError>,
    /// What more the first record must be for the format to be recognised.
    fits: fn(&Fields) -> bool,
}

/// Every known format. The first that fits is taken.
pub const FORMATS: [&Format; 5] =
    [&conversation::MESSAGES, &conversation::SHAREGPT, &completion::FORMAT, &alpaca::FORMAT, &text::FORMAT];

/// The format of this name.
pub(super) fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.into_iter().find(|format| format.name == name)
}

/// The format that a file's first record has.
pub(super) fn recognise(fields: &Fields) -> Option<&'static Format> {
    let fits =
        |format: &&Format| format.required.iter().all(|&role| fields.has(role)) && (format.fits)(fields);
    FORMATS.into_iter().find(fits)
}

pub(super) fn names() -> String {
    FORMATS.map(|format| format!("`{}`", format.name)).join(", ")
}

pub(super) fn known() -> String {
    let describe = |format: &Format| {
        let keys = format.required.iter().map(|role| role.usual()[0]);
        format!("{} ({})", format.name, quoted(keys))
    };
    FORMATS.map(describe).join(", ")
}

fn any(_: &Fields) -> bool {
    true
}
