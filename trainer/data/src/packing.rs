//! Filling rows of fixed capacity with samples of different lengths.
//!
//! A *bin* is one row: the indices of the samples in it. Every strategy puts every sample into exactly one bin, and
//! gives the same answer for the same input. Bin packing is NP-hard; both strategies here are the classical
//! approximations, O(n log n):
//!
//! - *first-fit*: at most ⌊1.7 · OPT⌋ bins (Dósa and Sgall, 2013);
//! - *best-fit decreasing*: 11/9 · OPT + O(1) bins (Johnson et al., 1974).

use std::collections::BTreeSet;

use chronibench_protocol::record::Packing;

/// A sample that no bin can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "sample {index} has {length} tokens, a row holds {capacity}; raise max_length, or truncate or refuse over-long samples when tokenising"
)]
pub struct PackError {
    /// Index into the lengths.
    pub index: usize,
    /// Its length, tokens.
    pub length: usize,
    /// Capacity of a bin, tokens.
    pub capacity: usize,
}

/// Distributes samples of `lengths` tokens over bins of `capacity` tokens.
///
/// - `None`, `PaddingFree`: one bin a sample, in the given order.
/// - `Bfd`: longest first (ties in the given order), each into the fullest bin that still holds it (ties: the oldest
///   bin), else into a new one.
/// - `Ff`: in the given order, each into the oldest bin that still holds it, else into a new one.
///
/// # Errors
/// When a sample is longer than `capacity`: it is named, never dropped or cut.
pub fn pack(lengths: &[usize], capacity: usize, strategy: Packing) -> Result<Vec<Vec<usize>>, PackError> {
    if let Some((index, &length)) = lengths.iter().enumerate().find(|&(_, &n)| n > capacity) {
        return Err(PackError { index, length, capacity });
    }
    Ok(match strategy {
        Packing::None | Packing::PaddingFree => (0..lengths.len()).map(|i| vec![i]).collect(),
        Packing::Bfd => best_fit_decreasing(lengths, capacity),
        Packing::Ff => first_fit(lengths, capacity),
    })
}

/// Share of the slots of `bins` that hold a token, in 0..=1; 0 without bins.
pub fn efficiency(lengths: &[usize], bins: &[Vec<usize>], capacity: usize) -> f64 {
    let real: usize = bins.iter().flatten().map(|&i| lengths[i]).sum();
    real as f64 / (bins.len() * capacity).max(1) as f64
}

fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // (room left, bin): the first entry not below (length, 0) is the tightest fit.
    let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
    for i in order {
        let fit = open.range((lengths[i], 0)..).next().copied();
        let (room, bin) = fit.unwrap_or((capacity, bins.len()));
        open.remove(&(room, bin));
        open.insert((room - lengths[i], bin));
        if bin == bins.len() {
            bins.push(Vec::new());
        }
        bins[bin].push(i);
    }
    bins
}

