//! The oracle: the forward equation in f64, as written. Gradients are checked by finite differences of it.

/// `act_TF` of `gate_up_T2F`.
pub fn forward(gate_up_T2F: &[f64], ffn: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let (gate, up) = row.split_at(ffn);
        gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    };
    gate_up_T2F.chunks(2 * ffn).flat_map(row).collect()
}
