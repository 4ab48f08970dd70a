//! Stanford Alpaca: `{"instruction": …, "input": …, "output": …}`, the input optional.

use super::{FieldError, Fields, Format, Record};

pub(super) const FORMAT: Format = Format { name: "alpaca", required: &["instruction", "output"], read };

fn read(fields: &Fields) -> Result<Record, FieldError> {
    Ok(Record::Instruction {
        instruction: fields.text("instruction")?,
        input: fields.optional_text("input")?,
        output: fields.text("output")?,
    })
}
