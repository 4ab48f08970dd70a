//! The oracle: the equations in f64, as written. Gradients of the kernels are checked by finite differences of the forward.

/// `act_TF` of `gate_up_T2F`.
pub fn forward(gate_up_T2F: &[f64], ffn: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let (gate, up) = row.split_at(ffn);
        gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    };
    gate_up_T2F.chunks(2 * ffn).flat_map(row).collect()
}

/// The gradient of `gate_up_T2F`, given that of the activation.
pub fn backward(gate_up_T2F: &[f64], dact_TF: &[f64], ffn: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(gate_up_T2F.len());
    for (row, dact) in gate_up_T2F.chunks(2 * ffn).zip(dact_TF.chunks(ffn)) {
        let (gate, up) = row.split_at(ffn);
        let sigma: Vec<f64> = gate.iter().map(|g| 1.0 / (1.0 + (-g).exp())).collect();
        out.extend((0..ffn).map(|j| dact[j] * up[j] * sigma[j] * (1.0 + gate[j] * (1.0 - sigma[j]))));
        out.extend((0..ffn).map(|j| dact[j] * gate[j] * sigma[j]));
    }
    out
}
