//! A GPU and its primary context, which other CUDA libraries of the process share.

use std::{ffi::CStr, ptr, sync::Arc};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use crate::{Error, Result};

/// The oldest driver with all calls that this crate makes.
const OLDEST_DRIVER: i32 = 12_080;

/// A GPU that runs the kernels. Clones are the same GPU.
#[derive(Debug, Clone)]
pub struct Device {
    inner: Arc<Inner>,
    guards_buffers: bool,
}

#[derive(Debug)]
struct Inner {
    device: sys::CUdevice,
    context: sys::CUcontext,
    name: String,
    capability: (u32, u32),
    multiprocessors: u32,
    shared_memory: u32,
    driver: i32,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Inner {}
// SAFETY: likewise, at the same time.
unsafe impl Sync for Inner {}

impl Device {
    /// The GPU with this number, where the machine has one that the kernels run on.
    ///
    /// # Errors
    /// Each says why not: [`Error::NoDriver`], [`Error::OldDriver`], [`Error::NoDevice`], [`Error::OldDevice`].
    pub fn probe(ordinal: usize) -> Result<Self> {
        // SAFETY: opens a library, no more.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        let (mut driver, mut count) = (0, 0);
        // SAFETY: the driver writes one number.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut driver) })?;
        if driver < OLDEST_DRIVER {
            return Err(Error::OldDriver { found: driver });
        }
        // SAFETY: no precondition.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(Error::NoDevice { ordinal, count: 0 }),
            result => check("cuInit", result)?,
        }
        // SAFETY: the driver writes one number.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let mut device = 0;
        // SAFETY: there is a device of this number.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        let name = device_name(device)?;
        let attribute = |attribute| device_attribute(device, attribute);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability.0 < 9 {
            return Err(Error::OldDevice { name, capability });
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_memory = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut context = ptr::null_mut();
        // SAFETY: the device exists.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        let inner = Inner { device, context, name, capability, multiprocessors, shared_memory, driver };
        Ok(Self { inner: Arc::new(inner), guards_buffers: false })
    }

    /// The same GPU. Behind each [`Buffer`](crate::Buffer) that is made with what this returns lies no memory: a kernel that reads or writes
    /// past its end fails with [`Error::Driver`]. A buffer then takes megabytes, so this is for checks.
    #[must_use]
    pub fn with_guarded_buffers(self) -> Self {
        Self { guards_buffers: true, ..self }
    }

    pub(crate) fn guards_buffers(&self) -> bool {
        self.guards_buffers
    }

    pub(crate) fn ordinal(&self) -> sys::CUdevice {
        self.inner.device
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its compute capability, major and minor.
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.inner.capability
    }

    /// How many multiprocessors it has.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors
    }

    /// The most shared memory that a block may ask for, in bytes.
    #[must_use]
    pub fn shared_memory(&self) -> u32 {
        self.inner.shared_memory
    }

    /// The newest CUDA that its driver supports, 1000 · major + 10 · minor.
    #[must_use]
    pub fn driver(&self) -> i32 {
        self.inner.driver
    }

    /// Makes its context the one of this thread.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.inner.context) })
    }

    /// Waits until all work on the GPU is done.
    ///
    /// # Errors
    /// [`Error::Driver`], also of work that failed.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: a context is current.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: retained once in `probe`. An error of the driver cannot be handled here.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// The error of a call, where it failed.
pub(crate) fn check(call: &'static str, result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let describe = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = ptr::null();
        // SAFETY: the driver writes a pointer to a string that it keeps, or null.
        unsafe {
            get(result, &mut text);
            if text.is_null() {
                "unknown".to_owned()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        }
    };
    Err(Error::Driver { call, name: describe(sys::cuGetErrorName), text: describe(sys::cuGetErrorString) })
}

fn device_name(device: sys::CUdevice) -> Result<String> {
    let mut name = [0_u8; 256];
    // SAFETY: the driver writes at most as many bytes, the last of them zero.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32 - 1, device)
    })?;
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

fn device_attribute(device: sys::CUdevice, attribute: Attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the driver writes one number.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}
