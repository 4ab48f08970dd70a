//! What GPUs can do at most, for MFU: the same figures for the trainer and for reports on it.

/// Most bf16 GFLOP/s with f32 sums, without sparsity, of a GPU by its name: from the makers' data sheets. `None` for a variant that is
/// not in the list, such as a laptop's, or a part of a GPU.
pub fn peak_gflops(device: &str) -> Option<f64> {
    const GFLOPS: [(&str, f64); 12] = [
        ("GH200", 989.4e3),
        ("H200 NVL", 835.5e3),
        ("H200", 989.4e3),
        ("H100 PCIe", 756.5e3),
        ("H100 NVL", 835.5e3),
        ("H100", 989.4e3),
        ("A100", 312.0e3),
        ("L40S", 362.05e3),
        ("L40", 181.05e3),
        ("L4", 121.0e3),
        ("RTX 4090", 165.2e3),
        ("RTX 3090", 71.0e3),
    ];
    let words = |name: &'static str| name.split(' ');
    let has = |word: &str| parts(device).any(|part| part.eq_ignore_ascii_case(word));
    let is = |name| {
        words(name).all(has)
            && parts(device)
                .all(|part| says_nothing(part) || words(name).any(|w| w.eq_ignore_ascii_case(part)))
    };
    GFLOPS.iter().find(|(name, _)| is(name)).map(|(_, gflops)| *gflops)
}

/// Words of a device's name.
fn parts(device: &str) -> impl Iterator<Item = &str> {
    device.split([' ', '-']).filter(|part| !part.is_empty())
}

/// A word that does not change how fast a GPU computes: its maker, its memory, its socket.
fn says_nothing(part: &str) -> bool {
    let part = part.to_ascii_uppercase();
    let size = part.trim_end_matches('B').strip_suffix('G');
    ["NVIDIA", "GEFORCE", "PCIE"].contains(&part.as_str())
        || part.starts_with("HBM")
        || part.starts_with("SXM")
        || size.is_some_and(|n| n.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_that_of_the_whole_name() {
        let known = [
            ("NVIDIA H100 80GB HBM3", 989.4e3),
            ("NVIDIA H100 PCIe", 756.5e3),
            ("NVIDIA H200 NVL", 835.5e3),
            ("NVIDIA GH200 144G HBM3e", 989.4e3),
            ("NVIDIA A100-SXM4-80GB", 312.0e3),
            ("NVIDIA A100-PCIE-40GB", 312.0e3),
            ("NVIDIA L40S", 362.05e3),
            ("NVIDIA L40", 181.05e3),
            ("NVIDIA L4", 121.0e3),
            ("NVIDIA GeForce RTX 4090", 165.2e3),
        ];
        for (name, gflops) in known {
            assert_eq!(peak_gflops(name), Some(gflops), "{name}");
        }
        for name in [
            "cpu",
            "NVIDIA",
            "NVIDIA H20",
            "NVIDIA L400",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA GeForce RTX 3090 Ti",
            "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            "GRID A100-10C",
        ] {
            assert_eq!(peak_gflops(name), None, "{name}");
        }
    }
}
