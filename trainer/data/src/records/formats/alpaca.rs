//! Stanford Alpaca: `{"instruction": …, "input": …, "output": …}`, the input optional.

use super::{FieldError, Fields, Format, Record, Role, any};

pub(super) const FORMAT: Format =
    Format { name: "alpaca", required: &[Role::Instruction, Role::Output], read, fits: any };

fn read(fields: &Fields) -> Result<Record, FieldError> {
    Ok(Record::Instruction {
        instruction: fields.text(Role::Instruction)?,
        input: fields.optional_text(Role::Input)?,
        output: fields.text(Role::Output)?,
    })
}
