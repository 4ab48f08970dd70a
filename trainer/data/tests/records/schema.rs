//! Schemas of Parquet: those that are read, and those that the library would not survive.

use super::*;

/// A field of Thrift's behind the one before: its type, and its bytes.
fn field(behind: u8, kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[behind << 4 | kind], bytes].concat()
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 0x7f {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

/// A group of so many fields.
fn group(fields: i64) -> Vec<u8> {
    let fields = varint(((fields << 1) ^ (fields >> 63)) as u64);
    [field(3, 5, &[0]), field(1, 8, b"\x01g"), field(1, 5, &fields), vec![0]].concat()
}

/// A column of strings, with something behind its name.
fn leaf(more: &[u8]) -> Vec<u8> {
    [&field(1, 5, &[12])[..], &field(2, 5, &[0]), &field(1, 8, b"\x01l"), more, &[0]].concat()
}

/// What is said of a file of this schema without rows; nothing is wrong with it if it has no records.
fn told(elements: &[Vec<u8>]) -> String {
    let list = [&[0xfc][..], &varint(elements.len() as u64), &elements.concat()].concat();
    told_of(&[field(1, 5, &[2]), field(1, 9, &list)].concat())
}

/// The same, of what begins the metadata.
fn told_of(begin: &[u8]) -> String {
    let metadata = [begin, &field(1, 6, &[0]), &field(1, 9, &[0x0c]), &[0]].concat();
    let length = (metadata.len() as u32).to_le_bytes();
    let file = File::new("d.parquet", [b"PAR1", &metadata[..], &length, b"PAR1"].concat());
    match read(&file.path, &ReadArgs::default()) {
        Ok(found) => format!("{} records", found.len()),
        Err(e) => e.to_string().replace(&file.path.display().to_string(), "F"),
    }
}

const DAMAGED: &str = "data set F: it is no Parquet file that can be read: its schema is damaged; ";

#[test]
fn groups_as_deep_as_one_likes_are_refused() {
    let of = |n: usize| told(&[vec![group(1); n], vec![leaf(&[])]].concat());
    let whole = told(&[group(1), leaf(&[])]);
    assert_eq!(of(100), whole);
    let expected = "data set F: its schema has more than 100 groups in one another; ";
    for n in [101, 20_000] {
        assert!(of(n).starts_with(expected), "{}", of(n));
    }
    // Any number beside one another, each in the root, or in a group that ends with it.
    let many: Vec<_> = (0..300).flat_map(|_| [group(1), leaf(&[])]).collect();
    let text = told(&[vec![group(300)], many].concat());
    assert!(!text.contains("in one another"), "{text}");
}

/// The library makes room for as many as there are said to be.
#[test]
fn more_fields_of_a_group_than_follow_are_refused() {
    let text = told(&[group(1 << 30), leaf(&[])]);
    assert!(text.contains("its schema has a group of 1073741824 fields, of which 1 follow"), "{text}");
    assert!(told(&[group(-1), leaf(&[])]).starts_with(DAMAGED));
}

/// What would be stepped over as one thing, and read as another, could hide groups.
#[test]
fn what_is_another_type_than_it_seems_in_a_schema_is_refused() {
    let whole = told(&[group(1), leaf(&[])]);
    let list = [&[0x2c][..], &group(1), &leaf(&[])].concat();
    // The version as a string, a list of keys in front, and the schema as a set, which is a list.
    assert!(told_of(&[field(1, 8, &[0]), field(1, 9, &list)].concat()).starts_with(DAMAGED));
    assert!(told_of(&[field(5, 9, &[0x0c]), vec![9, 4], list.clone()].concat()).starts_with(DAMAGED));
    assert_eq!(told_of(&[field(1, 5, &[2]), field(1, 10, &list)].concat()), whole);
    assert!(told_of(&[field(1, 5, &[2]), field(1, 12, &list)].concat()).starts_with(DAMAGED));

    let logical = |bytes: &[u8]| told(&[group(1), leaf(&field(6, 12, bytes))]);
    // A string; a time with its unit; an integer.
    assert_eq!(logical(&[0x1c, 0, 0]), whole);
    for good in [&[0x8c, 0x11, 0x1c, 0x1c, 0, 0, 0, 0][..], &[0xac, 0x13, 8, 0x11, 0, 0]] {
        assert!(!logical(good).starts_with(DAMAGED), "{good:?}");
    }
    for bad in [
        &[0x15, 0, 0][..],
        &[0x8c, 0x13, 0x1c, 0x1c, 0, 0, 0, 0],
        &[0x8c, 0x11, 0x15, 0x1c, 0, 0, 0, 0],
        &[0x8c, 0x11, 0x1c, 0x11, 0, 0, 0, 0],
        &[0xac, 0x15, 8, 0x11, 0, 0],
        &[0x5c, 0x18, 0, 0x15, 0, 0, 0],
    ] {
        assert!(logical(bad).starts_with(DAMAGED), "{bad:?}: {}", logical(bad));
    }
    // A length of values, and a number of fields, as strings.
    assert!(told(&[group(1), leaf(&[8, 4, 0])]).starts_with(DAMAGED));
    assert!(told(&[group(1), leaf(&field(1, 8, &[0]))]).starts_with(DAMAGED));
}

/// The library would read the last of them twice.
#[test]
fn columns_that_come_twice_are_refused() {
    let text = told(&[group(2), leaf(&[]), leaf(&[])]);
    assert!(text.contains("column \"l\" comes twice; rename one of the two"), "{text}");
    let text = told(&[group(2), group(1), leaf(&[]), leaf(&[])]);
    assert!(!text.contains("twice"), "{text}");
}
