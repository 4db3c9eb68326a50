//! Memory of the GPU.

use std::ptr;

use cudarc::driver::sys;

use crate::{Device, Error, Result, device::check, guard::Guarded};

/// An address in the memory of a GPU; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    pub(crate) fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// Types whose every pattern of bits is a value.
pub trait Plain: Copy + Default + private::Sealed {}

mod private {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($element:ty),*) => { $(impl private::Sealed for $element {} impl Plain for $element {})* };
}
plain!(u8, u16, u32, u64, i32, f32);

/// Memory of the GPU that is freed with this.
#[derive(Debug)]
pub struct Buffer {
    device: Device,
    ptr: DevicePtr,
    bytes: usize,
    guard: Option<Guarded>,
}

impl Buffer {
    /// As many bytes, all zero.
    ///
    /// # Errors
    /// [`Error::Driver`]
    pub fn zeroed(device: &Device, bytes: usize) -> Result<Self> {
        device.bind()?;
        let bytes = bytes.max(1);
        let (ptr, guard) = if device.guards_buffers() {
            let (guard, start) = Guarded::new(device, bytes)?;
            (DevicePtr(start), Some(guard))
        } else {
            let mut ptr = 0;
            // SAFETY: a context is current.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut ptr, bytes) })?;
            (DevicePtr(ptr), None)
        };
        let buffer = Self { device: device.clone(), ptr, bytes, guard };
        // SAFETY: the buffer is that large.
        check("cuMemsetD8", unsafe { sys::cuMemsetD8_v2(ptr.0, 0, bytes) })?;
        // Streams of this crate do not wait for the default one.
        device.synchronize()?;
        Ok(buffer)
    }

    /// A copy of `data`.
    ///
    /// # Errors
    /// [`Error::Driver`]
    pub fn of<T: Plain>(device: &Device, data: &[T]) -> Result<Self> {
        let mut buffer = Self::zeroed(device, size_of_val(data))?;
        buffer.write(0, data)?;
        Ok(buffer)
    }

    /// Where it begins.
    #[must_use]
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `data` to the element `first`, after all work that was given to the default stream, and waits until it is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it does not fit; [`Error::Driver`].
    pub fn write<T: Plain>(&mut self, first: usize, data: &[T]) -> Result<()> {
        let start = self.range(first, data)?;
        self.device.bind()?;
        // SAFETY: both are as large.
        check("cuMemcpyHtoD", unsafe {
            sys::cuMemcpyHtoD_v2(self.ptr.0 + start, data.as_ptr().cast(), size_of_val(data))
        })?;
        // A copy of a few bytes may still be on its way, and streams of this crate do not wait for it.
        // SAFETY: null is the default stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(ptr::null_mut()) })
    }

    /// A copy of `count` elements from the element `first`. Work on other streams must have ended.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are fewer; [`Error::Driver`].
    pub fn read<T: Plain>(&self, first: usize, count: usize) -> Result<Vec<T>> {
        let mut data = vec![T::default(); count];
        let start = self.range(first, &data)?;
        self.device.bind()?;
        // SAFETY: both are as large, and every pattern of bits is a value.
        check("cuMemcpyDtoH", unsafe {
            sys::cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), self.ptr.0 + start, size_of_val(&data[..]))
        })?;
        Ok(data)
    }

    fn range<T>(&self, first: usize, data: &[T]) -> Result<u64> {
        let start = first.checked_mul(size_of::<T>());
        match start.and_then(|start| start.checked_add(size_of_val(data)).map(|end| (start, end))) {
            Some((start, end)) if end <= self.bytes => Ok(start as u64),
            _ => Err(Error::invalid(
                "the end of a copy",
                format!("element {first} and {} more", data.len()),
                format!("at most {} bytes", self.bytes),
            )),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.guard.is_none() && self.device.bind().is_ok() {
            // SAFETY: allocated in `zeroed`, freed once. An error of the driver cannot be handled here.
            let _ = unsafe { sys::cuMemFree_v2(self.ptr.0) };
        }
    }
}

/// Memory of the host that the GPU writes to: numbers that are read while it works.
#[derive(Debug)]
pub(crate) struct HostBuffer {
    device: Device,
    data: *mut i32,
    count: usize,
}

// SAFETY: the memory belongs to this alone, and is read with volatile reads.
unsafe impl Send for HostBuffer {}
// SAFETY: likewise.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// As many numbers, all zero.
    pub(crate) fn new(device: &Device, count: usize) -> Result<Self> {
        device.bind()?;
        let mut data = ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        let bytes = count.max(1) * size_of::<i32>();
        // SAFETY: a context is current.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut data, bytes, flags) })?;
        let buffer = Self { device: device.clone(), data: data.cast(), count };
        // SAFETY: the memory is that large, and all zeros are a value.
        unsafe { ptr::write_bytes(buffer.data, 0, count) };
        Ok(buffer)
    }

    /// Where it begins; with unified addressing it is one address for both.
    pub(crate) fn ptr(&self) -> DevicePtr {
        DevicePtr(self.data as u64)
    }

    /// One of the numbers, or `None` where there are fewer.
    pub(crate) fn read(&self, index: usize) -> Option<i32> {
        // SAFETY: there are more.
        (index < self.count).then(|| unsafe { ptr::read_volatile(self.data.add(index)) })
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated in `new`, freed once. An error of the driver cannot be handled here.
            let _ = unsafe { sys::cuMemFreeHost(self.data.cast()) };
        }
    }
}