fn first_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    // A tree of maxima over the room of as many bins as there are samples. Untouched bins have all their room, so the
    // leftmost leaf with enough room is an opened bin if one fits, and the next new one otherwise.
    let leaves = lengths.len().next_power_of_two();
    let mut room = vec![capacity; 2 * leaves];
    let mut bins: Vec<Vec<usize>> = Vec::new();
    for (i, &length) in lengths.iter().enumerate() {
        let mut node = 1;
        while node < leaves {
            node *= 2;
            if room[node] < length {
                node += 1;
            }
        }
        let bin = node - leaves;
        if bin == bins.len() {
            bins.push(Vec::new());
        }
        bins[bin].push(i);
        room[node] -= length;
        while node > 1 {
            node /= 2;
            room[node] = room[2 * node].max(room[2 * node + 1]);
        }
    }
    bins
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same two rules by plain scans over all bins.
    fn by_scan(lengths: &[usize], capacity: usize, strategy: Packing) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        if strategy == Packing::Bfd {
            order.sort_by(|&a, &b| lengths[b].cmp(&lengths[a]).then(a.cmp(&b)));
        }
        let mut bins: Vec<(usize, Vec<usize>)> = Vec::new();
        for i in order {
            let mut fits = (0..bins.len()).filter(|&b| bins[b].0 >= lengths[i]);
            let bin = match strategy {
                Packing::Bfd => fits.min_by_key(|&b| bins[b].0),
                _ => fits.next(),
            };
            let bin = bin.unwrap_or_else(|| {
                bins.push((capacity, Vec::new()));
                bins.len() - 1
            });
            bins[bin].0 -= lengths[i];
            bins[bin].1.push(i);
        }
        bins.into_iter().map(|(_, items)| items).collect()
    }

    /// The least number of bins, by branch and bound: each item in turn into every distinct room, or a new bin.
    fn exact(lengths: &[usize], capacity: usize) -> usize {
        fn branch(items: &[usize], rooms: &mut Vec<usize>, capacity: usize, best: &mut usize) {
            let Some((&item, rest)) = items.split_first() else {
                *best = rooms.len();
                return;
            };
            let spare: usize = rooms.iter().sum();
            let overflow = items.iter().sum::<usize>().saturating_sub(spare).div_ceil(capacity);
            if rooms.len() + overflow >= *best {
                return;
            }
            let mut tried = Vec::new();
            for bin in 0..rooms.len() {
                let room = rooms[bin];
                if room >= item && !tried.contains(&room) {
                    tried.push(room);
                    rooms[bin] -= item;
                    branch(rest, rooms, capacity, best);
                    rooms[bin] += item;
                }
            }
            if rooms.len() + 1 < *best {
                rooms.push(capacity - item);
                branch(rest, rooms, capacity, best);
                rooms.pop();
            }
        }
        let mut sorted = lengths.to_vec();
        sorted.sort_by(|a, b| b.cmp(a));
        let mut best = lengths.len() + 1;
        branch(&sorted, &mut Vec::new(), capacity, &mut best);
        best
    }

    const ALL: [Packing; 3] = [Packing::None, Packing::Bfd, Packing::Ff];

    fn any_packing() -> impl Strategy<Value = Packing> {
        prop::sample::select(ALL.to_vec())
    }

    proptest! {
        #[test]
        fn every_sample_exactly_once_and_no_bin_over_capacity(
            lengths in prop::collection::vec(0usize..=64, 0..200), strategy in any_packing(),
        ) {
            let bins = pack(&lengths, 64, strategy).unwrap();
            let mut seen: Vec<usize> = bins.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for bin in &bins {
                prop_assert!(!bin.is_empty());
                prop_assert!(bin.iter().map(|&i| lengths[i]).sum::<usize>() <= 64);
            }
        }

        #[test]
        fn the_fast_search_finds_what_a_scan_finds(
            lengths in prop::collection::vec(0usize..=32, 0..120), strategy in prop::sample::select(vec![Packing::Bfd, Packing::Ff]),
        ) {
            prop_assert_eq!(pack(&lengths, 32, strategy).unwrap(), by_scan(&lengths, 32, strategy));
        }

        #[test]
        fn bfd_is_within_11_9_of_the_optimum(lengths in prop::collection::vec(1usize..=30, 1..=14)) {
            let (bins, opt) = (pack(&lengths, 30, Packing::Bfd).unwrap().len(), exact(&lengths, 30));
            prop_assert!(opt <= bins && bins as f64 <= 11.0 / 9.0 * opt as f64 + 1.0, "{} bins, optimum {}", bins, opt);
        }

        #[test]
        fn ff_is_within_17_10_of_the_optimum(lengths in prop::collection::vec(1usize..=30, 1..=14)) {
            let (bins, opt) = (pack(&lengths, 30, Packing::Ff).unwrap().len(), exact(&lengths, 30));
            prop_assert!(opt <= bins && bins as f64 <= 1.7 * opt as f64 + 1.0, "{} bins, optimum {}", bins, opt);
        }
    }

    #[test]
    fn the_exact_packer_beats_both_heuristics_where_it_can() {
        let lengths = [4, 4, 5, 3, 2, 2];
        assert_eq!(exact(&lengths, 10), 2);
        assert_eq!(pack(&lengths, 10, Packing::Bfd).unwrap(), [vec![2, 0], vec![1, 3, 4], vec![5]]);
        assert_eq!(pack(&lengths, 10, Packing::Ff).unwrap(), [vec![0, 1, 4], vec![2, 3, 5]]);
        assert_eq!(exact(&[], 10), 0);
    }

    #[test]
    fn a_too_long_sample_is_named() {
        for strategy in ALL {
            let err = pack(&[3, 9, 12], 8, strategy).unwrap_err();
            assert_eq!(err, PackError { index: 1, length: 9, capacity: 8 });
        }
    }

    #[test]
    fn efficiency_is_real_over_slots() {
        let lengths = [4, 3, 1];
        assert_eq!(efficiency(&lengths, &pack(&lengths, 4, Packing::None).unwrap(), 4), 8.0 / 12.0);
        assert_eq!(efficiency(&lengths, &pack(&lengths, 4, Packing::Bfd).unwrap(), 4), 1.0);
        assert_eq!(efficiency(&[], &[], 4), 0.0);
    }
}
