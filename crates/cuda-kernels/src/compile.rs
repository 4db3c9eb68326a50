//! Kernels compiled by NVRTC for the GPU at hand, and kept on disk by source, driver and GPU.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char},
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use cudarc::{
    driver::sys::{self, CUfunction, CUmodule},
    nvrtc::sys as nvrtc,
};
use sha2::{Digest as _, Sha256};

use crate::{Device, Error, Result, device::check, instance::Instance};

/// What a kept kernel begins with.
const MAGIC: &[u8] = b"cuda-kernels 1\n";

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    device: Device,
    module: CUmodule,
    function: CUfunction,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Kernel {}
// SAFETY: likewise, at the same time.
unsafe impl Sync for Kernel {}

impl Kernel {
    fn load(device: &Device, name: &str, image: &[u8]) -> Result<Self> {
        device.bind()?;
        let mut module = ptr::null_mut();
        // SAFETY: a context is current. The driver checks the image.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
        let mut kernel = Self { device: device.clone(), module, function: ptr::null_mut() };
        let name = CString::new(name).map_err(|_| Error::invalid("a kernel's name", name, "no zero byte"))?;
        // SAFETY: the module is loaded.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut kernel.function, module, name.as_ptr())
        })?;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let mut fixed = 0;
        // SAFETY: the function exists.
        check("cuFuncGetAttribute", unsafe {
            sys::cuFuncGetAttribute(
                &mut fixed,
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
                kernel.function,
            )
        })?;
        let large = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        // SAFETY: likewise.
        check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(kernel.function, large, 1) })?;
        let most = device.shared_memory() as i32 - fixed;
        // SAFETY: likewise.
        check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(kernel.function, attribute, most) })?;
        Ok(kernel)
    }

    pub(crate) fn function(&self) -> CUfunction {
        self.function
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: loaded once, and graphs that launch it keep it alive.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

/// Compiles kernels, each once.
#[derive(Debug)]
pub struct Compiler {
    device: Device,
    folder: Option<PathBuf>,
    loaded: Mutex<HashMap<String, Arc<Kernel>>>,
    /// Whether what is being compiled is no longer wanted.
    stopped: AtomicBool,
}

impl Compiler {
    /// A compiler for a GPU, which keeps what it compiles in `folder`, where one is given.
    #[must_use]
    pub fn new(device: &Device, folder: Option<PathBuf>) -> Self {
        Self { device: device.clone(), folder, loaded: Mutex::default(), stopped: AtomicBool::new(false) }
    }

    /// Whether all of these kernels are compiled.
    pub(crate) fn has(&self, instances: &[Instance]) -> bool {
        let loaded = self.loaded();
        instances.iter().all(|instance| loaded.contains_key(&self.key(&instance.name(), &instance.source())))
    }

    /// Whether all of these kernels were compiled before, and are kept.
    pub(crate) fn keeps(&self, instances: &[Instance]) -> bool {
        let Some(folder) = &self.folder else { return false };
        instances.iter().all(|instance| folder.join(self.key(&instance.name(), &instance.source())).exists())
    }

    /// Ends compilations once the kernels under way are done, and allows no more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// The GPU it compiles for.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The kernels, in the same order; those that are new are compiled at the same time.
    pub(crate) fn kernels(&self, instances: &[Instance]) -> Result<Vec<Arc<Kernel>>> {
        let requests: Vec<_> =
            instances.iter().map(|instance| (instance.name(), instance.source())).collect();
        self.compile(&requests)
    }

    /// Kernels by name and source.
    pub(crate) fn compile(&self, requests: &[(String, String)]) -> Result<Vec<Arc<Kernel>>> {
        let keys: Vec<_> = requests.iter().map(|(name, source)| self.key(name, source)).collect();
        let mut missing = Vec::new();
        for (key, request) in keys.iter().zip(requests) {
            let known = self.loaded().contains_key(key) || missing.iter().any(|(other, _)| *other == key);
            if !known {
                missing.push((key, request));
            }
        }
        let some = !missing.is_empty();
        let threads = thread::available_parallelism().map_or(1, usize::from).min(missing.len().max(1));
        let next = Mutex::new(missing.into_iter());
        let work = || -> Result<()> {
            loop {
                let Some((key, (name, source))) = lock(&next).next() else { return Ok(()) };
                if self.stopped.load(Ordering::Acquire) {
                    return Err(Error::Stopped);
                }
                let kernel = Arc::new(self.build(key, name, source)?);
                self.loaded().insert(key.clone(), kernel);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mine = work();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })?;
            mine
        })?;
        if some {
            give_memory_back();
        }
        let loaded = self.loaded();
        Ok(keys.iter().map(|key| loaded[key].clone()).collect())
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Kernel>>> {
        lock(&self.loaded)
    }

    /// The kernel from the disk, or compiled and put there.
    fn build(&self, key: &str, name: &str, source: &str) -> Result<Kernel> {
        let path = self.folder.as_ref().map(|folder| folder.join(key));
        if let Some(image) = path.as_deref().and_then(kept)
            && let Ok(kernel) = Kernel::load(&self.device, name, &image)
        {
            return Ok(kernel);
        }
        let (major, minor) = self.device.capability();
        let image = compile(name, source, &format!("sm_{major}{minor}"))?;
        if let Some(path) = path {
            // Without a cache, everything works; it only takes longer next time.
            let _ = keep(&path, &image);
        }
        Kernel::load(&self.device, name, &image)
    }

    /// What tells a kernel from all others: source, driver and GPU.
    fn key(&self, name: &str, source: &str) -> String {
        let (major, minor) = self.device.capability();
        let about = format!("{name}\n{}\n{major}.{minor}\n{}\n", self.device.driver(), self.device.name());
        let digest = Sha256::new().chain_update(about).chain_update(source).finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + ".cubin"
    }
}

