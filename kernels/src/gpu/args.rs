//! Arguments of kernels as the driver takes them.

use std::ffi::c_void;

use cudarc::driver::{DriverError, sys};

use super::{Arg, Ptr};

/// An argument as it lies in memory, lowest bytes first: as large and as aligned as the largest.
pub(super) type Value = sys::CUtensorMap;

pub(super) fn value(arg: &Arg) -> Result<Value, DriverError> {
    let word = match *arg {
        Arg::Ptr(Ptr(p)) => p,
        Arg::I32(v) => u64::from(v as u32),
        Arg::I64(v) => v as u64,
        Arg::U32(v) => u64::from(v),
        Arg::F32(v) => u64::from(v.to_bits()),
        Arg::Matrix { at, rows, columns } => return boxes(at, rows, columns),
    };
    let mut value = Value { opaque: [0; 16] };
    value.opaque[0] = word;
    Ok(value)
}

/// How the copy engine finds boxes of 64 x 64 in rows of bf16: 128 bytes a row, in the 128-byte swizzle; zeros outside.
fn boxes(at: Ptr, rows: usize, columns: usize) -> Result<Value, DriverError> {
    let (extents, stride) = ([columns as u64, rows as u64], [2 * columns as u64]);
    let (sides, every) = ([64u32, 64], [1u32, 1]);
    let mut map = Value { opaque: [0; 16] };
    // SAFETY: the arrays are as long as the rank says, and the driver copies them before the call returns.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            at.0 as *mut c_void,
            extents.as_ptr(),
            stride.as_ptr(),
            sides.as_ptr(),
            every.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map)
}
