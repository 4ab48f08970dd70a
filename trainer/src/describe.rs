//! What this build offers, for people and for scenarios to be checked against.

use std::collections::BTreeMap;

use chronibench_protocol::record::Packing;
use chronicals_kernels::Target;
use serde::Serialize;

/// The choices a configuration can make.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Seam → variants, on a processor.
    pub seams: BTreeMap<&'static str, Vec<&'static str>>,
    /// Seam → variants, on a GPU.
    pub cuda_seams: BTreeMap<&'static str, Vec<&'static str>>,
    /// `model_type`s of a Hugging Face config.
    pub models: Vec<&'static str>,
    /// Training methods.
    pub methods: Vec<&'static str>,
    /// Packing strategies.
    pub packing: Vec<&'static str>,
}

/// Lists everything.
pub fn description() -> Description {
    let seams = |target: Target| target.seams().iter().map(|&s| (s.name(), target.variants(s))).collect();
    Description {
        seams: seams(Target::Cpu),
        cuda_seams: seams(Target::Cuda),
        models: crate::config::Family::names(),
        methods: vec!["full", "lora"],
        packing: [Packing::None, Packing::Bfd, Packing::Ff, Packing::PaddingFree].map(Packing::name).to_vec(),
    }
}
