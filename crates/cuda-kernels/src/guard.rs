//! Memory behind which no other lies: a kernel that reads or writes past it fails. For checks, since each takes megabytes.

use cudarc::driver::sys::{
    self, CUmemAccess_flags_enum as Access, CUmemAccessDesc,
    CUmemAllocationGranularity_flags_enum as Granularity, CUmemAllocationHandleType_enum as Handle,
    CUmemAllocationProp, CUmemAllocationProp_st__bindgen_ty_1 as Flags, CUmemAllocationType_enum as Type,
    CUmemLocation, CUmemLocationType_enum as LocationType,
};

use crate::{Device, Result, device::check};

/// Where buffers begin.
const ALIGNMENT: usize = 16;

/// Addresses of which all but the last are backed by memory.
#[derive(Debug)]
pub(crate) struct Guarded {
    device: Device,
    start: u64,
    reserved: usize,
    mapped: usize,
    handle: Option<u64>,
}

impl Guarded {
    /// Memory for so many bytes, and the address where they begin: they end where it ends, to within 15 bytes.
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<(Self, u64)> {
        device.bind()?;
        let location =
            CUmemLocation { type_: LocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device.ordinal() };
        let properties = CUmemAllocationProp {
            type_: Type::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: Handle::CU_MEM_HANDLE_TYPE_NONE,
            location,
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: Flags { compressionType: 0, gpuDirectRDMACapable: 0, usage: 0, reserved: [0; 4] },
        };
        let (mut page, mut start, mut handle) = (0, 0, 0);
        let minimum = Granularity::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        // SAFETY: the driver writes one number.
        check("cuMemGetAllocationGranularity", unsafe {
            sys::cuMemGetAllocationGranularity(&mut page, &properties, minimum)
        })?;
        let size = bytes.next_multiple_of(page);
        let reserved = size + page;
        // SAFETY: the driver writes an address.
        check("cuMemAddressReserve", unsafe { sys::cuMemAddressReserve(&mut start, reserved, 0, 0, 0) })?;
        let mut guarded = Self { device: device.clone(), start, reserved, mapped: 0, handle: None };
        // SAFETY: the driver writes a handle.
        check("cuMemCreate", unsafe { sys::cuMemCreate(&mut handle, size, &properties, 0) })?;
        guarded.handle = Some(handle);
        // SAFETY: so many addresses are reserved, and the memory is as large.
        check("cuMemMap", unsafe { sys::cuMemMap(start, size, 0, handle, 0) })?;
        guarded.mapped = size;
        let access = CUmemAccessDesc { location, flags: Access::CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        // SAFETY: the addresses are mapped.
        check("cuMemSetAccess", unsafe { sys::cuMemSetAccess(start, size, &access, 1) })?;
        Ok((guarded, start + (size - bytes.next_multiple_of(ALIGNMENT)) as u64))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Kernels may still read it. An error of the driver cannot be handled here.
        let _ = self.device.synchronize();
        // SAFETY: each was made in `new`, and is given up once.
        unsafe {
            if self.mapped > 0 {
                let _ = sys::cuMemUnmap(self.start, self.mapped);
            }
            if let Some(handle) = self.handle {
                let _ = sys::cuMemRelease(handle);
            }
            let _ = sys::cuMemAddressFree(self.start, self.reserved);
        }
    }
}
