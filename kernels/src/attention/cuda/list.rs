//! What kernels read of a batch's documents.

use crate::gpu::Ptr;

/// Tokens of a tile, as `BLOCK` in the kernels.
pub const BLOCK: usize = 128;

/// Tiles of so many tokens.
fn tiles(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

/// Words that a part of so many takes: the next one is 16-byte aligned.
fn padded(words: usize) -> usize {
    words.next_multiple_of(4)
}

/// Length of [`documents`], u32, for so many tokens.
pub fn documents_len(tokens: usize) -> usize {
    2 * padded(tiles(tokens)) + 2 * padded(tokens)
}

/// A batch's documents as the kernels read them, for `T` tokens in `n = ⌈T/128⌉` tiles of [`BLOCK`] consecutive tokens,
/// whatever documents these are of:
///
/// ```text
/// [by_queries: n | by_keys: n | begin: T | end: T]
/// ```
///
/// each part padded with zeros to whole 16 bytes. `begin` and `end` are those of every token's document, as token numbers.
/// `by_queries` and `by_keys` are the tiles, those with most work first and equal ones in order: a tile of queries walks from
/// the beginning of its first token's document to its last token, a tile of keys from its first token to the end of its last
/// token's document. Empty documents leave nothing; padding is a document of its own. The length depends on `T` alone, so that
/// a captured launch fits every batch.
///
/// # Panics
/// When `cu_seqlens` does not start at 0, or falls.
pub fn documents(cu_seqlens: &[u32]) -> Vec<u32> {
    assert_eq!(cu_seqlens.first(), Some(&0), "cu_seqlens starts at 0");
    assert!(cu_seqlens.is_sorted(), "cu_seqlens falls");
    let tokens = *cu_seqlens.last().expect("it has a first") as usize;
    // One number a token, of its document's [begin, end].
    let of_tokens = |pick: fn(&[u32; 2]) -> u32| -> Vec<u32> {
        let documents = cu_seqlens.array_windows::<2>();
        documents.flat_map(|document| (document[0]..document[1]).map(move |_| pick(document))).collect()
    };
    let (begin, end) = (of_tokens(|document| document[0]), of_tokens(|document| document[1]));
    let by = |work: &dyn Fn(usize, usize) -> u32| -> Vec<u32> {
        let mut order: Vec<u32> = (0..tiles(tokens) as u32).collect();
        order.sort_by_key(|&tile| {
            let first = tile as usize * BLOCK;
            std::cmp::Reverse(work(first, (first + BLOCK).min(tokens) - 1))
        });
        order
    };
    let by_queries = by(&|first, last| last as u32 + 1 - begin[first]);
    let by_keys = by(&|first, last| end[last] - first as u32);
    let mut all = Vec::with_capacity(documents_len(tokens));
    for part in [by_queries, by_keys, begin, end] {
        all.extend(part);
        all.resize(padded(all.len()), 0);
    }
    all
}

/// [`documents`] on the device.
#[derive(Clone, Copy, Debug)]
pub struct Documents {
    /// Where they begin, 16-byte aligned.
    pub list: Ptr,
    /// Tokens of the batch, `T`.
    pub tokens: usize,
}

impl Documents {
    /// Tiles, `n`.
    pub fn tiles(&self) -> usize {
        tiles(self.tokens)
    }

    /// The order of tiles by queries: `n` u32.
    pub fn by_queries(&self) -> Ptr {
        self.list
    }

    /// The order of tiles by keys: `n` u32.
    pub fn by_keys(&self) -> Ptr {
        self.list.offset(4 * padded(self.tiles()))
    }

    /// The first token of every token's document: `T` u32.
    pub fn begin(&self) -> Ptr {
        self.list.offset(4 * 2 * padded(self.tiles()))
    }

    /// One past the last token of every token's document: `T` u32.
    pub fn end(&self) -> Ptr {
        self.begin().offset(4 * padded(self.tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a list, found as the kernels find them.
    fn parts(list: &[u32], tokens: usize) -> [&[u32]; 4] {
        let at = Documents { list: Ptr(0), tokens };
        let part = |ptr: Ptr, len: usize| {
            assert!(ptr.0.is_multiple_of(16), "{ptr:?}");
            &list[ptr.0 as usize / 4..][..len]
        };
        let n = at.tiles();
        [part(at.by_queries(), n), part(at.by_keys(), n), part(at.begin(), tokens), part(at.end(), tokens)]
    }

    #[test]
    fn tiles_with_most_work_come_first() {
        // Tiles of 128: within the first document; its end and the second; the third's end; what is left of the fourth.
        let list = documents(&[0, 200, 300, 300, 384, 390]);
        let [by_queries, by_keys, begin, end] = parts(&list, 390);
        // 128, 256, 384 - 200, 390 - 384.
        assert_eq!(by_queries, [1, 2, 0, 3]);
        // 200 - 0, 300 - 128, 384 - 256, 390 - 384.
        assert_eq!(by_keys, [0, 1, 2, 3]);
        assert_eq!([begin[199], begin[200], begin[299], begin[300], begin[389]], [0, 200, 200, 300, 384]);
        assert_eq!(
            [end[0], end[199], end[200], end[299], end[300], end[389]],
            [200, 200, 300, 300, 384, 390]
        );
    }

    #[test]
    fn tiles_of_equal_work_stay_in_order() {
        let list = documents(&[0, 128, 256, 384, 512]);
        let [by_queries, by_keys, ..] = parts(&list, 512);
        assert_eq!((by_queries, by_keys), (&[0, 1, 2, 3][..], &[0, 1, 2, 3][..]));
    }

    #[test]
    fn every_token_has_its_document_and_every_tile_is_there() {
        let splits =
            [vec![128u32; 5], vec![129; 5], vec![1; 400], vec![0, 127, 0, 500, 2, 0], vec![1], vec![0]];
        for lengths in splits {
            let cu = super::super::super::cu_seqlens(&lengths);
            let tokens = *cu.last().unwrap() as usize;
            let list = documents(&cu);
            assert_eq!(list.len(), documents_len(tokens), "{lengths:?}");
            let [by_queries, by_keys, begin, end] = parts(&list, tokens);
            for order in [by_queries, by_keys] {
                let mut sorted = order.to_vec();
                sorted.sort_unstable();
                assert!(sorted.iter().copied().eq(0..tokens.div_ceil(BLOCK) as u32), "{lengths:?}");
            }
            for document in cu.windows(2) {
                for t in document[0] as usize..document[1] as usize {
                    assert_eq!([begin[t], end[t]], [document[0], document[1]], "token {t} of {lengths:?}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "cu_seqlens falls")]
    fn boundaries_do_not_fall() {
        documents(&[0, 5, 4]);
    }

    #[test]
    #[should_panic(expected = "cu_seqlens starts at 0")]
    fn boundaries_start_at_0() {
        documents(&[1, 5]);
    }
}
