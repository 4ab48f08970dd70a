//! The equation in f64: the oracle of the tests.

/// `x[t] = table[ids[t]]`.
pub fn forward(ids: &[u32], table_VD: &[f64], d: usize) -> Vec<f64> {
    ids.iter().flat_map(|&id| table_VD[id as usize * d..][..d].iter().copied()).collect()
}

/// `dtable[v] = dtable[v] + Σ dx[t] over t with ids[t] = v`.
pub fn backward(ids: &[u32], dx_TD: &[f64], dtable_VD: &mut [f64], d: usize) {
    for (t, &id) in ids.iter().enumerate() {
        for j in 0..d {
            dtable_VD[id as usize * d + j] += dx_TD[t * d + j];
        }
    }
}
