//! Tests of unfused variants on a GPU: the tables of operators in their documentation, against what they launch and against
//! the bytes that they say they move.

use std::cell::RefCell;

use crate::gpu::{Arg, Elem, Entry, GpuError, Grid, Launcher, Product, Products, Ptr};

/// A row of a table: `| operator | launch | when | reads | writes |`.
#[derive(Debug)]
pub(crate) struct Operator {
    /// Entry point, or `product`; empty where a row adds to the operands of the launch above.
    pub launch: String,
    /// When it runs; empty for always.
    pub when: String,
    /// Bytes; a product's are not counted.
    pub bytes: u64,
}

/// The tables of a module's documentation that are headed as above. A cell of operands is a sum like `T·V f32 + 2·T i32`, with
/// `e` for the element type and the extents that `extent` knows.
pub(crate) fn tables(source: &str, elem: Elem, extent: impl Fn(&str) -> u64) -> Vec<Vec<Operator>> {
    let mut tables = Vec::new();
    for line in source.lines().map(str::trim).filter_map(|l| l.strip_prefix("//! ")) {
        let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let &["", operator, launch, when, reads, writes, ""] = cells.as_slice() else { continue };
        match operator {
            "operator" => tables.push(Vec::new()),
            operator if operator.starts_with("---") => {}
            _ => {
                let bytes = [reads, writes].map(|cell| bytes(cell, elem, &extent)).iter().sum();
                let row = Operator { launch: launch.into(), when: when.into(), bytes };
                tables.last_mut().expect("a row stands below its heads").push(row);
            }
        }
    }
    tables
}

fn bytes(cell: &str, elem: Elem, extent: &impl Fn(&str) -> u64) -> u64 {
    let term = |term: &str| {
        let (extents, kind) = term.rsplit_once(' ').unwrap_or_else(|| panic!("{term} has no type"));
        let size = match kind {
            "e" => elem.bytes() as u64,
            "i32" | "u32" | "f32" => 4,
            _ => panic!("unknown type {kind}"),
        };
        extents.split('·').map(|x| x.parse().unwrap_or_else(|_| extent(x))).product::<u64>() * size
    };
    cell.split(" + ").filter(|t| !t.is_empty()).map(term).sum()
}

/// Launches and bytes of a table's rows, of those that run.
pub(crate) fn sum(table: &[Operator], runs: impl Fn(&str) -> bool) -> (Vec<String>, u64) {
    let rows: Vec<&Operator> = table.iter().filter(|row| row.when.is_empty() || runs(&row.when)).collect();
    let launches = rows.iter().map(|row| row.launch.clone()).filter(|name| !name.is_empty()).collect();
    (launches, rows.iter().map(|row| row.bytes).sum())
}

/// Runs nothing and remembers the names of what it was given.
#[derive(Default)]
pub(crate) struct Recorder(RefCell<Vec<String>>);

impl Recorder {
    /// The names, from the last call on.
    pub(crate) fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

impl Launcher for Recorder {
    unsafe fn launch(&self, entry: Entry, _: Grid, _: &[Arg]) -> Result<(), GpuError> {
        assert!(
            entry.unit.entries.contains(&entry.name) && entry.unit.elems.contains(&entry.elem),
            "{entry:?}"
        );
        self.0.borrow_mut().push(entry.name.into());
        Ok(())
    }

    fn processors(&self) -> u32 {
        1
    }
}

impl Products for Recorder {
    unsafe fn product(&self, _: &Product, _: Ptr, _: Ptr, _: Ptr, _: Ptr) -> Result<(), GpuError> {
        self.0.borrow_mut().push("product".into());
        Ok(())
    }
}