/// Gives the system what the compiler took. glibc keeps some for each thread that compiled.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What is kept at `path`, where it is whole.
fn kept(path: &Path) -> Option<Vec<u8>> {
    let file = fs::read(path).ok()?;
    let (digest, image) = file.strip_prefix(MAGIC)?.split_at_checked(32)?;
    (Sha256::digest(image)[..] == *digest).then(|| image.to_vec())
}

/// Keeps an image at `path`; a reader sees all of it or none.
fn keep(path: &Path, image: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    for part in [MAGIC, &Sha256::digest(image), image] {
        file.write_all(part)?;
    }
    file.persist(path).map(drop).map_err(|error| error.error)
}

struct Program(nvrtc::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// The machine code of a kernel.
///
/// # Errors
/// [`Error::NoCompiler`], [`Error::Compile`]
pub(crate) fn compile(name: &str, source: &str, arch: &str) -> Result<Vec<u8>> {
    // SAFETY: opens a library, no more.
    if !unsafe { nvrtc::is_culib_present() } {
        return Err(Error::NoCompiler { kernel: name.to_owned() });
    }
    let fail = |log: String| Error::Compile { kernel: name.to_owned(), log };
    let done = |result: nvrtc::nvrtcResult| match result {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        // SAFETY: the compiler returns a string that it keeps.
        failed => Err(fail(unsafe { text(nvrtc::nvrtcGetErrorString(failed)) })),
    };
    let [source, file] = [source, "kernel.cu"].map(|text| CString::new(text).unwrap_or_default());
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
    let options = options.map(|option| CString::new(option).unwrap_or_default());
    let options = options.each_ref().map(|option| option.as_ptr());
    let mut program = Program(ptr::null_mut());
    // SAFETY: the strings end in zero bytes; there are no headers.
    done(unsafe {
        nvrtc::nvrtcCreateProgram(&mut program.0, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
    })?;
    // SAFETY: the program exists, and there are as many options.
    let compiled = unsafe { nvrtc::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    let mut size = 0;
    if compiled != nvrtc::nvrtcResult::NVRTC_SUCCESS {
        // SAFETY: the compiler writes the size, and then as many bytes with a zero at the end.
        let log = unsafe {
            nvrtc::nvrtcGetProgramLogSize(program.0, &mut size);
            let mut log = vec![0_u8; size.max(1)];
            nvrtc::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast());
            CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned()
        };
        return Err(fail(log));
    }
    // SAFETY: the compiler writes a number.
    done(unsafe { nvrtc::nvrtcGetCUBINSize(program.0, &mut size) })?;
    let mut image = vec![0_u8; size];
    // SAFETY: the compiler writes as many bytes.
    done(unsafe { nvrtc::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) })?;
    Ok(image)
}

/// # Safety
/// `text` is null, or a string with a zero byte at its end.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller vouches.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below").join("kernel");
        assert_eq!(kept(&path), None);
        keep(&path, b"machine code").unwrap();
        assert_eq!(kept(&path).unwrap(), b"machine code");
        keep(&path, b"other code").unwrap();
        assert_eq!(kept(&path).unwrap(), b"other code");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(kept(&path), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert_eq!(kept(&path), None, "byte {at}");
        }
    }
}
