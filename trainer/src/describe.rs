//! What this build offers, for people and for scenarios to be checked against.

use std::collections::BTreeMap;

use chronibench_protocol::record::Packing;
use chronicals_kernels::{Seam, Variant};
use serde::Serialize;

/// The choices a configuration can make.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Seam → variants.
    pub seams: BTreeMap<&'static str, Vec<&'static str>>,
    /// `model_type`s of a Hugging Face config.
    pub models: Vec<&'static str>,
    /// Training methods.
    pub methods: Vec<&'static str>,
    /// Packing strategies.
    pub packing: Vec<&'static str>,
}

/// Lists everything.
pub fn description() -> Description {
    let variants = || Variant::ALL.map(Variant::name).to_vec();
    Description {
        seams: Seam::ALL.into_iter().map(|s| (s.name(), variants())).collect(),
        models: crate::config::Family::names(),
        methods: vec!["full", "lora"],
        packing: [Packing::None, Packing::Bfd, Packing::Ff].map(Packing::name).to_vec(),
    }
}
