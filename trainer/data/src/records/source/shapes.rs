//! Columns that are in the same list. The library takes from all of them as many values as the first has, wherever their rows end: a row
//! could take those of a whole file, if they did not agree on how long their lists are.

use std::hash::{DefaultHasher, Hash, Hasher};

use parquet::{basic::Repetition, schema::types::Type};

use super::lists::Runs;

/// The innermost group that two columns are both in: how deep it is, and its levels.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Shared {
    depth: usize,
    repetition: u64,
    definition: u64,
}

impl Shared {
    /// Levels of what is in it.
    fn with(self, field: &Type) -> Self {
        let repetition = field.get_basic_info().repetition();
        Self {
            depth: self.depth + 1,
            repetition: self.repetition + u64::from(repetition == Repetition::REPEATED),
            definition: self.definition + u64::from(repetition != Repetition::REQUIRED),
        }
    }
}

/// Of lists of a column, how long they are: what it has in common with the column before and with the one behind.
pub(super) struct Shape {
    shared: [Shared; 2],
    hashes: [Runlength; 2],
    /// Of every list around a value, the level from which on something is in it.
    lists: Vec<u64>,
    last: Option<u64>,
}

/// Of every column of a schema.
pub(super) fn shapes(schema: &Type) -> Vec<Shape> {
    let mut found = Vec::new();
    let mut lowest = Shared::default();
    walk(schema, Shared::default(), &mut Vec::new(), &mut lowest, &mut found);
    found
}

/// `lowest` is the outermost group since the last column.
fn walk(group: &Type, here: Shared, lists: &mut Vec<u64>, lowest: &mut Shared, found: &mut Vec<Shape>) {
    for field in group.get_fields() {
        *lowest = here.min(*lowest);
        let inside = here.with(field);
        let repeated = inside.repetition > here.repetition;
        if repeated {
            lists.push(inside.definition);
        }
        if field.is_primitive() {
            if let Some(before) = found.last_mut() {
                before.shared[1] = *lowest;
            }
            let shared = [*lowest, Shared::default()];
            found.push(Shape { shared, hashes: Default::default(), lists: lists.clone(), last: None });
            *lowest = Shared { depth: usize::MAX, ..here };
        } else {
            walk(field, inside, lists, lowest, found);
        }
        if repeated {
            lists.pop();
        }
    }
}

impl Shape {
    /// Whether this column's lists are as long as those of the column behind, if they are in the same.
    pub fn agrees(&mut self, behind: &mut Self) -> bool {
        self.shared[1].repetition == 0 || self.hashes[1].finish() == behind.hashes[0].finish()
    }

    /// Ready for another row group.
    pub fn reset(&mut self) {
        (self.hashes, self.last) = Default::default();
    }

    /// # Errors
    /// A value goes on with a list that there is not.
    pub fn page<'a>(
        &mut self,
        mut repetitions: Runs<'a>,
        mut definitions: Runs<'a>,
        values: u64,
    ) -> Result<(), String> {
        if self.shared.iter().all(|shared| shared.repetition == 0) {
            return Ok(());
        }
        // The library ends at such a page, and goes on behind it.
        if values == 0 {
            self.add(0, 0, 1)?;
        }
        let (mut repetition, mut definition) = ((0, 0), (0, 0));
        loop {
            for (run, runs) in [(&mut repetition, &mut repetitions), (&mut definition, &mut definitions)] {
                if run.1 == 0 {
                    // It has errors for the values that are missing then.
                    let Some(next) = runs.next() else { return Ok(()) };
                    *run = next;
                }
            }
            let n = repetition.1.min(definition.1);
            self.add(repetition.0, definition.0, n)?;
            repetition.1 -= n;
            definition.1 -= n;
        }
    }

    fn add(&mut self, repetition: u64, definition: u64, n: u64) -> Result<(), String> {
        if let Some(list) = repetition.checked_sub(1) {
            let there = usize::try_from(list).ok().and_then(|list| self.lists.get(list));
            if there.is_none_or(|there| definition < *there || self.last.is_none_or(|last| last < *there)) {
                return Err("has values in lists that do not begin".into());
            }
        }
        self.last = Some(definition);
        for (shared, hash) in self.shared.iter().zip(&mut self.hashes) {
            if shared.repetition > 0 && repetition <= shared.repetition {
                hash.add((repetition, definition.min(shared.definition)), n);
            }
        }
        Ok(())
    }
}

/// A hash of levels, the same however they are cut into runs.
#[derive(Default)]
struct Runlength {
    hasher: DefaultHasher,
    now: (u64, u64),
    n: u64,
}

impl Runlength {
    fn add(&mut self, levels: (u64, u64), n: u64) {
        if levels != self.now {
            (self.now, self.n).hash(&mut self.hasher);
            (self.now, self.n) = (levels, 0);
        }
        self.n += n;
    }

    fn finish(&mut self) -> u64 {
        (self.now, self.n).hash(&mut self.hasher);
        self.hasher.finish()
    }
}
