//! What the workspace-level tests share: goldens, and models built from them.

pub mod golden;
pub mod synthetic;
