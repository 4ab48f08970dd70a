//! Columns of Parquet that are in the same list, and do not agree on how long it is.

use ::parquet::basic::Compression;

use super::{
    lists::{INDEXES, PLAIN, levels, page, run},
    pages::{DATA, DICTIONARY, of_schema},
    *,
};

const FIELDS: &str = "repeated group g { required binary text (UTF8); repeated binary more (UTF8); }";

/// Levels of a page, and how many there are.
type Levels = (Vec<Vec<u8>>, Vec<Vec<u8>>, i32);

/// What is said of two columns of such a list, each with pages of levels and how many there are; their values are nothing.
fn told(columns: [&[Levels]; 2]) -> String {
    let dictionary = page(DICTIONARY, PLAIN, 0, 1, &[0; 4]);
    let pages = columns.map(|pages| {
        let all = pages.iter().flat_map(|(repetitions, definitions, n)| {
            let body = [levels(repetitions), levels(definitions), vec![1], run(0, i32::MAX as u32)].concat();
            page(DATA, INDEXES, 0, *n, &body)
        });
        [dictionary.clone(), all.collect()].concat()
    });
    let [first, second] = &pages;
    let columns = [(&first[..], first.len()), (&second[..], second.len())];
    message("d.parquet", of_schema(FIELDS, Compression::UNCOMPRESSED, &columns))
}

const APART: &str = "column \"g.more\": its lists are not as long as those of the column before";

fn agree(text: &str) -> bool {
    !text.contains(APART) && !text.contains("page 2")
}

/// A row would take a list of ten thousand for each of its hundred thousand values, from as many rows.
#[test]
fn a_row_that_takes_the_values_of_others_is_refused() {
    const N: u32 = 100_000;
    const LONG: u32 = 10_000;
    let text = vec![(vec![run(0, 1), run(1, N - 1)], vec![run(1, N)], N as i32)];
    let rows = (0..N).flat_map(|_| [run(0, 1), run(2, LONG - 1)]).collect();
    let more = vec![(rows, vec![run(2, N * LONG)], (N * LONG) as i32)];
    let text = told([&text, &more]);
    assert!(text.contains(APART), "{text}");
}

/// Runs and pages are cut in different places.
#[test]
fn columns_that_agree_are_read_as_they_are_cut() {
    let text = vec![(vec![run(0, 1), run(1, 2)], vec![run(1, 3)], 3)];
    let one = (vec![run(0, 1), run(1, 1), run(2, 3), run(1, 1)], vec![run(2, 5), run(1, 1)], 6);
    let cut = [
        (vec![run(0, 1)], vec![run(2, 1)], 1),
        (vec![run(1, 1), run(2, 1), run(2, 1)], vec![run(2, 1), run(2, 2)], 3),
        (vec![run(2, 1), run(1, 1)], vec![run(2, 1), run(1, 1)], 2),
    ];
    for more in [&[one][..], &cut] {
        let text = told([&text, more]);
        assert!(agree(&text), "{text}");
    }
}

#[test]
fn columns_that_do_not_agree_are_told() {
    let three = vec![(vec![run(0, 1), run(1, 2)], vec![run(1, 3)], 3)];
    // Fewer, empty ones, and a row more.
    for (repetitions, definitions, n) in [
        (vec![run(0, 1), run(1, 1)], vec![run(2, 2)], 2),
        (vec![run(0, 1)], vec![run(0, 1)], 1),
        (vec![run(0, 1), run(1, 1), run(0, 1)], vec![run(2, 3)], 3),
    ] {
        let text = told([&three, &[(repetitions, definitions, n)]]);
        assert!(text.contains(APART), "{text}");
    }
    // An empty page is the end of the column to the library, behind which it goes on.
    let one = (vec![run(0, 1), run(1, 1)], vec![run(2, 2)], 2);
    let other = (vec![run(1, 1)], vec![run(2, 1)], 1);
    assert!(agree(&told([&three, &[one.clone(), other.clone()]])));
    let text = told([&three, &[one, (vec![], vec![], 0), other]]);
    assert!(text.contains("page 4 has values in lists that do not begin"), "{text}");
    // What goes on with a list that there is not.
    for (repetitions, definitions) in
        [(vec![run(1, 3)], vec![run(2, 3)]), (vec![run(0, 1), run(2, 2)], vec![run(1, 1), run(2, 2)])]
    {
        let text = told([&three, &[(repetitions, definitions, 3)]]);
        assert!(text.contains("page 2 has values in lists that do not begin"), "{text}");
    }
}
