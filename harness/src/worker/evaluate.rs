//! The harness's own evaluation of saved weights, whatever arm saved them: one forward pass by the native model.

use std::path::Path;

use chronibench_protocol::event::Failure;
use serde_json::Value;

use super::{native, read_spec};
use crate::{audit::EvaluateSpec, error::Exit};

/// Prints the loss of every batch of the plan, for each set of weights: `[[[sum, tokens], …], …]`.
pub fn run(path: &Path) -> Result<Value, (Exit, Failure)> {
    let spec: EvaluateSpec = read_spec(path).map_err(|f| (Exit::Usage, f))?;
    let losses =
        spec.weights.iter().map(|files| native::evaluate(&spec, files)).collect::<Result<Vec<_>, _>>()?;
    Ok(serde_json::to_value(losses).expect("plain data"))
}
