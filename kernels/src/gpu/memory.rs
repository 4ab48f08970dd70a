//! Memory of a GPU, and what is done to it in order with the launches.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::{Gpu, GpuError, Ptr};

/// Device memory; freed when dropped, after everything on the device has ended.
pub struct Buffer {
    address: sys::CUdeviceptr,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Buffer {
    /// Where it begins.
    pub fn ptr(&self) -> Ptr {
        Ptr(self.address)
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of byte `at`, of which `len` bytes are inside.
    pub(super) fn span(&self, at: usize, len: usize) -> sys::CUdeviceptr {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.bytes);
        assert!(inside, "{len} bytes from byte {at} of a buffer of {}", self.bytes);
        self.address + at as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `Gpu::alloc` and freed here only; the driver waits for the device first.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Gpu {
    /// Memory that holds anything.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, GpuError> {
        self.bind()?;
        // SAFETY: the context is current. An allocation of nothing is an error to the driver.
        let address = unsafe { result::malloc_sync(bytes.max(1)) };
        let address = address.map_err(|e| GpuError::driver(&format!("allocation of {bytes} bytes"), e))?;
        Ok(Buffer { address, bytes, context: self.context().clone() })
    }

    /// Memory that holds a copy of `data`.
    pub fn upload(&self, data: &[u8]) -> Result<Buffer, GpuError> {
        let buffer = self.alloc(data.len())?;
        self.write(&buffer, data)?;
        Ok(buffer)
    }

    /// Overwrites the beginning of a buffer, after every launch before and ahead of every later one.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn write(&self, buffer: &Buffer, data: &[u8]) -> Result<(), GpuError> {
        self.write_at(buffer, 0, data)
    }

    /// As [`write`](Self::write), from byte `at`.
    ///
    /// # Panics
    /// If the buffer ends before.
    pub fn write_at(&self, buffer: &Buffer, at: usize, data: &[u8]) -> Result<(), GpuError> {
        let address = buffer.span(at, data.len());
        self.bind()?;
        // On the stream: a plain copy from pageable memory may return before the data have arrived, and this stream does not wait
        // for the one that such a copy runs on.
        // SAFETY: the buffer has that many bytes, and the data outlive the copy, which is waited for.
        unsafe { result::memcpy_htod_async(address, data, self.stream()) }
            .map_err(|e| GpuError::driver("upload", e))?;
        self.synchronise()
    }

    /// Memory that holds `block` again and again, the last time as far as `bytes` reach; made on the device.
    pub fn repeat(&self, block: &[u8], bytes: usize) -> Result<Buffer, GpuError> {
        let buffer = self.alloc(bytes)?;
        self.refill(&buffer, block)?;
        Ok(buffer)
    }

    /// Writes `block` again and again over a whole buffer, in order with the launches.
    pub fn refill(&self, buffer: &Buffer, block: &[u8]) -> Result<(), GpuError> {
        let failed = |e| GpuError::driver("repetition", e);
        let bytes = buffer.bytes;
        let mut filled = block.len().min(bytes);
        self.write(buffer, &block[..filled])?;
        while filled < bytes && filled > 0 {
            let more = filled.min(bytes - filled);
            let to = buffer.address + filled as u64;
            // SAFETY: what is filled is a multiple of the block, lies before what is not, and both are inside the buffer.
            unsafe { result::memcpy_dtod_async(to, buffer.address, more, self.stream()) }.map_err(failed)?;
            filled += more;
        }
        Ok(())
    }

    /// A copy of a buffer, after every launch before.
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<u8>, GpuError> {
        self.read(buffer, 0, buffer.bytes)
    }

    /// `len` bytes of a buffer from byte `at`, after every launch before.
    ///
    /// # Panics
    /// If the buffer ends before.
    pub fn read(&self, buffer: &Buffer, at: usize, len: usize) -> Result<Vec<u8>, GpuError> {
        let address = buffer.span(at, len);
        self.synchronise()?;
        let mut data = vec![0u8; len];
        // SAFETY: the buffer has those bytes, and the copy ends before this call does.
        unsafe { result::memcpy_dtoh_sync(&mut data, address) }
            .map_err(|e| GpuError::driver("download", e))?;
        Ok(data)
    }

    /// Sets every byte, in order with the launches.
    pub fn fill(&self, buffer: &Buffer, byte: u8) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: the buffer is alive until this GPU is synchronised, which dropping it does.
        unsafe { result::memset_d8_async(buffer.address, byte, buffer.bytes, self.stream()) }
            .map_err(|e| GpuError::driver("fill", e))
    }

    /// Sets `len` bytes from byte `at` to zero, in order with the launches.
    ///
    /// # Panics
    /// If the buffer ends before.
    pub fn zero(&self, buffer: &Buffer, at: usize, len: usize) -> Result<(), GpuError> {
        let address = buffer.span(at, len);
        self.bind()?;
        // SAFETY: as in `fill`; the buffer has those bytes.
        unsafe { result::memset_d8_async(address, 0, len, self.stream()) }
            .map_err(|e| GpuError::driver("fill", e))
    }

    /// Copies device memory, in order with the launches.
    pub fn copy(&self, from: &Buffer, to: &Buffer) -> Result<(), GpuError> {
        self.copy_bytes(from, to, from.bytes.min(to.bytes))
    }

    /// Copies the first `bytes` of a buffer, in order with the launches.
    ///
    /// # Panics
    /// If either buffer is shorter.
    pub fn copy_bytes(&self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<(), GpuError> {
        assert!(bytes <= from.bytes.min(to.bytes), "{bytes} bytes");
        self.bind()?;
        // SAFETY: both buffers have that many bytes.
        unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, self.stream()) }
            .map_err(|e| GpuError::driver("copy", e))
    }
}
