use super::{cases::*, *};
use crate::{cases::values, testing::*};

fn ids(case: Case) -> Vec<u32> {
    (0..case.tokens).map(|t| ((t * 31 + 5) % case.vocabulary) as u32).collect()
}

#[test]
fn forward_is_a_gather() {
    for case in TESTS {
        let (ids, table) = (ids(case), values(case.seed, case.vocabulary * case.hidden));
        let mut x = poisoned(case.tokens * case.hidden);
        forward(&ids, &table, &mut x, case.hidden);
        assert_eq!(wide(&x), reference::forward(&ids, &wide(&table), case.hidden), "{}", case.name);
    }
}

#[test]
fn backward_adds_every_token_to_its_row() {
    for case in TESTS {
        let (ids, dx) = (ids(case), values(case.seed, case.tokens * case.hidden));
        let prior = values(case.seed + 1, case.vocabulary * case.hidden);
        let (mut got, mut want) = (prior.clone(), wide(&prior));
        backward(&ids, &dx, &mut got, case.hidden);
        reference::backward(&ids, &wide(&dx), &mut want, case.hidden);
        assert_close(case.name, &got, &want, 2e-6);
    }
}

#[test]
fn backward_agrees_with_finite_differences() {
    for case in TESTS {
        let (ids, table) = (ids(case), values(case.seed, case.vocabulary * case.hidden));
        let dx = values(case.seed + 1, case.tokens * case.hidden);
        let mut dtable = vec![0.0; table.len()];
        backward(&ids, &dx, &mut dtable, case.hidden);
        let loss = |table: &[f64]| dot(&reference::forward(&ids, table, case.hidden), &wide(&dx));
        assert_gradient(case.name, loss, &table, &dtable);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for case in TESTS {
        let (ids, dx) = (ids(case), values(case.seed, case.tokens * case.hidden));
        assert_same_for_any_threads(|| {
            let mut dtable = values(9, case.vocabulary * case.hidden);
            backward(&ids, &dx, &mut dtable, case.hidden);
            dtable
        });
    }
}

#[test]
fn no_tokens() {
    forward(&[], &[1.0, 2.0], &mut [], 2);
    let mut dtable = [1.0, 2.0];
    backward(&[], &[], &mut dtable, 2);
    assert_eq!(dtable, [1.0, 2.0]);
}

#[test]
#[should_panic(expected = "a token id is not below 2")]
fn unknown_id() {
    backward(&[2], &[0.0; 3], &mut [0.0; 6], 3);
}
