//! How GGUF stores values, and back to f32. Layouts: ggml's `block_*`; values of a block share scales.

use half::{bf16, f16};

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    Bf16,
    /// 4 bits about 8, a scale for 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32.
    Q4_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 4 bits; 6-bit scales and minima for 32, a scale and a minimum of those for 256.
    Q4K,
    /// 6 bits about 32; 8-bit scales for 16, a scale of those for 256.
    Q6K,
}

impl Kind {
    /// Code in the file, kind, name, values of a block, its bytes.
    const ALL: [(u32, Kind, &'static str, usize, usize); 8] = [
        (0, Kind::F32, "F32", 1, 4),
        (1, Kind::F16, "F16", 1, 2),
        (2, Kind::Q4_0, "Q4_0", 32, 18),
        (3, Kind::Q4_1, "Q4_1", 32, 20),
        (8, Kind::Q8_0, "Q8_0", 32, 34),
        (12, Kind::Q4K, "Q4_K", 256, 144),
        (14, Kind::Q6K, "Q6_K", 256, 210),
        (30, Kind::Bf16, "BF16", 1, 2),
    ];

    /// Names of codes that are not in [`ALL`](Self::ALL).
    const OTHERS: [(u32, &'static str); 8] = [
        (6, "Q5_0"),
        (7, "Q5_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (13, "Q5_K"),
        (16, "IQ2_XXS"),
        (20, "IQ4_NL"),
        (23, "IQ4_XS"),
    ];

    /// The kind of a code.
    ///
    /// # Errors
    /// Its name, or its number, where it is not supported.
    pub fn of(code: u32) -> Result<Self, String> {
        if let Some((_, kind, ..)) = Self::ALL.iter().find(|(c, ..)| *c == code) {
            return Ok(*kind);
        }
        let name = Self::OTHERS.iter().find(|(c, _)| *c == code);
        Err(name.map_or_else(|| format!("{code}"), |(_, name)| (*name).into()))
    }

    /// All names.
    pub fn names() -> String {
        Self::ALL.map(|(_, _, name, ..)| name).join(", ")
    }

    fn row(self) -> (u32, Kind, &'static str, usize, usize) {
        Self::ALL.into_iter().find(|(_, kind, ..)| *kind == self).expect("every kind is there")
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values of a block.
    pub fn values(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.row().4
    }

    /// Values of whole blocks.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.bytes() * self.values());
        let decode: fn(&[u8], &mut Vec<f32>) = match self {
            Kind::F32 => |b, out| out.push(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Kind::F16 => |b, out| out.push(half(b)),
            Kind::Bf16 => |b, out| out.push(bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Kind::Q4_0 => q4_0,
            Kind::Q4_1 => q4_1,
            Kind::Q8_0 => q8_0,
            Kind::Q4K => q4_k,
            Kind::Q6K => q6_k,
        };
        bytes.chunks_exact(self.bytes()).for_each(|block| decode(block, &mut out));
        out
    }
}

fn half(b: &[u8]) -> f32 {
    f16::from_le_bytes([b[0], b[1]]).to_f32()
}

fn low(b: u8) -> f32 {
    f32::from(b & 15)
}

fn high(b: u8) -> f32 {
    f32::from(b >> 4)
}

/// Scale; 16 bytes, whose low halves come first.
fn q4_0(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b);
    out.extend(b[2..18].iter().map(|q| (low(*q) - 8.0) * d));
    out.extend(b[2..18].iter().map(|q| (high(*q) - 8.0) * d));
}

/// Scale and minimum; 16 bytes.
fn q4_1(b: &[u8], out: &mut Vec<f32>) {
    let (d, m) = (half(b), half(&b[2..]));
    out.extend(b[4..20].iter().map(|q| low(*q) * d + m));
    out.extend(b[4..20].iter().map(|q| high(*q) * d + m));
}

/// Scale; 32 signed bytes.
fn q8_0(b: &[u8], out: &mut Vec<f32>) {
    let d = half(b);
    out.extend(b[2..34].iter().map(|q| f32::from(*q as i8) * d));
}

/// Scale and minimum of the scales; 8 scales and minima of 6 bits in 12 bytes; 128 bytes, whose halves are runs of 32.
fn q4_k(b: &[u8], out: &mut Vec<f32>) {
    let (d, dmin, scales) = (half(b), half(&b[2..]), &b[4..16]);
    let scale = |j: usize| {
        let (s, m) = if j < 4 {
            (scales[j] & 63, scales[j + 4] & 63)
        } else {
            ((scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4))
        };
        (d * f32::from(s), dmin * f32::from(m))
    };
    for (j, run) in b[16..144].chunks_exact(32).enumerate() {
        let ((d1, m1), (d2, m2)) = (scale(2 * j), scale(2 * j + 1));
        out.extend(run.iter().map(|q| d1 * low(*q) - m1));
        out.extend(run.iter().map(|q| d2 * high(*q) - m2));
    }
}

/// 128 bytes of low halves, 64 bytes of two high bits, 16 signed scales, their scale; in two halves of 128 values.
fn q6_k(b: &[u8], out: &mut Vec<f32>) {
    let d = half(&b[208..]);
    for half in 0..2 {
        let (ql, qh) = (&b[64 * half..][..64], &b[128 + 32 * half..][..32]);
        let scales = &b[192 + 8 * half..][..8];
        for run in 0..4 {
            for l in 0..32 {
                let byte = ql[l + 32 * (run % 2)];
                let low = if run < 2 { byte & 15 } else { byte >> 4 };
                let q = low | (qh[l] >> (2 * run) & 3) << 4;
                let scale = d * f32::from(scales[2 * run + l / 16] as i8);
                out.push(scale * (f32::from(q) - 32.0));
            }
        }
    }
}
