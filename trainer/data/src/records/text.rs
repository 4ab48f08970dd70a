//! Running text: `{"text": …}`.

use super::{FieldError, Fields, Format, Record};

pub(super) const FORMAT: Format = Format { name: "text", required: &["text"], read };

fn read(fields: &Fields) -> Result<Record, FieldError> {
    Ok(Record::Text { text: fields.text("text")? })
}
