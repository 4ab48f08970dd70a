//! Comparison with the reference, and its verdict.

use crate::cases::values;

/// One output, at the places that were looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Output, e.g. `dweight`.
    pub what: String,
    /// Values compared.
    pub values: usize,
    /// Largest error, in units of the scale; NaN where a value is no number.
    pub error: f64,
    /// Largest error allowed, in the same units.
    pub tolerance: f64,
    /// Place of the largest error in the output.
    pub index: usize,
    /// What the kernel left there.
    pub got: f64,
    /// What the reference says.
    pub want: f64,
}

impl Compared {
    /// Whether every value is a number, and near enough.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance
    }
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Compared { what, index, got, want, error, tolerance, .. } = self;
        write!(f, "{what}[{index}] is {got:e}, not {want:e}: off by {error:.2e}, {tolerance:.1e} allowed")
    }
}

/// Values at places of an output, and what they should be.
#[derive(Clone, Debug, Default)]
pub struct Look {
    places: Vec<usize>,
    got: Vec<f32>,
    want: Vec<f64>,
    /// The largest value that should be in the row of each.
    of_row: Vec<f64>,
}

impl Look {
    /// Adds consecutive values from place `start` on.
    ///
    /// # Panics
    /// If there are not as many of one as of the other.
    pub fn add(&mut self, start: usize, got: Vec<f32>, want: Vec<f64>) {
        assert_eq!(got.len(), want.len(), "values at {start}");
        self.places.extend(start..start + got.len());
        let largest = want.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
        self.of_row.extend(vec![largest; got.len()]);
        self.got.extend(got);
        self.want.extend(want);
    }

    /// Errors in units of the largest value that should be there.
    pub fn against_largest(self, what: &str, tolerance: f64) -> Compared {
        let largest = self.largest();
        self.worst(what, tolerance, |_| largest)
    }

    /// Errors in units of the largest value that should be in the same row, or a thousandth of the largest of all.
    pub fn against_rows(self, what: &str, tolerance: f64) -> Compared {
        let least = 1e-3 * self.largest();
        let scales: Vec<f64> = self.of_row.iter().map(|x| x.max(least)).collect();
        self.worst(what, tolerance, |i| scales[i])
    }

    /// The largest magnitude that should be there.
    pub fn largest(&self) -> f64 {
        self.of_row.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(*x))
    }

    /// Errors in units of `scale` of what should be there.
    pub fn against(self, what: &str, tolerance: f64, scale: impl Fn(f64) -> f64) -> Compared {
        let scales: Vec<f64> = self.want.iter().map(|x| scale(*x)).collect();
        self.worst(what, tolerance, |i| scales[i])
    }

    /// # Panics
    /// If there is nothing to look at.
    fn worst(self, what: &str, tolerance: f64, scale: impl Fn(usize) -> f64) -> Compared {
        let off = |i: usize| (f64::from(self.got[i]) - self.want[i]).abs() / scale(i);
        // NaN is the worst of all.
        let worse = |a: &usize, b: &usize| {
            let (a, b) = (off(*a), off(*b));
            a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
        };
        let worst = (0..self.got.len()).max_by(worse).expect("values to look at");
        Compared {
            what: what.into(),
            values: self.got.len(),
            error: off(worst),
            tolerance,
            index: self.places[worst],
            got: f64::from(self.got[worst]),
            want: self.want[worst],
        }
    }
}

/// Rows to look at: the first, the last, and `more` between them.
pub fn sample(rows: usize, more: usize) -> Vec<usize> {
    let between = values(11, more).into_iter().map(|v| ((f64::from(v) + 1.0) / 2.0 * rows as f64) as usize);
    let mut all: Vec<usize> = [0, rows.saturating_sub(1)].into_iter().chain(between).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(got: &[f32], want: &[f64]) -> Look {
        let mut look = Look::default();
        look.add(7, got.to_vec(), want.to_vec());
        look
    }

    #[test]
    fn the_worst_value_is_named() {
        let c = look(&[1.0, 2.0, 4.5], &[1.0, 2.1, 4.0]).against_largest("y", 0.1);
        assert_eq!((c.index, c.got, c.want, c.error), (9, 4.5, 4.0, 0.125));
        assert!(!c.holds());
        assert!(look(&[1.0, 2.0], &[1.0, 2.01]).against_largest("y", 0.1).holds());
    }

    #[test]
    fn what_is_no_number_never_holds() {
        for bad in [f32::NAN, f32::INFINITY] {
            let c = look(&[1.0, bad, 4.5], &[1.0, 2.1, 4.0]).against_largest("y", 1e30);
            assert_eq!(c.index, 8);
            assert!(!c.holds(), "{c}");
        }
    }

    #[test]
    fn samples_have_both_ends_and_no_row_twice() {
        assert_eq!(sample(1, 4), [0]);
        let rows = sample(1000, 5);
        assert_eq!((rows[0], *rows.last().unwrap()), (0, 999));
        assert!(rows.len() > 4 && rows.is_sorted_by(|a, b| a < b));
    }
}
