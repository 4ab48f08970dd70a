//! Running text: `{"text": …}`.

use super::{FieldError, Fields, Format, Record, Role, any};

pub(super) const FORMAT: Format = Format { name: "text", required: &[Role::Text], read, fits: any };

fn read(fields: &Fields) -> Result<Record, FieldError> {
    Ok(Record::Text { text: fields.text(Role::Text)? })
}
