//! Event files as TensorBoard reads them: records framed as in TFRecord, each a protobuf `Event`.
//!
//! A record is its length (u64), the length's checksum, the bytes, and their checksum; all little-endian. Checksums are CRC-32C,
//! masked as in TensorFlow's `record_writer`. Of the messages only the few fields are written that scalars need, after
//! `event.proto` and `summary.proto`.

use std::io::{self, Write};

/// Writes scalars.
pub struct EventWriter<W> {
    out: W,
}

impl<W: Write> EventWriter<W> {
    /// Begins a file. Whatever earlier files of the folder have from step `from` on was given up, and is not shown.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(out: W, wall_time: f64, from: u64) -> io::Result<Self> {
        let mut writer = Self { out };
        let mut version = Message::event(wall_time, 0);
        version.bytes(3, b"brain.Event:2");
        writer.record(&version.0)?;
        if from > 0 {
            // SessionLog with status START.
            let mut start = Message::event(wall_time, from);
            start.bytes(7, &[1 << 3, 1]);
            writer.record(&start.0)?;
        }
        Ok(writer)
    }

    /// Writes scalars of one step, by tag.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn scalars(&mut self, wall_time: f64, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut one = Message::default();
            one.bytes(1, tag.as_bytes());
            one.key(2, WIRE_32);
            one.0.extend((*value as f32).to_le_bytes());
            summary.bytes(1, &one.0);
        }
        let mut event = Message::event(wall_time, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut framed = Vec::with_capacity(data.len() + 16);
        framed.extend(length);
        framed.extend(masked(crc32c(&length)).to_le_bytes());
        framed.extend(data);
        framed.extend(masked(crc32c(data)).to_le_bytes());
        self.out.write_all(&framed)?;
        self.out.flush()
    }
}

const WIRE_VARINT: u64 = 0;
const WIRE_64: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_32: u64 = 5;

/// A protobuf message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` at a step.
    fn event(wall_time: f64, step: u64) -> Self {
        let mut event = Self::default();
        event.key(1, WIRE_64);
        event.0.extend(wall_time.to_le_bytes());
        // Zero is what a field is that is left out.
        if step > 0 {
            event.key(2, WIRE_VARINT);
            event.varint(step);
        }
        event
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, WIRE_BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// So that the checksum of data with a checksum in it is not the like of it.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, b| (crc >> 8) ^ TABLE[(crc as u8 ^ b) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The bytes that TensorBoard's own reader takes for these events, see `tests/goldens/tensorboard`.
    #[test]
    fn the_file_is_the_golden_one() {
        let mut file = Vec::new();
        let mut writer = EventWriter::new(&mut file, 1.5e9, 3).unwrap();
        writer.scalars(1.5e9 + 0.25, 3, &[("train/loss", 2.5), ("train/grad_norm", 0.125)]).unwrap();
        writer.scalars(1.5e9 + 1.0, 300, &[("eval/loss", -1.0)]).unwrap();
        assert_eq!(file, include_bytes!("../../../tests/goldens/tensorboard/events.bin"));
    }
}
